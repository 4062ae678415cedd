// Between the arrays of the public interface and those of the kernels (layout.h). All addresses are on the device.
#pragma once

#include "cuda/layout.h"

namespace bm::cuda {

// bits[n_chains, bit_words(units)] from values[n_chains, units], not 0 where a bit is to be set
void pack_bits(uint32_t* bits, const uint8_t* values, int32_t n_chains, int32_t units, void* stream);

// values[n_chains, units] = 0 or 1 from bits[n_chains, bit_words(units)]
void unpack_bits(uint8_t* values, const uint32_t* bits, int32_t n_chains, int32_t units, void* stream);

// to[weight_bytes] from W_q [lower, upper]: the direction to the upper layer, or to the lower one if transposed
void arrange_weights(void* to, const int16_t* weights, int32_t lower, int32_t upper, bool transposed, void* stream);

// The grid of a coupling from its n weights: grid[1] = 2^-f with f as csrc/ops.h has it, and refused[1] becomes 1 where
// a weight is not finite or beyond 32,639 (else it stays as it is). Nothing waits for the host.
constexpr uint32_t kGridPartials = 128;
void choose_grid(float* grid, uint32_t* refused, uint32_t* partials /* [kGridPartials] */, const float* weights,
                 int64_t n, void* stream);

// The same as arrange_weights, from weights [lower, upper] that are rounded to their grid.
void quantise_weights(void* to, const float* weights, const float* grid, int32_t lower, int32_t upper, bool transposed,
                      void* stream);

}  // namespace bm::cuda
