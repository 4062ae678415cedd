// Runs cases on the kernels of csrc/cuda: emulated on the host, or on a GPU where nvcc compiles it.
//
//   runner sweep CASE OUT   runs the program in the file CASE, written by tests/cuda_runner.py; OUT gets states and
//                           means
//   runner NAME CASE OUT    the same for one of the operations of operations.h
//   runner collectives      compares each whole-warp operation with plain loops; 1 where they differ
#include <cmath>
#include <cstdio>

#include "arrays.h"
#include "cuda/binary.h"
#include "cuda/pack.h"
#include "operations.h"

namespace {

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
  Buffer<float> grid;
  Buffer<unsigned char> up, down;
};

int sweep(const char* from, const char* to) {
  Reader in(from);
  const auto n_chains = static_cast<int32_t>(in.one());
  const auto seed = in.one<uint64_t>();
  const auto first_chain = static_cast<uint32_t>(in.one()), first_sweep = static_cast<uint32_t>(in.one());
  const int64_t n_sweeps = in.one();
  std::optional<Buffer<float>> beta = in.maybe<float>(n_chains);

  std::vector<Layer> layers;
  const int64_t n_layers = in.one();
  for (int64_t i = 0; i < n_layers; i++) {
    const auto units = static_cast<int32_t>(in.one());
    const auto packed = [&](Buffer<uint8_t> values) {
      Buffer<uint32_t> bits(n_chains * bm::cuda::bit_words(units));
      bm::cuda::pack_bits(bits.data(), values.data(), n_chains, units, nullptr);
      return bits;
    };
    Buffer<float> biases(in.many<float>(units));
    std::optional<Buffer<float>> base = in.maybe<float>(units);
    std::optional<Buffer<uint32_t>> clamp;
    if (in.one()) clamp.emplace(packed(Buffer<uint8_t>(in.many<uint8_t>(int64_t{n_chains} * units))));
    std::optional<Buffer<float>> means;
    if (in.one()) means.emplace(static_cast<size_t>(n_chains) * units);
    Buffer<uint32_t> bits = packed(Buffer<uint8_t>(in.many<uint8_t>(int64_t{n_chains} * units)));
    layers.push_back({units, std::move(biases), std::move(base), std::move(clamp), std::move(means), std::move(bits)});
  }

  std::vector<Coupling> couplings;
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

  Buffer<uint32_t> sweeps_done(1);
  std::vector<std::pair<int, bm::cuda::BinaryUpdate>> program;
  const int64_t n_updates = in.one();
  for (int64_t i = 0; i < n_updates; i++) {
    const auto index = static_cast<int>(in.one());
    Layer& layer = layers[index];
    bm::cuda::BinaryUpdate update{};
    update.product.n_chains = n_chains;
    update.product.units = layer.units;
    update.product.n_inputs = static_cast<int32_t>(in.one());
    for (int32_t j = 0; j < update.product.n_inputs; j++) {
      Coupling& coupling = couplings[in.one()];
      const bool transposed = in.one() != 0;
      const auto scale = in.one<double>();
      Layer& source = layers[transposed ? coupling.upper : coupling.lower];
      if (j < bm::cuda::kMaxInputs)
        update.product.inputs[j] = {source.bits.data(), transposed ? coupling.down.data() : coupling.up.data(),
                                    coupling.grid.data(), scale, source.units};
    }
    update.product.biases = layer.biases.data();
    update.beta = address(beta);
    update.base = address(layer.base);
    update.clamp = address(layer.clamp);
    update.states = layer.bits.data();
    update.seed = seed;
    update.first_chain = first_chain;
    update.sweep = first_sweep;
    update.sweeps_before = sweeps_done.data();
    update.layer_and_purpose =
        bm::units::layer_and_purpose(static_cast<uint32_t>(index), static_cast<uint32_t>(bm::units::kGibbs));
    program.emplace_back(index, update);
  }

  for (int64_t s = 0; s < n_sweeps; s++) {
    for (auto& [index, update] : program) {
      update.means = s + 1 == n_sweeps ? address(layers[index].means) : nullptr;
      bm::cuda::update_binary(update, nullptr);
    }
    bm::cuda::advance(sweeps_done.data(), 1, nullptr);
  }

  const auto words_of = [&](int64_t n) { return static_cast<size_t>(n) * n_chains; };
  Buffer<double> energy(words_of(1));
  for (Layer& layer : layers)
    bm::cuda::add_bias_energy(energy.data(), {layer.bits.data(), layer.biases.data(), nullptr, layer.units}, n_chains,
                              nullptr, 1, nullptr);
  for (Coupling& coupling : couplings) {
    Layer &below = layers[coupling.lower], &above = layers[coupling.upper];
    bm::cuda::BinaryProduct product{n_chains, above.units, 1, {}, above.biases.data()};
    product.inputs[0] = {below.bits.data(), coupling.up.data(), coupling.grid.data(), 1., below.units};
    Buffer<int64_t> partials(words_of(2 * bm::cuda::unit_tiles(above.units)));
    bm::cuda::add_coupling_energy(energy.data(), partials.data(), product, above.bits.data(), nullptr);
  }

  // free energy: the layers of the last block are summed out, the others add their biases
  const auto n_betas = static_cast<int32_t>(in.one());
  Buffer<float> betas(in.many<float>(n_betas));
  Buffer<double> free_energy(words_of(n_betas));
  const int64_t n_summed = in.one();
  std::vector<bool> is_summed(layers.size());
  for (int64_t i = 0; i < n_summed; i++) {
    auto& [index, update] = program[program.size() - 1 - i];
    is_summed[index] = true;
    Buffer<double> partials(words_of(n_betas * 2 * bm::cuda::unit_tiles(update.product.units)));
    bm::cuda::add_free_energy(free_energy.data(), partials.data(), update.product, betas.data(), n_betas, update.base,
                              nullptr);
  }
  for (size_t i = 0; i < layers.size(); i++)
    if (!is_summed[i])
      bm::cuda::add_bias_energy(
          free_energy.data(),
          {layers[i].bits.data(), layers[i].biases.data(), address(layers[i].base), layers[i].units}, n_chains,
          betas.data(), n_betas, nullptr);

  Writer out(to);
  for (Layer& layer : layers) {
    Buffer<uint8_t> states(static_cast<size_t>(n_chains) * layer.units);
    bm::cuda::unpack_bits(states.data(), layer.bits.data(), n_chains, layer.units, nullptr);
    out.add(states.read());
    if (layer.means) out.add(layer.means->read());
    // bits beyond the last unit stay 0
    const std::vector<uint32_t> bits = layer.bits.read();
    const int64_t words = bm::cuda::bit_words(layer.units);
    for (int64_t i = 0; i < static_cast<int64_t>(bits.size()); i++)
      for (int64_t b = 0; b < 32; b++)
        if (i % words * 32 + b >= layer.units && bits[i] >> b & 1) throw std::runtime_error("a bit beyond the layer");
  }
  out.add(energy.read());
  out.add(free_energy.read());
  return 0;
}

// --- collectives -----------------------------------------------------------------------------------------------------

struct Collectives {
  const uint32_t *a, *b;  // A [16][32] and B transposed [8][32] as bytes
  int32_t *c, *d;         // [16][8], of unsigned and of signed A
  uint32_t *ballots, *shuffles;
};

SIMT_KERNEL void collectives_kernel(SIMT_PARAMETER Collectives p) {
  const unsigned lane = simt::thread_x(), g = lane / 4, t = lane % 4;
  const uint32_t a[4] = {p.a[g * 8 + t], p.a[(g + 8) * 8 + t], p.a[g * 8 + 4 + t], p.a[(g + 8) * 8 + 4 + t]};
  int32_t c[4] = {1, 2, 3, 4};
  simt::mma_m16n8k32(c, a, p.b[g * 8 + t], p.b[g * 8 + 4 + t]);
  int32_t d[4] = {1, 2, 3, 4};
  simt::mma_m16n8k32_signed(d, a, p.b[g * 8 + t], p.b[g * 8 + 4 + t]);
  for (unsigned i = 0; i < 4; i++) {
    p.c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
    p.d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
  }
  simt::atomic_max(p.ballots + 32, lane * 7 % 32);
  p.ballots[lane] = simt::ballot(lane % 3 == 0);
  p.shuffles[lane] = simt::shuffle_xor(lane * lane, 5);
}

int collectives() {
  std::vector<uint32_t> a(128), b(64);
  uint32_t word = 1;
  for (auto* operand : {&a, &b})
    for (uint32_t& value : *operand) value = word = word * 1664525u + 1013904223u;
  Buffer<uint32_t> a_there(a), b_there(b), ballots(33), shuffles(32);
  Buffer<int32_t> c_there(128), d_there(128);
  simt::launch(
      collectives_kernel, {1, 1, 32, 0}, nullptr,
      Collectives{a_there.data(), b_there.data(), c_there.data(), d_there.data(), ballots.data(), shuffles.data()});
  const std::vector<int32_t> c = c_there.read(), d = d_there.read();
  int differences = 0;
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      int32_t sum = 1 + i / 8 * 2 + j % 2, signed_sum = sum;
      for (int k = 0; k < 32; k++) {
        const uint32_t left = a[i * 8 + k / 4] >> k % 4 * 8;
        const auto right = static_cast<int8_t>(b[j * 8 + k / 4] >> k % 4 * 8);
        sum += static_cast<uint8_t>(left) * right;
        signed_sum += static_cast<int8_t>(left) * right;
      }
      differences += sum != c[i * 8 + j];
      differences += signed_sum != d[i * 8 + j];
    }
  const std::vector<uint32_t> got_ballots = ballots.read(), got_shuffles = shuffles.read();
  for (uint32_t i = 0; i < 32; i++) {
    differences += got_ballots[i] != 0x49249249u;
    differences += got_shuffles[i] != (i ^ 5) * (i ^ 5);
  }
  differences += got_ballots[32] != 31;
  std::printf("collectives: %d differences\n", differences);
  return differences != 0;
}

}  // namespace

int main(int n, char** arguments) {
  try {
    const std::string what = n > 1 ? arguments[1] : "";
    if (what == "collectives" && n == 2) return collectives();
    if (what == "sweep" && n == 4) return sweep(arguments[2], arguments[3]);
    if (n == 4 && run_operation(what, arguments[2], arguments[3])) return 0;
    std::fprintf(stderr, "expected: collectives, or an operation with CASE and OUT\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 2;
}
