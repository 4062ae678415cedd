// The grid of the biases in energy gaps: like that of weights, from the largest of them, in float64.
#include <math.h>
#include <string.h>

#include "cuda/gap_biases.h"
#include "cuda/largest.h"
#include "units.h"

namespace bm::cuda {
namespace {

constexpr unsigned kThreads = 128;
constexpr size_t kShared = kThreads / 32 * sizeof(uint64_t);
constexpr int64_t kFewest = 4 * kThreads;            // biases of a block
constexpr int kMaxBits = 40, kSumBits = 62;          // of the grid; of a sum of B_q over all units
constexpr uint64_t kSizeBits = 0x7fffffffffffffffu;  // of a float64
constexpr uint64_t kFirstInfinite = 0x7ff0000000000000u;

SIMT_DEVICE double difference(const GapLayer& layer, int64_t unit) {
  const double bias = static_cast<double>(layer.biases[unit]);
  return layer.base ? bias - static_cast<double>(layer.base[unit]) : bias;
}

SIMT_DEVICE uint64_t bits_of_double(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

struct Largest {
  uint64_t* partials;  // [n_blocks]
  GapLayer layer;
  int64_t n_blocks;
};

// Sizes of floats order like their bits, with infinity and NaN on top.
SIMT_KERNEL void largest_bias_kernel(SIMT_PARAMETER Largest p) {
  uint64_t largest = 0;
  for (int64_t i = static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x(); i < p.layer.units;
       i += p.n_blocks * kThreads)
    largest = larger(largest, bits_of_double(difference(p.layer, i)) & kSizeBits);
  largest = largest_of_block<kThreads>(largest, reinterpret_cast<uint64_t*>(simt::dynamic_shared()));
  if (simt::thread_x() == 0) p.partials[simt::block_x()] = largest;
}

struct Grid {
  float* grid;
  const uint64_t* partials;  // [n_partials]
  int64_t n_partials, n_units;
};

SIMT_KERNEL void choose_bias_grid_kernel(SIMT_PARAMETER Grid p) {
  uint64_t largest = 0;
  for (int64_t i = simt::thread_x(); i < p.n_partials; i += kThreads) largest = larger(largest, p.partials[i]);
  largest = largest_of_block<kThreads>(largest, reinterpret_cast<uint64_t*>(simt::dynamic_shared()));
  if (simt::thread_x() != 0) return;
  double size;
  memcpy(&size, &largest, sizeof size);
  // of n_units size = m 2^exponent with m in [1/2, 1): what frexp gives; far below 0 for a size of 0
  const int exponent = static_cast<int>(bits_of_double(static_cast<double>(p.n_units) * size) >> 52) - 1022;
  const int bits = kSumBits - exponent < kMaxBits ? kSumBits - exponent : kMaxBits;
  *p.grid = largest < kFirstInfinite ? units::float_of(static_cast<uint32_t>(127 - bits) << 23) : 0.f;
}

struct Whole {
  GapLayer layer;
  const float* grid;
};

SIMT_KERNEL void whole_kernel(SIMT_PARAMETER Whole p) {
  const int64_t unit = static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x();
  if (unit >= p.layer.units) return;
  const double grid = static_cast<double>(*p.grid);
  p.layer.whole[unit] = grid > 0 ? static_cast<int64_t>(rint(difference(p.layer, unit) * (1. / grid))) : 0;
}

}  // namespace

// --- launcher --------------------------------------------------------------------------------------------------------

void choose_gap_biases(float* grid, uint64_t* partials, const std::vector<GapLayer>& layers, void* stream) {
  int64_t n_partials = 0, n_units = 0;
  for (const GapLayer& layer : layers) {
    const int64_t wanted = (layer.units + kFewest - 1) / kFewest;
    const int64_t n_blocks = wanted < kGapPartials ? wanted : kGapPartials;
    simt::launch(largest_bias_kernel, {static_cast<unsigned>(n_blocks), 1, kThreads, kShared}, stream,
                 Largest{partials + n_partials, layer, n_blocks});
    n_partials += n_blocks;
    n_units += layer.units;
  }
  simt::launch(choose_bias_grid_kernel, {1, 1, kThreads, kShared}, stream, Grid{grid, partials, n_partials, n_units});
  for (const GapLayer& layer : layers)
    simt::launch(whole_kernel, {blocks_for(layer.units, kThreads), 1, kThreads, 0}, stream, Whole{layer, grid});
}

}  // namespace bm::cuda
