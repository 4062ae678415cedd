// Operations on layers whose inputs may be real values: grey pixels, means, Gaussian units. All addresses are on the
// device; see binary.h for bits and weights.
//
// Real inputs are rounded to 24 bits of the largest value of their chain, and their products with W_q are summed as
// whole numbers: results depend on nothing but the values. docs/numbers.md states the tolerance.
#pragma once

#include "cuda/binary.h"

namespace bm::cuda {

// The values of a binary layer (bits) or of a real one (values and quanta): one of both is null.
struct RealInput {
  const uint32_t* bits;
  const void* values;   // [value_bytes], see pack_values
  const float* quanta;  // [n_chains], or null: kMeanQuantum
  const void* weights;
  const float* grid;
  double scale;
  int32_t units;
};

struct RealProduct {
  int32_t n_chains, units, n_inputs;
  RealInput inputs[kMaxInputs];
  const float* biases;  // [units], or null: 0
  const float* beta;    // [n_chains], or null: 1
  const float* base;    // [units], the biases at beta = 0, or null: none
};

// values[value_bytes] and quanta[n_chains] from real numbers [n_chains, units]
void pack_values(void* values, float* quanta, const float* numbers, int32_t n_chains, int32_t units, void* stream);

// values[value_bytes] from numbers from 0 to 1, with kMeanQuantum: as updates of means leave them
void pack_means(void* values, const float* numbers, int32_t n_chains, int32_t units, void* stream);

// A layer of real numbers that adds its biases to an energy, and, where it is Gaussian, its quadratic term.
struct RealLayer {
  const float* numbers;     // [n_chains, units]
  const float* biases;      // [units]
  const float* base;        // [units] or null
  const float* precisions;  // [units] or null
  int32_t units;
};

// out[n_betas, n_chains] -= (beta biases + (1 - beta) base) numbers - beta 1/2 precisions numbers^2, where a base
// shares the quadratic term: not scaled by beta
void add_real_bias_energy(double* out, const RealLayer& layer, int32_t n_chains,
                          const float* betas /* [n_betas], or null: one beta of 1 */, int32_t n_betas, void* stream);

// The same at a beta of 1 with biases on a grid: biases[units] grid
void add_real_whole_biases(double* out, const RealLayer& layer, const int64_t* biases, const float* grid /* [1] */,
                           int32_t n_chains, void* stream);

// out[n_chains] -= scale 2^-f (units of the input) W_q (units of the layer that it leads to), which are bits, or
// numbers [n_chains, units]. The product has one input; partials: [2 unit_tiles(units), n_chains].
void add_real_coupling_energy(double* out, double* partials, const RealProduct& product, const uint32_t* bits,
                              const float* numbers, void* stream);

// out[n_betas, n_chains] -= log of the sum, or of the integral for a Gaussian layer, of exp(field unit - 1/2 precision
// unit^2), over all units; partials: [n_betas, 2 unit_tiles(units), n_chains]. The product has no beta and no base.
void add_real_free_energy(double* out, double* partials, const RealProduct& product, const float* precisions,
                          const float* betas /* [n_betas] */, int32_t n_betas, const float* base, void* stream);

struct RealUpdate {
  RealProduct product;
  const float* precisions;  // [units] of a Gaussian layer; null: the layer is binary
  const uint32_t* clamp;    // bits, set where a unit keeps its value; or null
  uint32_t* states;         // bits of a binary layer, updated in place; or null where only the means are wanted
  float* numbers;           // [n_chains, units] of a Gaussian layer, the same
  float* means;             // [n_chains, units] for the means from which the states are drawn, or null
  uint64_t seed;
  uint32_t first_chain, sweep, layer_and_purpose;
  const uint32_t* sweeps_before;  // as in BinaryUpdate
};

// Draws the states of a layer given those of its inputs.
void update_real(const RealUpdate& update, void* stream);

// An update of a layer in mean field: means = (1 - damping) (means given the inputs) + damping (means before).
struct MeanUpdate {
  RealProduct product;
  const float* precisions;  // as in RealUpdate
  const uint32_t* clamp;
  float* means;             // [n_chains, units], updated in place
  void* values;             // [value_bytes] of the means of a binary layer, with kMeanQuantum; or null
  float damping;            // 0 to 1
  float* changes;           // [n_chains], raised to the largest change of a mean in this chain
  const uint32_t* settled;  // [n_chains], not 0 where a chain keeps its means; or null
  float* fields;            // [units, n_chains] for update_softmax_means alone
};

void update_means(const MeanUpdate& update, void* stream);

// Closes a sweep of mean field: chains whose largest change is at most the tolerance are settled.
struct Settling {
  int32_t n_chains;
  float tolerance;
  float* changes;       // [n_chains] of the updates of this sweep; zero for the next one afterwards
  float* last_changes;  // [n_chains], of the last sweep in which the chain was not settled
  uint32_t* settled;    // [n_chains]
  uint32_t* sweeps;     // [n_chains], raised by 1 where the chain was not settled before
};

void settle(const Settling& settling, void* stream);

}  // namespace bm::cuda
