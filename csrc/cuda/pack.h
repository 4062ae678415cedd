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

}  // namespace bm::cuda
