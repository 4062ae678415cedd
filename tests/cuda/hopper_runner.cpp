// Runs cases on the kernels for compute capability 9.0, emulated on the host, or on a GPU where nvcc compiles it.
//
//   hopper_runner resident CASE OUT   sweeps of two layers in one launch; OUT gets states and means
//   hopper_runner streamed CASE OUT   the program in the file CASE, a launch for each update; OUT gets the same
//   hopper_runner choose UNITS OTHER CHAINS   prints the kernel for such a task (cuda/hopper.h)
//   hopper_runner products            compares the products of a warpgroup with plain loops; 1 where they differ
//   hopper_runner together            the same for bytes that go round between blocks that run at the same time
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "arrays.h"
#include "cuda/hopper.h"
#include "cuda/pack.h"
#include "hopper_checks.h"

namespace {

namespace hopper = bm::cuda::hopper;

struct Layer {
  int32_t units;
  Buffer<float> biases;
  std::optional<Buffer<float>> base;
  std::optional<Buffer<uint32_t>> clamp;
  std::optional<Buffer<float>> means;
  Buffer<uint32_t> bits;
};

struct Coupling {
  int lower, upper;
  float fraction;  // 2^-f
  Buffer<float> grid;
  Buffer<int16_t> weights;
};

struct Input {
  int coupling;
  bool transposed;
  double scale;
};

struct Update {
  int layer;
  std::vector<Input> inputs;
};

struct Case {
  int32_t n_chains;
  uint64_t seed;
  uint32_t first_chain, first_sweep, n_sweeps;
  std::optional<Buffer<float>> beta;
  std::vector<Layer> layers;
  std::vector<Coupling> couplings;
  std::vector<Update> program;
};

Case read_case(const char* from) {
  Reader in(from);
  Case c{};
  c.n_chains = static_cast<int32_t>(in.one());
  c.seed = in.one<uint64_t>();
  c.first_chain = static_cast<uint32_t>(in.one());
  c.first_sweep = static_cast<uint32_t>(in.one());
  c.n_sweeps = static_cast<uint32_t>(in.one());
  if (in.one()) c.beta.emplace(in.many<float>(c.n_chains));
  const int64_t n_layers = in.one();
  for (int64_t i = 0; i < n_layers; i++) {
    const auto units = static_cast<int32_t>(in.one());
    const auto packed = [&](Buffer<uint8_t> values) {
      Buffer<uint32_t> bits(c.n_chains * bm::cuda::bit_words(units));
      bm::cuda::pack_bits(bits.data(), values.data(), c.n_chains, units, nullptr);
      return bits;
    };
    Buffer<float> biases(in.many<float>(units));
    std::optional<Buffer<float>> base = in.maybe<float>(units);
    std::optional<Buffer<uint32_t>> clamp;
    if (in.one()) clamp.emplace(packed(Buffer<uint8_t>(in.many<uint8_t>(int64_t{c.n_chains} * units))));
    std::optional<Buffer<float>> means;
    if (in.one()) means.emplace(static_cast<size_t>(c.n_chains) * units);
    Buffer<uint32_t> bits = packed(Buffer<uint8_t>(in.many<uint8_t>(int64_t{c.n_chains} * units)));
    c.layers.push_back(
        {units, std::move(biases), std::move(base), std::move(clamp), std::move(means), std::move(bits)});
  }
  const int64_t n_couplings = in.one();
  for (int64_t i = 0; i < n_couplings; i++) {
    const auto lower = static_cast<int>(in.one()), upper = static_cast<int>(in.one());
    const float fraction = std::ldexp(1.f, -static_cast<int>(in.one()));
    Buffer<float> grid(std::vector<float>{fraction});
    const int64_t n = int64_t{c.layers[lower].units} * c.layers[upper].units;
    c.couplings.push_back({lower, upper, fraction, std::move(grid), Buffer<int16_t>(in.many<int16_t>(n))});
  }
  const int64_t n_updates = in.one();
  for (int64_t i = 0; i < n_updates; i++) {
    Update update{static_cast<int>(in.one()), {}};
    const int64_t n_inputs = in.one();
    for (int64_t j = 0; j < n_inputs; j++) {
      const auto coupling = static_cast<int>(in.one());
      const bool transposed = in.one() != 0;
      update.inputs.push_back({coupling, transposed, in.one<double>()});
    }
    c.program.push_back(std::move(update));
  }
  return c;
}

void write_case(Case& c, const char* to) {
  Writer out(to);
  for (Layer& layer : c.layers) {
    Buffer<uint8_t> states(static_cast<size_t>(c.n_chains) * layer.units);
    bm::cuda::unpack_bits(states.data(), layer.bits.data(), c.n_chains, layer.units, nullptr);
    out.add(states.read());
    if (layer.means) out.add(layer.means->read());
    // bits beyond the last unit stay 0
    const std::vector<uint32_t> bits = layer.bits.read();
    const int64_t words = bm::cuda::bit_words(layer.units);
    for (int64_t i = 0; i < static_cast<int64_t>(bits.size()); i++)
      for (int64_t b = 0; b < 32; b++)
        if (i % words * 32 + b >= layer.units && bits[i] >> b & 1) throw std::runtime_error("a bit beyond the layer");
  }
}

// Both directions of a coupling, one from integers and one from floats that are rounded to the same.
struct Arranged {
  Arranged(Coupling& coupling, int32_t lower, int32_t upper, hopper::Layout layout)
      : up(hopper::weight_bytes(layout, lower, upper)), down(hopper::weight_bytes(layout, upper, lower)) {
    hopper::arrange_weights(layout, up.data(), coupling.weights.data(), lower, upper, false, nullptr);
    const std::vector<int16_t> integers = coupling.weights.read();
    std::vector<float> floats(integers.size());
    for (size_t i = 0; i < floats.size(); i++) floats[i] = integers[i] * coupling.fraction;
    Buffer<float> there(floats);
    hopper::quantise_weights(layout, down.data(), there.data(), coupling.grid.data(), lower, upper, true, nullptr);
  }
  Buffer<unsigned char> up, down;
};

void resident(Case& c) {
  Coupling& coupling = c.couplings.at(0);
  const int32_t lower = c.layers.at(0).units, upper = c.layers.at(1).units;
  Arranged arranged(coupling, lower, upper, hopper::Layout::kResident);
  hopper::ResidentSweeps sweeps{};
  for (size_t i = 0; i < 2; i++) {
    const Update& update = c.program.at(i);
    Layer& layer = c.layers[update.layer];
    sweeps.layers[update.layer] = {
        layer.bits.data(),
        address(layer.clamp),
        update.layer == 0 ? arranged.down.data() : arranged.up.data(),
        layer.biases.data(),
        address(layer.base),
        address(layer.means),
        update.inputs.at(0).scale,
        layer.units,
        bm::units::layer_and_purpose(static_cast<uint32_t>(update.layer), bm::units::kGibbs),
    };
  }
  Buffer<uint32_t> sweeps_before(std::vector<uint32_t>{2});
  sweeps.grid = coupling.grid.data();
  sweeps.beta = address(c.beta);
  sweeps.seed = c.seed;
  sweeps.n_chains = c.n_chains;
  sweeps.first = c.program[0].layer;
  sweeps.n_sweeps = c.n_sweeps;
  sweeps.first_chain = c.first_chain;
  sweeps.first_sweep = c.first_sweep - 2;
  sweeps.sweeps_before = sweeps_before.data();
  hopper::sweep_resident(sweeps, nullptr);
}

void streamed(Case& c) {
  std::vector<Arranged> arranged;
  for (Coupling& coupling : c.couplings)
    arranged.emplace_back(coupling, c.layers[coupling.lower].units, c.layers[coupling.upper].units,
                          hopper::Layout::kStreamed);
  for (uint32_t sweep = 0; sweep < c.n_sweeps; sweep++)
    for (const Update& of_layer : c.program) {
      Layer& layer = c.layers[of_layer.layer];
      bm::cuda::BinaryUpdate update{};
      update.product.n_chains = c.n_chains;
      update.product.units = layer.units;
      update.product.n_inputs = static_cast<int32_t>(of_layer.inputs.size());
      for (size_t i = 0; i < of_layer.inputs.size(); i++) {
        const Input& input = of_layer.inputs[i];
        Coupling& coupling = c.couplings[input.coupling];
        Layer& source = c.layers[input.transposed ? coupling.upper : coupling.lower];
        Arranged& weights = arranged[input.coupling];
        update.product.inputs[i] = {source.bits.data(), (input.transposed ? weights.down : weights.up).data(),
                                    coupling.grid.data(), input.scale, source.units};
      }
      update.product.biases = layer.biases.data();
      update.beta = address(c.beta);
      update.base = address(layer.base);
      update.clamp = address(layer.clamp);
      update.states = layer.bits.data();
      update.means = sweep + 1 == c.n_sweeps ? address(layer.means) : nullptr;
      update.seed = c.seed;
      update.first_chain = c.first_chain;
      update.sweep = c.first_sweep + sweep;
      update.layer_and_purpose = bm::units::layer_and_purpose(static_cast<uint32_t>(of_layer.layer), bm::units::kGibbs);
      hopper::update_streamed(update, nullptr);
    }
}

}  // namespace

int main(int n, char** arguments) {
  try {
    const std::string what = n > 1 ? arguments[1] : "";
    if (what == "products" && n == 2) return products();
    if (what == "together" && n == 2) return together();
    if (what == "choose" && n == 5) {
      const char* names[] = {"portable", "resident", "streamed"};
      const hopper::Task task{std::atoi(arguments[2]), std::atoi(arguments[3]), std::atoi(arguments[4])};
      std::puts(names[static_cast<int>(hopper::choose(task))]);
      return 0;
    }
    if (n == 4 && (what == "resident" || what == "streamed")) {
      Case c = read_case(arguments[2]);
      what == "resident" ? resident(c) : streamed(c);
      write_case(c, arguments[3]);
      return 0;
    }
    std::fprintf(stderr, "expected: products, together, choose UNITS OTHER CHAINS, or resident or streamed CASE OUT\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 2;
}
