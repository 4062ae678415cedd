// Swaps of replica exchange, as csrc/ops.h and docs/numbers.md define them: the same bits as every other backend. All
// addresses are on the device.
#pragma once

#include <stdint.h>

namespace bm::cuda {

constexpr int32_t kMaxRungs = 8192;  // of a ladder, which a block keeps in shared memory

struct Swap {
  int32_t* rungs;         // [n_ladders, n_rungs], in each row a permutation; updated in place
  const double* gaps;     // [n_ladders, n_rungs]
  const float* betas;     // [n_rungs]
  float* beta;            // [n_ladders, n_rungs] = betas[rungs] for the next sweeps; or null
  double* trace;          // [n_ladders, n_rungs], the gap on each rung before the swaps; or null
  double* probabilities;  // [n_ladders, n_rungs - 1], for the kernels alone
  int64_t* attempts;      // [n_rungs - 1], as in bm::Rungs
  double* acceptances;    // [n_rungs - 1]
  uint8_t* heading;       // [n_ladders, n_rungs]
  int64_t* trips;         // [n_ladders, n_rungs]
  int32_t n_ladders, n_rungs;
  uint64_t seed;
  uint32_t first_ladder, round;
  const uint32_t* rounds_before;  // [1], added to `round`, so that a CUDA graph can go on; or null
};

void swap(const Swap& swap, void* stream);

}  // namespace bm::cuda
