// Updates of one binary layer, as csrc/ops.h and docs/numbers.md define them. All addresses are on the device.
#pragma once

#include "cuda/layout.h"

namespace bm::cuda {

constexpr int32_t kMaxInputs = 32;  // couplings that lead to one layer

struct BinaryInput {
  const uint32_t* bits;  // [n_chains, bit_words(units)]
  const void* weights;   // [weight_bytes], see arrange_weights
  int32_t units;
  float scale;  // of the integer sum: the input's own scale times 2^-f
};

struct BinaryUpdate {
  int32_t n_chains, units, n_inputs;
  BinaryInput inputs[kMaxInputs];  // in the order in which their fields are added
  const float* biases;             // [units]
  const float* beta;               // [n_chains], or null: 1
  const float* base;               // [units], the biases at beta = 0, or null: none
  const uint32_t* clamp;           // bits [n_chains, bit_words(units)], set where a unit keeps its value; or null
  uint32_t* states;                // bits [n_chains, bit_words(units)], updated in place
  float* means;                    // [n_chains, units] for the means from which the states are drawn, or null
  uint64_t seed;
  uint32_t first_chain, sweep, layer_and_purpose;  // of the random counter
};

// Draws the states of a layer given those of its inputs: the same bits as every other backend.
void update_binary(const BinaryUpdate& update, void* stream);

}  // namespace bm::cuda
