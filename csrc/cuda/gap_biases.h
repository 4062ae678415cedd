// Biases of energy gaps as whole numbers on a grid that the device chooses, as docs/numbers.md defines it. All
// addresses are on the device.
#pragma once

#include <stdint.h>

#include <vector>

namespace bm::cuda {

struct GapLayer {
  const float* biases;  // [units]
  const float* base;    // [units], or null: 0
  int64_t* whole;       // [units], B_q = round((biases - base) 2^g), halves to even
  int32_t units;
};

constexpr int64_t kGapPartials = 64;  // for each layer

// grid[1] = 2^-g for the layers of a machine, and their B_q. Where a bias is not finite, the grid and all B_q are 0.
// Nothing waits for the host.
void choose_gap_biases(float* grid, uint64_t* partials /* [layers, kGapPartials] */,
                       const std::vector<GapLayer>& layers, void* stream);

}  // namespace bm::cuda
