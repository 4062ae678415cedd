// The products of a tile of 32 chains and 64 units with all inputs of a layer, some of them real. For kernels alone.
//
// As product.h, but for what real values cost: three bytes of a value times two limbs of a weight are six products,
// whose sums are kept in four sets by their power of 256. A block has four warps, two by two, of 16 chains and 32 units
// each, so that a lane has 64 sums as there. Values and weights lie in memory as lanes read them.
//
// Not the obvious way, bfloat16 or TF32: exact enough, they need three parts of each value as well, run at half and a
// quarter of the rate, and round sums in ways that no specification states. Whole numbers give the same bits
// everywhere.
#pragma once

#include "cuda/product.h"
#include "cuda/real.h"

namespace bm::cuda {

constexpr int kRealTileChains = 32, kRealBlocks = 2;
constexpr int kRealStageBytes = kStageWeightBytes + kRealTileChains / kFragmentChains * kStageValueBytes;
constexpr int kRealSharedBytes = kStages * kRealStageBytes;

inline simt::Size product_size(const RealProduct& p) {
  check_inputs(p.n_inputs);
  return {static_cast<unsigned>((p.n_chains + kRealTileChains - 1) / kRealTileChains),
          static_cast<unsigned>(unit_tiles(p.units)), kProductThreads, kRealSharedBytes};
}

// What a lane holds of the 16 x 32 fields of its warp: element [n][i] is row i / 2 of `chain` and unit `unit(n, i)`.
struct RealPlace {
  SIMT_DEVICE_MEMBER int lane() const { return static_cast<int>(simt::thread_x() % 32); }
  SIMT_DEVICE_MEMBER int t() const { return lane() % 4; }
  SIMT_DEVICE_MEMBER int first_unit() const {
    return static_cast<int>(simt::block_y()) * kTileUnits + static_cast<int>(simt::thread_x() / 32 % 2) * 32;
  }
  SIMT_DEVICE_MEMBER int64_t chain_tile() const {
    return static_cast<int64_t>(simt::block_x()) * (kRealTileChains / kFragmentChains) + simt::thread_x() / 64;
  }
  SIMT_DEVICE_MEMBER int64_t chain(int row) const { return chain_tile() * kFragmentChains + row * 8 + lane() / 4; }
  SIMT_DEVICE_MEMBER int unit(int n, int i) const { return first_unit() + unit_of_column(n, 2 * t() + i % 2); }
};

// Whether all chains of the block's tile are settled; the same for all its threads.
SIMT_DEVICE bool all_settled(const uint32_t* settled /* [n_chains] or null */, int32_t n_chains) {
  static_assert(kRealTileChains == 32);
  const int64_t chain = static_cast<int64_t>(simt::block_x()) * kRealTileChains + simt::thread_x() % 32;
  return simt::ballot(chain < n_chains && !(settled && settled[chain] != 0)) == 0;
}

SIMT_DEVICE void load_next(const RealProduct& p, Cursor& cursor, unsigned char* to) {
  if (cursor.input < p.n_inputs) {
    const RealInput& input = p.inputs[cursor.input];
    const int thread = static_cast<int>(simt::thread_x());
    const int n_stages = static_cast<int>(stages(input.units));
    load_weights(input.weights, n_stages, cursor.stage, to);
    to += kStageWeightBytes;
    if (input.bits) {
      if (thread < kRealTileChains) {
        const int64_t chain = static_cast<int64_t>(simt::block_x()) * kRealTileChains + thread;
        const bool exists = chain < p.n_chains;
        simt::copy_async16(to + 16 * thread, input.bits + (exists ? (chain * n_stages + cursor.stage) * 4 : 0),
                           exists ? 16 : 0);
      }
    } else {
      const auto* values = static_cast<const unsigned char*>(input.values);
      constexpr int kPieces = kStageValueBytes / 16;
      SIMT_UNROLL
      for (int i = 0; i < kRealTileChains / kFragmentChains * kPieces / kProductThreads; i++) {
        const int piece = thread + i * kProductThreads;
        const int64_t tile =
            static_cast<int64_t>(simt::block_x()) * (kRealTileChains / kFragmentChains) + piece / kPieces;
        const bool exists = tile < chain_tiles(p.n_chains);
        const int64_t from = (tile * n_stages + cursor.stage) * kStageValueBytes + piece % kPieces * 16;
        simt::copy_async16(to + 16 * piece, values + (exists ? from : 0), exists ? 16 : 0);
      }
    }
    if (++cursor.stage == n_stages) cursor = {cursor.input + 1, 0};
  }
  simt::copy_commit();  // empty after the last stage, so that the number of open groups stays the same
}

// Sums by power of 256, of [4 x 8 units][fragment of a lane]
using PowerSums = int32_t[4][4][4];

SIMT_DEVICE void multiply_bits(const unsigned char* stage, PowerSums& sums) {
  const int lane = static_cast<int>(simt::thread_x() % 32), warp = static_cast<int>(simt::thread_x() / 32);
  const unsigned char* bits = stage + kStageWeightBytes + 16 * (warp / 2 * kFragmentChains + lane / 4);
  const unsigned char* weights = stage + warp % 2 * 4 * kStepsOfStage * 512 + lane * 16;
  SIMT_UNROLL
  for (int step = 0; step < kStepsOfStage; step++) {
    uint32_t a[4];
    SIMT_UNROLL
    for (int row = 0; row < 2; row++) {
      const uint32_t word = simt::load4(bits + 16 * 8 * row + 4 * step) >> 4 * (lane % 4);
      a[row] = spread(word);
      a[2 + row] = spread(word >> 16);
    }
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      const simt::Words4 w = simt::load16(weights + (n * kStepsOfStage + step) * 512);
      simt::mma_m16n8k32(sums[1][n], a, w.word[0], w.word[1]);
      simt::mma_m16n8k32(sums[0][n], a, w.word[2], w.word[3]);
    }
  }
}

SIMT_DEVICE void multiply_values(const unsigned char* stage, PowerSums& sums) {
  const int lane = static_cast<int>(simt::thread_x() % 32), warp = static_cast<int>(simt::thread_x() / 32);
  const unsigned char* values = stage + kStageWeightBytes + warp / 2 * kStageValueBytes + lane * 16;
  const unsigned char* weights = stage + warp % 2 * 4 * kStepsOfStage * 512 + lane * 16;
  SIMT_UNROLL
  for (int step = 0; step < kStepsOfStage; step++) {
    const simt::Words4 top = simt::load16(values + (step * kLimbs + 0) * kFragmentBytes);
    const simt::Words4 middle = simt::load16(values + (step * kLimbs + 1) * kFragmentBytes);
    const simt::Words4 low = simt::load16(values + (step * kLimbs + 2) * kFragmentBytes);
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      const simt::Words4 w = simt::load16(weights + (n * kStepsOfStage + step) * 512);
      simt::mma_m16n8k32_signed(sums[3][n], top.word, w.word[0], w.word[1]);
      simt::mma_m16n8k32_signed(sums[2][n], top.word, w.word[2], w.word[3]);
      simt::mma_m16n8k32_signed(sums[1][n], middle.word, w.word[2], w.word[3]);
      simt::mma_m16n8k32_signed(sums[2][n], middle.word, w.word[0], w.word[1]);
      simt::mma_m16n8k32_signed(sums[0][n], low.word, w.word[2], w.word[3]);
      simt::mma_m16n8k32_signed(sums[1][n], low.word, w.word[0], w.word[1]);
    }
  }
}

// Fields of the lane's elements, at their chain's beta: bias, then one fma for each input in order.
using RealFields = float[4][4];

SIMT_DEVICE void make_fields(const RealProduct& p, const RealPlace& place, RealFields& fields) {
  SIMT_UNROLL
  for (int n = 0; n < 4; n++) {
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
      const int unit = place.unit(n, i);
      fields[n][i] = p.biases && unit < p.units ? p.biases[unit] : 0.f;
    }
  }
  unsigned char* shared = simt::dynamic_shared();
  Cursor next{0, 0};
  for (int stage = 0; stage < kStages - 1; stage++) load_next(p, next, shared + stage * kRealStageBytes);
  int stage = 0;
  for (int input = 0; input < p.n_inputs; input++) {
    const RealInput& from = p.inputs[input];
    PowerSums sums = {};
    const int n_stages = static_cast<int>(stages(from.units));
    for (int i = 0; i < n_stages; i++) {
      simt::copy_wait<kStages - 2>();
      simt::sync_block();  // real values: this stage has landed, and the one before it is read no more
      load_next(p, next, shared + (stage == 0 ? kStages - 1 : stage - 1) * kRealStageBytes);
      if (from.bits)
        multiply_bits(shared + stage * kRealStageBytes, sums);
      else
        multiply_values(shared + stage * kRealStageBytes, sums);
      stage = stage == kStages - 1 ? 0 : stage + 1;
    }
    const float scale = sum_scale(from);
    SIMT_UNROLL
    for (int row = 0; row < 2; row++) {
      float quantum = from.bits ? 1.f : kMeanQuantum;
      if (!from.bits && from.quanta) quantum = place.chain(row) < p.n_chains ? from.quanta[place.chain(row)] : 0.f;
      SIMT_UNROLL
      for (int n = 0; n < 4; n++) {
        SIMT_UNROLL
        for (int i = 0; i < 2; i++) {
          const int k = row * 2 + i;
          int64_t sum = sums[3][n][k];
          SIMT_UNROLL
          for (int power = 2; power >= 0; power--) sum = sum * 256 + sums[power][n][k];
          fields[n][k] = units::fma(static_cast<float>(sum), scale * quantum, fields[n][k]);
        }
      }
    }
  }
  simt::copy_wait<0>();
  SIMT_UNROLL
  for (int row = 0; row < 2; row++) {
    const int64_t chain = place.chain(row);
    const float beta = p.beta && chain < p.n_chains ? p.beta[chain] : 1.f;
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      SIMT_UNROLL
      for (int i = 0; i < 2; i++) {
        const int unit = place.unit(n, i);
        if (unit < p.units) fields[n][row * 2 + i] = tempered(fields[n][row * 2 + i], beta, p.beta, p.base, unit);
      }
    }
  }
}

}  // namespace bm::cuda
