// Operations on softmax layers, of which exactly one unit is on, as csrc/ops.h and docs/numbers.md define them: draws
// with the same bits as every other backend where all inputs are binary. All addresses are on the device.
//
// A unit's probability takes the fields of all others of its layer, which lie in many tiles, so each operation has two
// kernels: the product leaves its fields in memory, and then each chain has a thread, which adds terms in the order of
// the units, as the definition has it. `fields` is [units, n_chains], so that the threads of a warp read neighbours.
#pragma once

#include "cuda/real.h"

namespace bm::cuda {

struct SoftmaxUpdate {
  RealProduct product;
  float* fields;          // for the kernels alone
  const uint32_t* clamp;  // bits; a set one that is on keeps the state, others that are set stay off; or null
  uint32_t* states;       // bits, updated in place; or null where only the means are wanted
  float* means;           // [n_chains, units] for the means from which the states are drawn, or null
  uint64_t seed;
  uint32_t first_chain, sweep, layer_and_purpose;
  const uint32_t* sweeps_before;  // as in BinaryUpdate
};

void update_softmax(const SoftmaxUpdate& update, void* stream);

// An update in mean field of a softmax layer, which has fields and no clamp.
void update_softmax_means(const MeanUpdate& update, void* stream);

// out[n_betas, n_chains] -= log of the sum over units of exp(field). The product has no beta and no base.
void add_softmax_free_energy(double* out, float* fields, const RealProduct& product, const float* betas /* [n_betas] */,
                             int32_t n_betas, const float* base /* [units] or null */, void* stream);

}  // namespace bm::cuda
