// The products of a tile of chains and units with all inputs of a layer, on the integer matrix units of compute
// capability 8.0 and newer. For kernels alone; what they do with the sums is theirs.
//
// A block makes a tile of 64 chains times 64 units with four warps, two by two, of 32 times 32 each. Sums of W_q are
// exact in int32, one for each limb, so that no order and no tile can change a bit. Stages of 128 inputs go round
// through shared memory by asynchronous copies: one is multiplied while the others are on their way. There is one
// barrier for each: it says that everyone's copies of the stage have landed, and also that everyone is done with the
// stage before, which is filled next.
//
// States are bits, in memory and in shared memory, and become bytes in registers: 4 instructions for 4 inputs of a row,
// which feed 8 products. Not the obvious way, one product with 16-bit weights: the matrix units have none, and bfloat16
// would neither be exact nor faster than two limbs.
#pragma once

#include "cuda/binary.h"
#include "cuda/spread.h"
#include "simt/simt.h"

namespace bm::cuda {

constexpr int kTileChains = 64, kProductThreads = 128, kStages = 3;
constexpr int kProductBlocks = 3;  // of a multiprocessor: 12 warps, as many as their registers allow
constexpr int kStageBytes = kStageWeightBytes + kTileChains * kStageInputs / 8;
constexpr int kProductSharedBytes = kStages * kStageBytes;

inline void check_inputs(int32_t n_inputs) {
  if (n_inputs < 0 || n_inputs > kMaxInputs)
    throw std::invalid_argument("update: expected at most " + std::to_string(kMaxInputs) +
                                " couplings that lead to one layer, got " + std::to_string(n_inputs));
}

// Of a kernel whose blocks make one tile each.
inline simt::Size product_size(const BinaryProduct& p) {
  check_inputs(p.n_inputs);
  return {static_cast<unsigned>((p.n_chains + kTileChains - 1) / kTileChains),
          static_cast<unsigned>(unit_tiles(p.units)), kProductThreads, kProductSharedBytes};
}

// What a lane holds of the 32 x 32 sums of its warp: element [m][n][i] is row 2 m + i / 2 of `chain` and unit
// `unit(n, i)`; of a row, n = 0, 1 and n = 2, 3 together are four units from `unit(n, 0)` on.
struct TilePlace {
  // Computed on demand: kept over the products, these would take registers from them.
  SIMT_DEVICE_MEMBER int lane() const { return static_cast<int>(simt::thread_x() % 32); }
  SIMT_DEVICE_MEMBER int t() const { return lane() % 4; }
  SIMT_DEVICE_MEMBER int first_unit() const {
    return static_cast<int>(simt::block_y()) * kTileUnits + static_cast<int>(simt::thread_x() / 32 % 2) * 32;
  }
  SIMT_DEVICE_MEMBER int64_t chain(int row) const {
    return static_cast<int64_t>(simt::block_x()) * kTileChains + simt::thread_x() / 64 * 32 + row * 8 + lane() / 4;
  }
  SIMT_DEVICE_MEMBER int unit(int n, int i) const { return first_unit() + unit_of_column(n, 2 * t() + i % 2); }
};

struct Cursor {  // the stage of an input that is loaded next
  int input, stage;
};

// A stage of the weights of this block's units, 16 bytes at a time.
SIMT_DEVICE void load_weights(const void* weights, int n_stages, int stage, unsigned char* to) {
  const int thread = static_cast<int>(simt::thread_x());
  const unsigned char* from = static_cast<const unsigned char*>(weights) +
                              (static_cast<int64_t>(simt::block_y()) * n_stages + stage) * kStageWeightBytes;
  SIMT_UNROLL
  for (int i = 0; i < kStageWeightBytes / 16 / kProductThreads; i++)
    simt::copy_async16(to + 16 * (thread + i * kProductThreads), from + 16 * (thread + i * kProductThreads), 16);
}

SIMT_DEVICE void load_next(const BinaryProduct& p, Cursor& cursor, unsigned char* to) {
  if (cursor.input < p.n_inputs) {
    const BinaryInput& input = p.inputs[cursor.input];
    const int thread = static_cast<int>(simt::thread_x());
    const int n_stages = static_cast<int>(stages(input.units));
    load_weights(input.weights, n_stages, cursor.stage, to);
    if (thread < kTileChains) {
      const int64_t chain = static_cast<int64_t>(simt::block_x()) * kTileChains + thread;
      const bool exists = chain < p.n_chains;
      simt::copy_async16(to + kStageWeightBytes + 16 * thread,
                         input.bits + (exists ? (chain * n_stages + cursor.stage) * 4 : 0), exists ? 16 : 0);
    }
    if (++cursor.stage == n_stages) cursor = {cursor.input + 1, 0};
  }
  simt::copy_commit();  // empty after the last stage, so that the number of open groups stays the same
}

// Sums of [2 x 16 chains][4 x 8 units][fragment of a lane]
using Sums = int32_t[2][4][4];

SIMT_DEVICE void multiply(const unsigned char* stage, Sums& high, Sums& low) {
  const int thread = static_cast<int>(simt::thread_x()), lane = thread % 32, warp = thread / 32;
  const int g = lane / 4, t = lane % 4;
  const unsigned char* bits = stage + kStageWeightBytes + 16 * (warp / 2 * 32 + g);
  const unsigned char* weights = stage + warp % 2 * 4 * kStepsOfStage * 512 + lane * 16;
  SIMT_UNROLL
  for (int step = 0; step < kStepsOfStage; step++) {
    uint32_t a[2][4];
    SIMT_UNROLL
    for (int row = 0; row < 4; row++) {
      const uint32_t word = simt::load4(bits + 16 * 8 * row + 4 * step) >> 4 * t;
      a[row / 2][row % 2] = spread(word);
      a[row / 2][2 + row % 2] = spread(word >> 16);
    }
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      const simt::Words4 w = simt::load16(weights + (n * kStepsOfStage + step) * 512);
      SIMT_UNROLL
      for (int m = 0; m < 2; m++) {
        simt::mma_m16n8k32(high[m][n], a[m], w.word[0], w.word[1]);
        simt::mma_m16n8k32(low[m][n], a[m], w.word[2], w.word[3]);
      }
    }
  }
}

// Calls fold(input, high, low) with the sums of both limbs at the end of each input, in order.
template <class Fold>
SIMT_DEVICE void multiply_inputs(const BinaryProduct& p, Fold fold) {
  unsigned char* shared = simt::dynamic_shared();
  Cursor next{0, 0};
  for (int stage = 0; stage < kStages - 1; stage++) load_next(p, next, shared + stage * kStageBytes);
  int stage = 0;
  for (int input = 0; input < p.n_inputs; input++) {
    Sums high = {}, low = {};
    const int n_stages = static_cast<int>(stages(p.inputs[input].units));
    for (int i = 0; i < n_stages; i++) {
      simt::copy_wait<kStages - 2>();
      simt::sync_block();  // this stage has landed, and the one before it is read no more
      load_next(p, next, shared + (stage == 0 ? kStages - 1 : stage - 1) * kStageBytes);
      multiply(shared + stage * kStageBytes, high, low);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    fold(input, high, low);
  }
  simt::copy_wait<0>();
}

// What the integer sums of an input are multiplied by.
template <class Input>
SIMT_DEVICE float sum_scale(const Input& input) {
  return static_cast<float>(input.scale * static_cast<double>(*input.grid));
}

// Fields at beta = 1 of the lane's elements: bias, then one fma for each input in order.
using Fields = float[2][4][4];

SIMT_DEVICE void make_fields(const BinaryProduct& p, const TilePlace& place, Fields& fields) {
  SIMT_UNROLL
  for (int n = 0; n < 4; n++) {
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
      const int unit = place.unit(n, i);
      fields[0][n][i] = fields[1][n][i] = unit < p.units ? p.biases[unit] : 0.f;
    }
  }
  multiply_inputs(p, [&](int input, const Sums& high, const Sums& low) {
    const float scale = sum_scale(p.inputs[input]);
    SIMT_UNROLL
    for (int m = 0; m < 2; m++) {
      SIMT_UNROLL
      for (int n = 0; n < 4; n++) {
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
          const int32_t sum = high[m][n][i] * 256 + low[m][n][i];
          fields[m][n][i] = units::fma(static_cast<float>(sum), scale, fields[m][n][i]);
        }
      }
    }
  });
}

// The field of one unit on the path from the biases `base` to the model; beta is 1 where there is none.
SIMT_DEVICE float tempered(float x, float beta, bool has_beta, const float* base, int64_t unit) {
  if (base) return units::fma(beta, x, (1.f - beta) * base[unit]);
  return has_beta ? beta * x : x;
}

}  // namespace bm::cuda
