// Random draws that need no machine. All addresses are on the device.
#pragma once

#include <cstdint>

namespace bm::cuda {

// out[n, units] = 1 where u <= p, with u counted by (unit, row, sweep, purpose), as in csrc/ops.h
void bernoulli(uint8_t* out, const float* probabilities /* [n, units] */, const int64_t* rows /* [n] */, int64_t n,
               int64_t units, uint64_t seed, uint32_t sweep, uint32_t layer_and_purpose, void* stream);

}  // namespace bm::cuda
