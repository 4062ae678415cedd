// Operations on binary layers, as csrc/ops.h and docs/numbers.md define them. All addresses are on the device; bits are
// [n_chains, bit_words(units)], see layout.h.
#pragma once

#include "cuda/layout.h"

namespace bm::cuda {

constexpr int32_t kMaxInputs = 32;  // couplings that lead to one layer

struct BinaryInput {
  const uint32_t* bits;  // of the layer that it comes from
  const void* weights;   // [weight_bytes], see arrange_weights
  const float* grid;     // [1], 2^-f of the coupling: on the device, as training chooses it there
  double scale;          // the input's own
  int32_t units;         // of the layer that it comes from
};

// A layer and what its fields are made of.
struct BinaryProduct {
  int32_t n_chains, units, n_inputs;
  BinaryInput inputs[kMaxInputs];  // in the order in which their fields are added
  const float* biases;             // [units]
};

struct BinaryUpdate {
  BinaryProduct product;
  const float* beta;      // [n_chains], or null: 1
  const float* base;      // [units], the biases at beta = 0, or null: none
  const uint32_t* clamp;  // bits, set where a unit keeps its value; or null
  uint32_t* states;       // bits, updated in place; or null where only the means are wanted
  float* means;           // [n_chains, units] for the means from which the states are drawn, or null
  uint64_t seed;
  uint32_t first_chain, sweep, layer_and_purpose;  // of the random counter
  const uint32_t* sweeps_before;                   // [1], added to `sweep`, so that a CUDA graph can go on; or null
};

// Draws the states of a layer given those of its inputs: the same bits as every other backend.
void update_binary(const BinaryUpdate& update, void* stream);

// counter[1] += steps, of sweeps that a CUDA graph has done
void advance(uint32_t* counter, uint32_t steps, void* stream);

// A layer that adds its biases to an energy.
struct BinaryLayer {
  const uint32_t* bits;
  const float* biases;  // [units]
  const float* base;    // [units] or null
  int32_t units;
};

// out[n_betas, n_chains] -= (beta biases + (1 - beta) base) bits
void add_bias_energy(double* out, const BinaryLayer& layer, int32_t n_chains,
                     const float* betas /* [n_betas], or null: one beta of 1 */, int32_t n_betas, void* stream);

// out[n_chains] -= scale 2^-f (units of the input) W_q (units of `bits`), an exact integer times the scale. The product
// has one input; partials: [2 unit_tiles(units), n_chains].
void add_coupling_energy(double* out, int64_t* partials, const BinaryProduct& product, const uint32_t* bits,
                         void* stream);

// out[n_chains] = sums[n_chains] = 0
void clear_gap(double* out, int64_t* sums, int32_t n_chains, void* stream);

// A gap of energies is 0, less the energies of the couplings in order, less the scaled sums of whole biases over all
// layers; docs/numbers.md has the biases. sums[n_chains] += biases bits, an exact integer
void add_whole_biases(int64_t* sums, const uint32_t* bits, const int64_t* biases /* [units] */, int32_t units,
                      int32_t n_chains, void* stream);

// out[n_chains] -= grid sums
void subtract_sums(double* out, const int64_t* sums /* [n_chains] */, const float* grid /* [1] */, int32_t n_chains,
                   void* stream);

// out[n_betas, n_chains] -= sum over units of log(1 + exp(field)); partials: [n_betas, 2 unit_tiles(units), n_chains]
void add_free_energy(double* out, double* partials, const BinaryProduct& product, const float* betas /* [n_betas] */,
                     int32_t n_betas, const float* base /* [units] or null */, void* stream);

}  // namespace bm::cuda
