// Weights on the integer grid, in the order of the products: once for a machine, or after each step of training. What
// these kernels cost is moving each array once.
#include "cuda/grid.h"
#include "cuda/largest.h"
#include "cuda/pack.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr unsigned kThreads = 128, kTurns = 4;  // items that a thread makes

// --- the grid --------------------------------------------------------------------------------------------------------

constexpr int kMaxFractionBits = 30;

struct Largest {
  uint32_t* partials;  // [blocks]
  const float* weights;
  int64_t n, n_blocks;
};

// Sizes of floats order like their bits, with infinity and NaN on top.
SIMT_KERNEL void largest_kernel(SIMT_PARAMETER Largest p) {
  uint32_t largest = 0;
  for (int64_t i = static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x(); i < p.n;
       i += p.n_blocks * kThreads)
    largest = larger(largest, units::bits_of(p.weights[i]) & 0x7fffffffu);
  largest = largest_of_block<kThreads>(largest, reinterpret_cast<uint32_t*>(simt::dynamic_shared()));
  if (simt::thread_x() == 0) p.partials[simt::block_x()] = largest;
}

struct Grid {
  float* grid;
  uint32_t* refused;
  const uint32_t* partials;  // [n_partials]
  uint32_t n_partials;
};

SIMT_KERNEL void choose_grid_kernel(SIMT_PARAMETER Grid p) {
  uint32_t largest = 0;
  for (unsigned i = simt::thread_x(); i < p.n_partials; i += kThreads) largest = larger(largest, p.partials[i]);
  largest = largest_of_block<kThreads>(largest, reinterpret_cast<uint32_t*>(simt::dynamic_shared()));
  if (simt::thread_x() != 0) return;
  const float size = units::float_of(largest);
  const bool is_refused = !(size <= kMaxWeight);
  float scale = 1.f;  // 2^f: the products below are exact
  for (int f = 0; f < kMaxFractionBits && !is_refused && size * (2.f * scale) <= kMaxWeight; f++) scale *= 2.f;
  *p.grid = 1.f / scale;
  if (is_refused) *p.refused = 1;
}

// --- the order of the products ---------------------------------------------------------------------------------------

template <class Weights>
struct Arranged {
  simt::Words4* to;
  Weights weights;
  int32_t lower, upper, transposed;
};

// The 16 bytes that one lane reads in one step.
template <class Weights>
SIMT_DEVICE simt::Words4 limbs_at(const Arranged<Weights>& p, int64_t index) {
  const int32_t inputs = p.transposed ? p.upper : p.lower, outputs = p.transposed ? p.lower : p.upper;
  const int32_t lane = static_cast<int32_t>(index % 32), step = static_cast<int32_t>(index / 32 % kStepsOfStage);
  const int32_t group = static_cast<int32_t>(index / 32 / kStepsOfStage % kGroupsOfTile);
  const int64_t stage_of_tile = index / 32 / kStepsOfStage / kGroupsOfTile;
  const int64_t output = stage_of_tile / stages(inputs) * kTileUnits + unit_of_column(group, lane / 4);
  const int64_t first_input = stage_of_tile % stages(inputs) * kStageInputs + step * 32 + lane % 4 * 4;
  simt::Words4 limbs{};
  SIMT_UNROLL
  for (int half = 0; half < 2; half++) {
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
      const int64_t input = first_input + half * 16 + i;
      if (input >= inputs || output >= outputs) continue;
      const int32_t weight = p.weights.at(p.transposed ? output * p.upper + input : input * p.upper + output);
      limbs.word[half] |= high_byte(weight) << i * 8;
      limbs.word[2 + half] |= low_byte(weight) << i * 8;
    }
  }
  return limbs;
}

template <class Weights>
SIMT_KERNEL void arrange_weights_kernel(SIMT_PARAMETER Arranged<Weights> p) {
  const int64_t n = (p.transposed ? weight_bytes(p.upper, p.lower) : weight_bytes(p.lower, p.upper)) / 16;
  for (unsigned turn = 0; turn < kTurns; turn++) {
    const int64_t index = (static_cast<int64_t>(simt::block_x()) * kTurns + turn) * kThreads + simt::thread_x();
    if (index < n) p.to[index] = limbs_at(p, index);
  }
}

// --- launchers -------------------------------------------------------------------------------------------------------

template <class Weights>
void arrange(const Arranged<Weights>& p, void* stream) {
  const int64_t items = (p.transposed ? weight_bytes(p.upper, p.lower) : weight_bytes(p.lower, p.upper)) / 16;
  constexpr int64_t kItems = int64_t{kThreads} * kTurns;
  simt::launch(arrange_weights_kernel<Weights>, {static_cast<unsigned>((items + kItems - 1) / kItems), 1, kThreads, 0},
               stream, p);
}

}  // namespace

void choose_grid(float* grid, uint32_t* refused, uint32_t* partials, const float* weights, int64_t n, void* stream) {
  constexpr size_t kShared = kThreads / 32 * sizeof(uint32_t);
  constexpr int64_t kFewest = 16 * kThreads;  // weights of a block
  const auto n_blocks =
      static_cast<uint32_t>(n < kGridPartials * kFewest ? (n + kFewest - 1) / kFewest : kGridPartials);
  simt::launch(largest_kernel, {n_blocks, 1, kThreads, kShared}, stream, Largest{partials, weights, n, n_blocks});
  simt::launch(choose_grid_kernel, {1, 1, kThreads, kShared}, stream, Grid{grid, refused, partials, n_blocks});
}

void arrange_weights(void* to, const int16_t* weights, int32_t lower, int32_t upper, bool transposed, void* stream) {
  arrange(Arranged<Integers>{static_cast<simt::Words4*>(to), {weights}, lower, upper, transposed}, stream);
}

void quantise_weights(void* to, const float* weights, const float* grid, int32_t lower, int32_t upper, bool transposed,
                      void* stream) {
  arrange(Arranged<Reals>{static_cast<simt::Words4*>(to), {weights, grid}, lower, upper, transposed}, stream);
}

}  // namespace bm::cuda
