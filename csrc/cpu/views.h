// What the kernels see of a machine, a program and a call: plain arrays, owned elsewhere.
//
// No standard library in here nor in any unit that is compiled for one instruction set: an inline function that the
// linker merges across units might otherwise run on a processor that it was not compiled for.
#pragma once

#include <stdint.h>

#include "units.h"

namespace bm::cpu {

// Per-unit arrays are padded with zeros to whole tiles of units, so that vector loops need no tail.
constexpr int32_t kPad = 64;
constexpr int32_t padded(int32_t units) { return (units + kPad - 1) / kPad * kPad; }

struct LayerView {
  int32_t units;
  int32_t padded;  // units rounded up to whole tiles
  Kind kind;
  const float* biases;      // [padded], 64-byte aligned
  const float* precisions;  // [padded], 1 beyond the last unit, or null
};

// W_q of a coupling as seen from its inputs; rows are null until they are wanted.
struct WeightsView {
  int32_t inputs;
  int32_t outputs;
  int32_t stride;       // outputs rounded up to whole tiles
  const int16_t* rows;  // [inputs, stride], 64-byte aligned, zero beyond the last output
};

// How sums of W_q are rounded: weights down to multiples of 2^fine, of which the sums of one run of inputs fit 16 bits,
// and these down to multiples of 2^coarse, of which the sums of all do.
struct Rounding {
  int fine, coarse;
};

struct InputView {
  int coupling;
  bool transposed;
  int layer;     // the source
  float scale;   // of the integer sum: the input's own scale times 2^-f
  int64_t kept;  // where sums of these rows begin in what is kept of a chain, in bytes; the states follow
  WeightsView weights;
  bool settled = false;        // no later update of the sweep changes the source
  bool dense = false;          // so many of its states are 1 that the dense kernel is faster
  bool rounded = false;        // so many that draws take rounded sums
  Rounding rounding = {0, 0};  // of rounded ones
  const int16_t* columns =
      nullptr;  // [outputs, padded inputs], the same weights by output; where the update is rounded
};

struct UpdateView {
  int layer;
  int n_inputs;
  const InputView* inputs;  // [n_inputs]
  bool rounded = false;     // some input is
  float slack = 0;          // of rounded updates: what floats may add to what rounding of sums changes a field by
};

// Whether some source changes no more in a sweep, so that sums that lead from it are those of the energy.
inline bool has_settled_input(const UpdateView& update) {
  bool settled = false;
  for (int i = 0; i < update.n_inputs; i++) settled |= update.inputs[i].settled;
  return settled;
}

// One sweep: the updates of all blocks in order. Within a block the order does not matter.
struct ProgramView {
  int n_updates;
  const UpdateView* updates;  // [n_updates]
};

struct MachineView {
  int n_layers;
  const LayerView* layers;  // [n_layers]
};

// Values of one layer, [n_chains, units]: float where real, else uint8_t 0/1.
struct ValuesView {
  const void* data;
  bool real;
};

// Kernels ask once per tile of work whether to give up. In the calling thread the question also polls for signals.
struct StopView {
  bool (*ask)(void* context);
  void* context;
  bool requested() const { return ask(context); }
};

// As GapBiases in ops.h.
struct GapView {
  const int64_t* const* biases;  // per layer [units]
  int bits;
  bool has_base;
};

// Sweep s runs at betas[s + 1], and before it log weights grow by what the log densities of the states gain from
// betas[s] to there.
struct AnnealView {
  const float* betas;           // [n_sweeps + 1]
  int n_summed;                 // the first updates of the program, whose layers are summed out of the densities
  const double* const* slopes;  // per layer [units], biases minus those at beta = 0
  double* log_weights;          // [n_chains]
};

// Some sweeps of all chains. Arrays that are per chain start at chain 0 of the call.
struct SweepView {
  void* const* states;  // per layer [n_chains, units]: uint8_t or, for a Gaussian layer, float; updated in place
  int64_t n_sweeps;
  uint64_t seed;
  uint32_t first_chain;         // counter of chain 0
  uint32_t first_sweep;         // counter of the first of these sweeps
  const float* beta;            // [n_chains], or null: 1
  const float* const* base;     // per layer [padded], or null: none
  const uint8_t* const* clamp;  // per layer [n_chains, units], not 0 where a unit keeps its value; entries may be null
  float* const* means;    // per layer [n_chains, units] for the means of the last of these sweeps; entries may be null
  const GapView* gap;     // of the states after the last of these sweeps; null where it is not wanted
  int64_t* interactions;  // [n_chains, couplings], then too: sums of W_q over pairs of units that are on; or null
  int n_couplings;
  const AnnealView* anneal;  // in place of beta, and beside a base; null where chains keep their beta
};

}  // namespace bm::cpu
