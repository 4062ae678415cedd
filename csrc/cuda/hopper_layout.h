// How the kernels for compute capability 9.0 hold states and weights; shared by host and device.
#pragma once

#include "cuda/layout.h"

namespace bm::cuda::hopper {

// Weights are operands B of the products (simt/hopper.h): cells of 8 outputs times 16 inputs, two of them beside each
// other for the 32 inputs of a step, then the next 8 outputs. Outputs come in octets, a byte of the bits of a chain.
constexpr int32_t kStepInputs = 32, kCellBytes = 128, kOctetBytes = 2 * kCellBytes;
BM_UNITS int32_t steps(int32_t inputs) { return (inputs + kStepInputs - 1) / kStepInputs; }
BM_UNITS int32_t octets(int32_t units) { return (units + 7) / 8; }

// Bit of its word, and so input of its step, that is row k of the product. The order is free, as a sum has none. With
// this one a lane makes four bytes of four bits by one shift and one mask: byte j of its registers for rows 4 t + j and
// 16 + 4 t + j are bits 2 t + 8 j and 2 t + 1 + 8 j.
BM_UNITS int32_t input_of_row(int32_t k) { return k % 16 / 4 * 2 + k / 16 + k % 4 * 8; }

constexpr int32_t kMaxSharedBytes = 227 * 1024;  // of a block

// --- weights that stay in the shared memory of a cluster -------------------------------------------------------------

// A layer is spread over the blocks of a cluster in octets. Each block has the same number of whole words of four
// octets, and single octets of what is left go round, so that no block has more than its eighth, rounded up to an
// octet.
constexpr int32_t kClusterBlocks = 8;
BM_UNITS int32_t octets_of_block(int32_t units) { return (octets(units) + kClusterBlocks - 1) / kClusterBlocks; }
BM_UNITS int32_t octet_of_layer(int32_t units, int32_t block, int32_t octet) {
  const int32_t whole = octets_of_block(units) / 4 * 4;
  return octet < whole ? block * whole + octet : kClusterBlocks * whole + block + kClusterBlocks * (octet - whole);
}

// Of one block and direction: [steps(inputs)][high, low limbs][octets_of_block(outputs)][kOctetBytes].
BM_UNITS int32_t resident_bytes(int32_t inputs, int32_t outputs) {
  return steps(inputs) * 2 * octets_of_block(outputs) * kOctetBytes;
}

// --- weights that stream through shared memory -----------------------------------------------------------------------

// Tiles of 64 outputs, in these stages of 128 inputs: [4 steps][high, low limbs][8 octets][kOctetBytes], 16 KiB.
constexpr int32_t kTileOctets = kTileUnits / 8, kStreamStageBytes = kStepsOfStage * 2 * kTileOctets * kOctetBytes;
BM_UNITS int64_t streamed_bytes(int64_t inputs, int64_t outputs) {
  return unit_tiles(outputs) * stages(inputs) * kStreamStageBytes;
}

}  // namespace bm::cuda::hopper
