// Runs cases on the kernels of csrc/cuda: emulated on the host, or on a GPU where nvcc compiles it.
//
//   runner sweep CASE OUT   runs the program in the file CASE, written by tests/cuda_runner.py; OUT gets states and
//   means runner collectives      compares each whole-warp operation with plain loops; 1 where they differ
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/binary.h"
#include "cuda/pack.h"
#include "simt/simt.h"

namespace {

// n values in the memory of the device. On the host exactly as long as said, so that reads past the end are seen.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) { write(values); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
#if defined(__CUDACC__)
  explicit Buffer(size_t n) : n_(n) {
    simt::check(cudaMalloc(&data_, n * sizeof(T)), "cudaMalloc");
    simt::check(cudaMemset(data_, 0, n * sizeof(T)), "cudaMemset");
  }
  Buffer(Buffer&& other) : data_(other.data_), n_(other.n_) { other.data_ = nullptr; }
  ~Buffer() { cudaFree(data_); }
  T* data() { return data_; }
  void write(const std::vector<T>& values) {
    simt::check(cudaMemcpy(data_, values.data(), n_ * sizeof(T), cudaMemcpyDefault), "copy to the device");
  }
  std::vector<T> read() {
    std::vector<T> values(n_);
    simt::check(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDefault), "copy from the device");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
#else
  explicit Buffer(size_t n) : values_(new (std::align_val_t{16}) T[n]()), n_(n) {}
  Buffer(Buffer&& other) : values_(other.values_), n_(other.n_) { other.values_ = nullptr; }
  ~Buffer() { ::operator delete[](values_, std::align_val_t{16}); }
  T* data() { return values_; }
  void write(const std::vector<T>& values) { std::copy(values.begin(), values.end(), values_); }
  std::vector<T> read() { return {values_, values_ + n_}; }

 private:
  T* values_;
  size_t n_;
#endif
};

class Reader {
 public:
  explicit Reader(const char* path) : file_(path, std::ios::binary) {}
  template <class T>
  std::vector<T> many(int64_t n) {
    std::vector<T> values(n);
    file_.read(reinterpret_cast<char*>(values.data()), n * sizeof(T));
    if (!file_) throw std::runtime_error("the case ends early");
    return values;
  }
  template <class T = int64_t>
  T one() {
    return many<T>(1)[0];
  }
  template <class T>
  std::optional<Buffer<T>> maybe(int64_t n) {
    if (!one()) return std::nullopt;
    return Buffer<T>(many<T>(n));
  }

 private:
  std::ifstream file_;
};

template <class T>
T* address(std::optional<Buffer<T>>& buffer) {
  return buffer ? buffer->data() : nullptr;
}

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
  int64_t fraction_bits;
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
    const int64_t fraction_bits = in.one();
    const int32_t below = layers[lower].units, above = layers[upper].units;
    Buffer<int16_t> weights(in.many<int16_t>(int64_t{below} * above));
    Buffer<unsigned char> up(bm::cuda::weight_bytes(below, above)), down(bm::cuda::weight_bytes(above, below));
    bm::cuda::arrange_weights(up.data(), weights.data(), below, above, false, nullptr);
    bm::cuda::arrange_weights(down.data(), weights.data(), below, above, true, nullptr);
    couplings.push_back({lower, upper, fraction_bits, std::move(up), std::move(down)});
  }

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
        update.product.inputs[j] = {
            source.bits.data(), transposed ? coupling.down.data() : coupling.up.data(), source.units,
            static_cast<float>(scale * std::ldexp(1., -static_cast<int>(coupling.fraction_bits)))};
    }
    update.product.biases = layer.biases.data();
    update.beta = address(beta);
    update.base = address(layer.base);
    update.clamp = address(layer.clamp);
    update.states = layer.bits.data();
    update.seed = seed;
    update.first_chain = first_chain;
    update.layer_and_purpose =
        bm::units::layer_and_purpose(static_cast<uint32_t>(index), static_cast<uint32_t>(bm::units::kGibbs));
    program.emplace_back(index, update);
  }

  for (int64_t s = 0; s < n_sweeps; s++)
    for (auto& [index, update] : program) {
      update.sweep = first_sweep + static_cast<uint32_t>(s);
      update.means = s + 1 == n_sweeps ? address(layers[index].means) : nullptr;
      bm::cuda::update_binary(update, nullptr);
    }

  const auto words_of = [&](int64_t n) { return static_cast<size_t>(n) * n_chains; };
  Buffer<double> energy(words_of(1));
  for (Layer& layer : layers)
    bm::cuda::add_bias_energy(energy.data(), {layer.bits.data(), layer.biases.data(), nullptr, layer.units}, n_chains,
                              nullptr, 1, nullptr);
  for (Coupling& coupling : couplings) {
    Layer &below = layers[coupling.lower], &above = layers[coupling.upper];
    bm::cuda::BinaryProduct product{n_chains, above.units, 1, {}, above.biases.data()};
    product.inputs[0] = {below.bits.data(), coupling.up.data(), below.units,
                         static_cast<float>(std::ldexp(1., -static_cast<int>(coupling.fraction_bits)))};
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

  std::ofstream out(to, std::ios::binary);
  const auto write = [&](const auto& values) {
    out.write(reinterpret_cast<const char*>(values.data()),
              static_cast<std::streamsize>(values.size() * sizeof values[0]));
  };
  for (Layer& layer : layers) {
    Buffer<uint8_t> states(static_cast<size_t>(n_chains) * layer.units);
    bm::cuda::unpack_bits(states.data(), layer.bits.data(), n_chains, layer.units, nullptr);
    write(states.read());
    if (layer.means) write(layer.means->read());
    // bits beyond the last unit stay 0
    const std::vector<uint32_t> bits = layer.bits.read();
    const int64_t words = bm::cuda::bit_words(layer.units);
    for (int64_t i = 0; i < static_cast<int64_t>(bits.size()); i++)
      for (int64_t b = 0; b < 32; b++)
        if (i % words * 32 + b >= layer.units && bits[i] >> b & 1) throw std::runtime_error("a bit beyond the layer");
  }
  write(energy.read());
  write(free_energy.read());
  return 0;
}

// --- collectives -----------------------------------------------------------------------------------------------------

struct Collectives {
  const uint32_t *a, *b;  // A [16][32] and B transposed [8][32] as bytes
  int32_t* c;             // [16][8]
  uint32_t *ballots, *shuffles;
};

SIMT_KERNEL void collectives_kernel(SIMT_PARAMETER Collectives p) {
  const unsigned lane = simt::thread_x(), g = lane / 4, t = lane % 4;
  const uint32_t a[4] = {p.a[g * 8 + t], p.a[(g + 8) * 8 + t], p.a[g * 8 + 4 + t], p.a[(g + 8) * 8 + 4 + t]};
  int32_t c[4] = {1, 2, 3, 4};
  simt::mma_m16n8k32(c, a, p.b[g * 8 + t], p.b[g * 8 + 4 + t]);
  for (unsigned i = 0; i < 4; i++) p.c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
  p.ballots[lane] = simt::ballot(lane % 3 == 0);
  p.shuffles[lane] = simt::shuffle_xor(lane * lane, 5);
}

int collectives() {
  std::vector<uint32_t> a(128), b(64);
  uint32_t word = 1;
  for (auto* operand : {&a, &b})
    for (uint32_t& value : *operand) value = word = word * 1664525u + 1013904223u;
  Buffer<uint32_t> a_there(a), b_there(b), ballots(32), shuffles(32);
  Buffer<int32_t> c_there(128);
  simt::launch(collectives_kernel, {1, 1, 32, 0}, nullptr,
               Collectives{a_there.data(), b_there.data(), c_there.data(), ballots.data(), shuffles.data()});
  const std::vector<int32_t> c = c_there.read();
  int differences = 0;
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) {
      int32_t sum = 1 + i / 8 * 2 + j % 2;
      for (int k = 0; k < 32; k++)
        sum += static_cast<uint8_t>(a[i * 8 + k / 4] >> k % 4 * 8) * static_cast<int8_t>(b[j * 8 + k / 4] >> k % 4 * 8);
      differences += sum != c[i * 8 + j];
    }
  const std::vector<uint32_t> got_ballots = ballots.read(), got_shuffles = shuffles.read();
  for (uint32_t i = 0; i < 32; i++) {
    differences += got_ballots[i] != 0x49249249u;
    differences += got_shuffles[i] != (i ^ 5) * (i ^ 5);
  }
  std::printf("collectives: %d differences\n", differences);
  return differences != 0;
}

}  // namespace

int main(int n, char** arguments) {
  try {
    const std::string what = n > 1 ? arguments[1] : "";
    if (what == "collectives" && n == 2) return collectives();
    if (what == "sweep" && n == 4) return sweep(arguments[2], arguments[3]);
    std::fprintf(stderr, "expected: collectives, or sweep CASE OUT\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 2;
}
