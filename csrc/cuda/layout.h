// How the kernels hold states and weights; shared by host and device.
#pragma once

#include "units.h"

namespace bm::cuda {

// A binary layer is bits [n_chains, bit_words(units)]: unit u is bit u % 32 of word u / 32, and bits beyond the last
// unit are 0. Rows are whole copies of 16 bytes.
constexpr int32_t kStageInputs = 128;  // units in 16 bytes
BM_UNITS int64_t stages(int64_t inputs) { return (inputs + kStageInputs - 1) / kStageInputs; }
BM_UNITS int64_t bit_words(int64_t units) { return stages(units) * (kStageInputs / 32); }

// W_q = 256 high + low with both in [-128, 127], which |W_q| <= 32,639 allows.
//
// One direction of a coupling is held as the operands of mma.m16n8k32, in the order in which they are read: tiles of
// 64 outputs, in these stages of 128 inputs, in these 8 groups of 8 outputs, in these 4 steps of 32 inputs, in these
// the 16 bytes of each lane of a warp: high limbs of 4 + 4 inputs, low limbs of the same. A stage of a tile is one run
// of 16 KiB, and a lane gets all that it needs for a step in one load without bank conflicts. Absent weights are 0.
constexpr int32_t kTileUnits = 64, kGroupsOfTile = kTileUnits / 8, kStepsOfStage = kStageInputs / 32;
constexpr int32_t kStageWeightBytes = kTileUnits * kStageInputs * 2;
BM_UNITS int64_t unit_tiles(int64_t units) { return (units + kTileUnits - 1) / kTileUnits; }
BM_UNITS int64_t weight_bytes(int64_t inputs, int64_t outputs) {
  return unit_tiles(outputs) * stages(inputs) * kStageWeightBytes;
}

// Real values of a chain are whole numbers too, x = quantum x_q with |x_q| <= 8,355,711 = (127 256 + 127) 256 + 127, of
// three signed bytes each, and the quantum a power of two, so that sums of W_q x_q are exact. They are held as the
// other operands of the same products, as lanes read them: tiles of 16 chains, stages of 128 inputs, 4 steps of 32
// inputs, the three bytes from the highest to the lowest, 16 bytes for each lane of a warp: 4 inputs of chain g, of
// chain g + 8, the 4 that come 16 later of both. What lies beyond the last unit or chain may be anything.
constexpr int32_t kFragmentChains = 16, kLimbs = 3, kFragmentBytes = 512;
constexpr int32_t kStageValueBytes = kStepsOfStage * kLimbs * kFragmentBytes;  // of a tile of chains
constexpr float kMeanQuantum = 0x1p-22f;                                       // of values from 0 to 1
BM_UNITS int64_t chain_tiles(int64_t n_chains) { return (n_chains + kFragmentChains - 1) / kFragmentChains; }
BM_UNITS int64_t value_bytes(int64_t n_chains, int64_t units) {
  return chain_tiles(n_chains) * stages(units) * kStageValueBytes;
}

// Output of a tile that is column `column` of group `group`. Groups come in pairs, so that a lane's columns 2t and 2t +
// 1 of both are four outputs in a row: the four that share one call of Philox.
BM_UNITS int32_t unit_of_column(int32_t group, int32_t column) {
  return group / 2 * 16 + column / 2 * 4 + group % 2 * 2 + column % 2;
}

}  // namespace bm::cuda
