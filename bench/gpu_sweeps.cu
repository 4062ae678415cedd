// The kernels' launchers for Python's ctypes: sweeps of an RBM on arrays that the caller keeps on the device.
#include <cstdio>
#include <exception>
#include <initializer_list>

#include "cuda/binary.h"
#include "cuda/pack.h"

namespace {

// 0, or 1 after an error has been printed
template <class Call>
int guarded(const Call& call) {
  try {
    call();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

}  // namespace

extern "C" {

int64_t bit_words(int64_t units) { return bm::cuda::bit_words(units); }
int64_t weight_bytes(int64_t inputs, int64_t outputs) { return bm::cuda::weight_bytes(inputs, outputs); }

int pack(uint32_t* bits, const uint8_t* values, int32_t n_chains, int32_t units, void* stream) {
  return guarded([&] { bm::cuda::pack_bits(bits, values, n_chains, units, stream); });
}

int unpack(uint8_t* values, const uint32_t* bits, int32_t n_chains, int32_t units, void* stream) {
  return guarded([&] { bm::cuda::unpack_bits(values, bits, n_chains, units, stream); });
}

int arrange(void* to, const int16_t* weights, int32_t lower, int32_t upper, int transposed, void* stream) {
  return guarded([&] { bm::cuda::arrange_weights(to, weights, lower, upper, transposed != 0, stream); });
}

struct Rbm {
  int32_t n_chains, units[2];
  uint32_t* bits[2];
  const float* biases[2];
  const void* weights[2];  // that lead to the layer
  float scale;
  uint64_t seed;
};

int sweep(const Rbm* rbm, uint32_t first_sweep, int32_t n_sweeps, void* stream) {
  return guarded([&] {
    for (int32_t s = 0; s < n_sweeps; s++)
      for (const int layer : {1, 0}) {
        bm::cuda::BinaryUpdate update{};
        update.product.n_chains = rbm->n_chains;
        update.product.units = rbm->units[layer];
        update.product.n_inputs = 1;
        update.product.inputs[0] = {rbm->bits[1 - layer], rbm->weights[layer], rbm->units[1 - layer], rbm->scale};
        update.product.biases = rbm->biases[layer];
        update.states = rbm->bits[layer];
        update.seed = rbm->seed;
        update.sweep = first_sweep + static_cast<uint32_t>(s);
        update.layer_and_purpose = bm::units::layer_and_purpose(static_cast<uint32_t>(layer), bm::units::kGibbs);
        bm::cuda::update_binary(update, stream);
      }
  });
}

}  // extern "C"
