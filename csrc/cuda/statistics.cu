// Two kernels. Counts of two binary layers are exact in whatever order, so they run on the integer matrix units: warps
// transpose squares of 32 chains by 32 units with shuffles, and bits along the chains become bytes in registers. Sums
// of real numbers are bound to the order of the chains, so they are fmas of a tile of 64 by 64 in registers. Not TF32:
// a gradient would depend on the device, for less than a millisecond in an epoch of MNIST.
#include "cuda/spread.h"
#include "cuda/statistics.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr int kThreads = 128, kTile = 64;  // units of both layers that a block takes

struct Statistics {
  float* out;
  Factor lower, upper;
  int32_t n_chains;
};

simt::Size size_of(const Statistics& p, size_t shared_bytes) {
  return {static_cast<unsigned>((p.lower.units + kTile - 1) / kTile),
          static_cast<unsigned>((p.upper.units + kTile - 1) / kTile), kThreads, shared_bytes};
}

// --- counts ----------------------------------------------------------------------------------------------------------

constexpr int kStageChains = 128, kGroups = kStageChains / 32;        // chains are taken in groups of a word
constexpr int kCountStageWords = 2 * kTile * kGroups;                 // [layer][unit][group]
constexpr int kSquares = 2 * kTile / 32 * kGroups / (kThreads / 32);  // of a warp and stage
constexpr int32_t kLargestCount = 1 << 24;                            // where sums of ones in float stop growing

// From word r of lane r to the word of the bits r of all lanes.
SIMT_DEVICE uint32_t transposed(uint32_t word) {
  const unsigned lane = simt::thread_x() % 32;
  uint32_t mask = 0x0000ffffu;  // bits whose number lacks `step`
  SIMT_UNROLL
  for (unsigned step = 16; step > 0; step /= 2) {
    const uint32_t other = simt::shuffle_xor(word, step);
    word = lane & step ? (word & ~mask) | (other >> step & mask) : (word & mask) | (other & mask) << step;
    mask ^= mask << step / 2;
  }
  return word;
}

// Square `i` of a warp in a stage: a group of chains and 32 units of one of the layers.
struct Square {
  SIMT_DEVICE_MEMBER explicit Square(int i) {
    const int square = static_cast<int>(simt::thread_x() / 32) * kSquares + i;
    group = square % kGroups;
    half = square / kGroups % 2;
    is_upper = square / kGroups >= 2;
  }
  int group, half;
  bool is_upper;
};

SIMT_DEVICE void load_squares(const Statistics& p, int64_t first_chain, uint32_t (&words)[kSquares]) {
  SIMT_UNROLL
  for (int i = 0; i < kSquares; i++) {
    const Square square(i);
    const Factor& factor = square.is_upper ? p.upper : p.lower;
    const int64_t chain = first_chain + square.group * 32 + simt::thread_x() % 32;
    const int64_t column =
        static_cast<int64_t>(square.is_upper ? simt::block_y() : simt::block_x()) * (kTile / 32) + square.half;
    const bool exists = chain < p.n_chains && column * 32 < factor.units;
    words[i] = exists ? factor.bits[chain * bit_words(factor.units) + column] : 0;
  }
}

SIMT_KERNEL void SIMT_BOUNDS(kThreads, 4) count_kernel(SIMT_PARAMETER Statistics p) {
  const int thread = static_cast<int>(simt::thread_x()), lane = thread % 32, warp = thread / 32;
  const int g = lane / 4, t = lane % 4;
  auto* shared = reinterpret_cast<uint32_t*>(simt::dynamic_shared());
  int32_t sums[2][4][4] = {};
  uint32_t words[kSquares];
  load_squares(p, 0, words);
  int buffer = 0;
  for (int64_t first_chain = 0; first_chain < p.n_chains; first_chain += kStageChains) {
    uint32_t* stage = shared + buffer * kCountStageWords;
    SIMT_UNROLL
    for (int i = 0; i < kSquares; i++) {
      const Square square(i);
      stage[((square.is_upper * 2 + square.half) * 32 + lane) * kGroups + square.group] = transposed(words[i]);
    }
    simt::sync_block();  // the stage is whole; and the one before it, which is filled next, is read no more
    load_squares(p, first_chain + kStageChains, words);
    const uint32_t* lower = stage + (warp / 2 * 32 + g) * kGroups;
    const uint32_t* upper = stage + (kTile + warp % 2 * 32 + g) * kGroups;
    SIMT_UNROLL
    for (int group = 0; group < kGroups; group++) {
      uint32_t a[2][4];
      SIMT_UNROLL
      for (int row = 0; row < 4; row++) {
        const uint32_t word = lower[row * 8 * kGroups + group] >> 4 * t;
        a[row / 2][row % 2] = spread(word);
        a[row / 2][2 + row % 2] = spread(word >> 16);
      }
      SIMT_UNROLL
      for (int n = 0; n < 4; n++) {
        const uint32_t word = upper[n * 8 * kGroups + group] >> 4 * t;
        const uint32_t b0 = spread(word), b1 = spread(word >> 16);
        simt::mma_m16n8k32(sums[0][n], a[0], b0, b1);
        simt::mma_m16n8k32(sums[1][n], a[1], b0, b1);
      }
    }
    buffer ^= 1;
  }
  const int64_t first_row = static_cast<int64_t>(simt::block_x()) * kTile + warp / 2 * 32 + g;
  const int64_t first_column = static_cast<int64_t>(simt::block_y()) * kTile + warp % 2 * 32 + 2 * t;
  SIMT_UNROLL
  for (int m = 0; m < 2; m++) {
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      SIMT_UNROLL
      for (int i = 0; i < 4; i++) {
        const int64_t row = first_row + m * 16 + i / 2 * 8, column = first_column + n * 8 + i % 2;
        const int32_t count = sums[m][n][i] < kLargestCount ? sums[m][n][i] : kLargestCount;
        if (row < p.lower.units && column < p.upper.units)
          p.out[row * p.upper.units + column] = static_cast<float>(count);
      }
    }
  }
}

// --- sums of real numbers --------------------------------------------------------------------------------------------

constexpr int kSumChains = 16;                           // of a stage
constexpr int kSumStageFloats = 2 * kTile * kSumChains;  // [layer][chain][unit]
constexpr int kLoads = kTile * kSumChains / kThreads;    // of a thread, layer and stage
constexpr int kRows = 4, kColumns = 8;                   // sums of a thread

SIMT_DEVICE float value_of(const Factor& factor, int64_t chain, int64_t unit, int32_t n_chains) {
  if (chain >= n_chains || unit >= factor.units) return 0.f;
  if (factor.numbers) return factor.numbers[chain * factor.units + unit];
  return static_cast<float>(factor.bits[chain * bit_words(factor.units) + unit / 32] >> unit % 32 & 1);
}

SIMT_DEVICE void load_values(const Factor& factor, int64_t first_unit, int64_t first_chain, int32_t n_chains,
                             float (&values)[kLoads]) {
  const int thread = static_cast<int>(simt::thread_x());
  SIMT_UNROLL
  for (int i = 0; i < kLoads; i++)
    values[i] =
        value_of(factor, first_chain + thread / kTile + i * (kThreads / kTile), first_unit + thread % kTile, n_chains);
}

SIMT_DEVICE void store_values(float* stage, const float (&values)[kLoads]) {
  SIMT_UNROLL
  for (int i = 0; i < kLoads; i++) stage[simt::thread_x() + i * kThreads] = values[i];
}

template <int kCount>
SIMT_DEVICE void load_floats(const float* from, float (&to)[kCount]) {
  SIMT_UNROLL
  for (int i = 0; i < kCount; i += 4) {
    const simt::Words4 loaded = simt::load16(from + i);
    SIMT_UNROLL
    for (int j = 0; j < 4; j++) to[i + j] = units::float_of(loaded.word[j]);
  }
}

SIMT_KERNEL void SIMT_BOUNDS(kThreads, 4) sum_kernel(SIMT_PARAMETER Statistics p) {
  const int thread = static_cast<int>(simt::thread_x());
  const int64_t first_lower = static_cast<int64_t>(simt::block_x()) * kTile;
  const int64_t first_upper = static_cast<int64_t>(simt::block_y()) * kTile;
  const int row = thread / (kTile / kColumns) * kRows, column = thread % (kTile / kColumns) * kColumns;
  auto* shared = reinterpret_cast<float*>(simt::dynamic_shared());
  float sums[kRows][kColumns] = {};
  float lower[kLoads], upper[kLoads];
  load_values(p.lower, first_lower, 0, p.n_chains, lower);
  load_values(p.upper, first_upper, 0, p.n_chains, upper);
  int buffer = 0;
  for (int64_t first_chain = 0; first_chain < p.n_chains; first_chain += kSumChains) {
    float* stage = shared + buffer * kSumStageFloats;
    store_values(stage, lower);
    store_values(stage + kSumStageFloats / 2, upper);
    simt::sync_block();  // of sums: as in the counts
    load_values(p.lower, first_lower, first_chain + kSumChains, p.n_chains, lower);
    load_values(p.upper, first_upper, first_chain + kSumChains, p.n_chains, upper);
    SIMT_UNROLL
    for (int chain = 0; chain < kSumChains; chain++) {
      float a[kRows], b[kColumns];
      load_floats(stage + chain * kTile + row, a);
      load_floats(stage + kSumStageFloats / 2 + chain * kTile + column, b);
      SIMT_UNROLL
      for (int i = 0; i < kRows; i++) {
        SIMT_UNROLL
        for (int j = 0; j < kColumns; j++) sums[i][j] = units::fma(a[i], b[j], sums[i][j]);
      }
    }
    buffer ^= 1;
  }
  SIMT_UNROLL
  for (int i = 0; i < kRows; i++) {
    SIMT_UNROLL
    for (int j = 0; j < kColumns; j++) {
      const int64_t to_row = first_lower + row + i, to_column = first_upper + column + j;
      if (to_row < p.lower.units && to_column < p.upper.units) p.out[to_row * p.upper.units + to_column] = sums[i][j];
    }
  }
}

}  // namespace

// --- launcher --------------------------------------------------------------------------------------------------------

void statistics(float* out, const Factor& lower, const Factor& upper, int32_t n_chains, void* stream) {
  const Statistics p{out, lower, upper, n_chains};
  if (lower.bits && upper.bits)
    simt::launch(count_kernel, size_of(p, 2 * kCountStageWords * sizeof(uint32_t)), stream, p);
  else
    simt::launch(sum_kernel, size_of(p, 2 * kSumStageFloats * sizeof(float)), stream, p);
}

}  // namespace bm::cuda
