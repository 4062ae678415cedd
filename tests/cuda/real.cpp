// Machines whose layers hold bits or real numbers: means of a layer, sweeps, mean field.
#include "cuda/real.h"

#include <cmath>
#include <utility>

#include "arrays.h"
#include "cuda/pack.h"
#include "cuda/softmax.h"
#include "operations.h"

namespace {

struct RealLayer {
  int32_t units;
  Buffer<float> biases;
  std::optional<Buffer<float>> base, precisions;
  std::optional<Buffer<uint32_t>> clamp;
  std::optional<Buffer<uint32_t>> bits;          // of a binary layer
  std::optional<Buffer<float>> numbers, quanta;  // of a real one
  std::optional<Buffer<unsigned char>> values;
  std::optional<Buffer<float>> fields;  // of a softmax layer
};

struct RealCoupling {
  int lower, upper;
  Buffer<float> grid;
  Buffer<unsigned char> up, down;
};

struct RealMachine {
  int32_t n_chains;
  std::optional<Buffer<float>> beta;
  std::vector<RealLayer> layers;
  std::vector<RealCoupling> couplings;
  std::vector<std::pair<int, bm::cuda::RealProduct>> program;

  void pack(RealLayer& layer) {
    if (layer.numbers)
      bm::cuda::pack_values(layer.values->data(), layer.quanta->data(), layer.numbers->data(), n_chains, layer.units,
                            nullptr);
  }

  explicit RealMachine(Reader& in) : n_chains(static_cast<int32_t>(in.one())), beta(in.maybe<float>(n_chains)) {
    const int64_t n_layers = in.one();
    for (int64_t i = 0; i < n_layers; i++) {
      const auto units = static_cast<int32_t>(in.one());
      const int64_t n = int64_t{n_chains} * units;
      const auto packed = [&](Buffer<uint8_t> bytes) {
        Buffer<uint32_t> bits(n_chains * bm::cuda::bit_words(units));
        bm::cuda::pack_bits(bits.data(), bytes.data(), n_chains, units, nullptr);
        return bits;
      };
      RealLayer& layer =
          layers.emplace_back(RealLayer{units, Buffer<float>(in.many<float>(units)), {}, {}, {}, {}, {}, {}, {}, {}});
      if (in.one()) layer.base.emplace(in.many<float>(units));
      if (in.one()) layer.precisions.emplace(in.many<float>(units));
      if (in.one()) layer.fields.emplace(n);
      if (in.one()) layer.clamp.emplace(packed(Buffer<uint8_t>(in.many<uint8_t>(n))));
      if (in.one()) {
        layer.numbers.emplace(in.many<float>(n));
        layer.quanta.emplace(n_chains);
        layer.values.emplace(bm::cuda::value_bytes(n_chains, units));
        pack(layer);
      } else {
        layer.bits.emplace(packed(Buffer<uint8_t>(in.many<uint8_t>(n))));
      }
    }
    const int64_t n_couplings = in.one();
    for (int64_t i = 0; i < n_couplings; i++) {
      const auto lower = static_cast<int>(in.one()), upper = static_cast<int>(in.one());
      Buffer<float> grid(std::vector<float>{std::ldexp(1.f, -static_cast<int>(in.one()))});
      const int32_t below = layers[lower].units, above = layers[upper].units;
      Buffer<int16_t> weights(in.many<int16_t>(int64_t{below} * above));
      Buffer<unsigned char> up(bm::cuda::weight_bytes(below, above)), down(bm::cuda::weight_bytes(above, below));
      bm::cuda::arrange_weights(up.data(), weights.data(), below, above, false, nullptr);
      bm::cuda::arrange_weights(down.data(), weights.data(), below, above, true, nullptr);
      couplings.push_back({lower, upper, std::move(grid), std::move(up), std::move(down)});
    }
    const int64_t n_updates = in.one();
    for (int64_t i = 0; i < n_updates; i++) {
      const auto index = static_cast<int>(in.one());
      RealLayer& layer = layers[index];
      bm::cuda::RealProduct product{};
      product.n_chains = n_chains;
      product.units = layer.units;
      product.n_inputs = static_cast<int32_t>(in.one());
      for (int32_t j = 0; j < product.n_inputs; j++) {
        RealCoupling& coupling = couplings[in.one()];
        const bool transposed = in.one() != 0;
        const auto scale = in.one<double>();
        RealLayer& source = layers[transposed ? coupling.upper : coupling.lower];
        product.inputs[j] = {address(source.bits),
                             address(source.values),
                             address(source.quanta),
                             transposed ? coupling.down.data() : coupling.up.data(),
                             coupling.grid.data(),
                             scale,
                             source.units};
      }
      product.biases = layer.biases.data();
      product.beta = address(beta);
      product.base = address(layer.base);
      program.emplace_back(index, product);
    }
  }

  void write(RealLayer& layer, Writer& out) {
    if (layer.numbers) {
      out.add(layer.numbers->read());
    } else {
      Buffer<uint8_t> states(static_cast<size_t>(n_chains) * layer.units);
      bm::cuda::unpack_bits(states.data(), layer.bits->data(), n_chains, layer.units, nullptr);
      out.add(states.read());
    }
  }
};

}  // namespace

// Without sweeps the states stay as they are, and only means are made.
void real_sweep(Reader& in, Writer& out) {
  RealMachine machine(in);
  const auto seed = in.one<uint64_t>();
  const auto first_chain = static_cast<uint32_t>(in.one()), first_sweep = static_cast<uint32_t>(in.one());
  const int64_t n_sweeps = in.one();
  std::vector<std::vector<float>> means(machine.layers.size());
  for (int64_t s = 0; s < (n_sweeps == 0 ? 1 : n_sweeps); s++) {
    for (auto& [index, product] : machine.program) {
      RealLayer& layer = machine.layers[index];
      Buffer<float> of_layer(static_cast<size_t>(machine.n_chains) * layer.units);
      const auto with_call = [&, &index = index, &product = product](auto update) {
        update.product = product;
        update.clamp = address(layer.clamp);
        update.states = n_sweeps == 0 ? nullptr : address(layer.bits);
        update.means = of_layer.data();
        update.seed = seed;
        update.first_chain = first_chain;
        update.sweep = first_sweep + static_cast<uint32_t>(s);
        update.layer_and_purpose =
            bm::units::layer_and_purpose(static_cast<uint32_t>(index), static_cast<uint32_t>(bm::units::kGibbs));
        return update;
      };
      if (layer.fields) {
        bm::cuda::SoftmaxUpdate update = with_call(bm::cuda::SoftmaxUpdate{});
        update.fields = layer.fields->data();
        bm::cuda::update_softmax(update, nullptr);
      } else {
        bm::cuda::RealUpdate update = with_call(bm::cuda::RealUpdate{});
        update.precisions = address(layer.precisions);
        update.numbers = n_sweeps == 0 ? nullptr : address(layer.numbers);
        bm::cuda::update_real(update, nullptr);
      }
      if (n_sweeps != 0) machine.pack(layer);
      means[index] = of_layer.read();
    }
  }
  for (size_t i = 0; i < machine.layers.size(); i++) {
    machine.write(machine.layers[i], out);
    out.add(means[i]);
  }
}

// All layers that the program updates hold real numbers; those of binary layers are means from 0 to 1.
void mean_field(Reader& in, Writer& out) {
  RealMachine machine(in);
  const auto n_chains = static_cast<size_t>(machine.n_chains);
  const int64_t n_sweeps = in.one();
  const auto damping = in.one<float>(), tolerance = in.one<float>();
  Buffer<float> changes(n_chains), last_changes(n_chains);
  Buffer<uint32_t> settled(n_chains), sweeps(n_chains);
  const auto is_mean = [&](int index) {
    if (machine.layers[index].precisions) return false;
    for (const auto& [updated, product] : machine.program)
      if (updated == index) return true;
    return false;
  };
  // the first values have quanta of their own; updated means do not
  for (size_t i = 0; i < machine.layers.size(); i++) {
    if (!is_mean(static_cast<int>(i))) continue;
    RealLayer& layer = machine.layers[i];
    std::vector<float> quanta(n_chains, bm::cuda::kMeanQuantum);
    layer.quanta->write(quanta);
    bm::cuda::pack_means(layer.values->data(), layer.numbers->data(), machine.n_chains, layer.units, nullptr);
  }
  for (int64_t s = 0; s < n_sweeps; s++) {
    for (auto& [index, product] : machine.program) {
      RealLayer& layer = machine.layers[index];
      const bm::cuda::MeanUpdate update{product,
                                        address(layer.precisions),
                                        address(layer.clamp),
                                        layer.numbers->data(),
                                        layer.precisions ? nullptr : layer.values->data(),
                                        damping,
                                        changes.data(),
                                        settled.data(),
                                        address(layer.fields)};
      layer.fields ? bm::cuda::update_softmax_means(update, nullptr) : bm::cuda::update_means(update, nullptr);
      if (layer.precisions) machine.pack(layer);
    }
    bm::cuda::settle({machine.n_chains, tolerance, changes.data(), last_changes.data(), settled.data(), sweeps.data()},
                     nullptr);
  }
  for (RealLayer& layer : machine.layers) machine.write(layer, out);
  out.add(last_changes.read());
  out.add(settled.read());
  out.add(sweeps.read());
}
