// Sums over chains, as csrc/ops.h and docs/numbers.md define them. All addresses are on the device.
#pragma once

#include "cuda/layout.h"

namespace bm::cuda {

// A layer in all chains: bits, or numbers [n_chains, units]; one of both is null.
struct Factor {
  const uint32_t* bits;
  const float* numbers;
  int32_t units;
};

// out[units of lower, units of upper] = sum over chains of lower (transposed) times upper: the same bits as every other
// backend, also for real numbers, as chains are added in order with one fma each.
void statistics(float* out, const Factor& lower, const Factor& upper, int32_t n_chains, void* stream);

}  // namespace bm::cuda
