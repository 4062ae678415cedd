// The native API on one page: everything that the compiled module can do, free of Python, torch and CUDA types.
//
// Arrays are dense, row-major and owned by the caller unless a comment says otherwise. Checks of dtype, shape and
// device happen before this line; what only the numbers can tell (a state above 1, a NaN) is checked behind it and
// throws std::invalid_argument with the name of the layer. The numbers themselves are specified in docs/numbers.md.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "units.h"  // Kind

namespace bm {

// --- what a machine is made of ---------------------------------------------------------------------------------------

struct LayerParameters {
  std::string name;
  int64_t units;
  Kind kind;
  const float* biases;      // [units]
  const float* precisions;  // [units] for a Gaussian layer, else null
};

struct CouplingParameters {
  int lower, upper;               // layers
  const int16_t* weights;         // [units of lower, units of upper], W_q; or null
  int fraction_bits;              // f: a weight is W_q 2^-f
  const float* values = nullptr;  // in its place the weights themselves, which the caller has made sure fit the grid
};

// A machine with its parameters copied and laid out for the kernels; immutable, so calls may share it.
class Machine;
std::shared_ptr<const Machine> build_machine(const std::vector<LayerParameters>& layers,
                                             const std::vector<CouplingParameters>& couplings, int threads);

// out[units of lower, units of upper] = W_q of a coupling.
void read_weights(int16_t* out, const Machine& machine, int coupling);

// Whether the tables of the lookup kernel have been built.
bool has_lookup_tables(const Machine& machine);

// --- what is run -----------------------------------------------------------------------------------------------------

struct Input {
  int coupling;
  bool transposed;  // the updated layer is the coupling's lower end
  double scale;
};

struct Update {
  int layer;
  std::vector<Input> inputs;  // in the order in which their fields are added
};

using Block = std::vector<Update>;   // layers that are independent of each other given all others
using Program = std::vector<Block>;  // one sweep

// Values of one layer, [n_chains, units]: float32 where real, else uint8 0/1.
struct Values {
  const void* data;
  bool real;
};

// --- operations ------------------------------------------------------------------------------------------------------

struct Sweep {
  int64_t n_chains;
  int64_t n_sweeps;
  uint64_t seed;
  uint32_t first_chain;               // random numbers are counted from this chain
  uint32_t first_sweep;               // and from this sweep
  const float* beta;                  // [n_chains], or null: 1
  std::vector<const float*> base;     // per layer [units], the biases at beta = 0; empty: none
  std::vector<const uint8_t*> clamp;  // per layer [n_chains, units], not 0 where a unit keeps its value; null: none
  std::vector<float*> means;          // per layer [n_chains, units] for the means of the last sweep; null: not wanted
};

// Runs a program on states [n_chains, units] per layer (uint8 or, for a Gaussian layer, float32), in place.
// Work is done in rounds of bounded time on copies of the states, which replace the caller's after each round; then
// `progress(sweeps done)` is called. `interrupted()` is asked about every 100 ms from the calling thread; true abandons
// the round. Returns the sweeps done; the states hold exactly these. Neither callback is called from other threads.
int64_t sweep(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
              int threads, const std::function<void(int64_t)>& progress, const std::function<bool()>& interrupted);

// out[n_chains, units] = mean of each unit of a layer given the others.
void layer_means(float* out, const Machine& machine, const Update& update, const std::vector<Values>& values,
                 int64_t n_chains, const float* beta /* [n_chains] or null */, const std::vector<const float*>& base,
                 int threads);

// A layer that is set before the first iteration: to its means given the layers that stay and those that were set
// before it, with the fields from them scaled, which makes up for those that do not count yet.
struct Outset {
  int layer;
  double scale;
};

struct MeanField {
  int64_t n_cases;
  int64_t iterations;         // at most
  float tolerance;            // a case stops once no mean changes by more; 0: never
  float damping;              // share of the old mean that an update keeps
  float* changes;             // [n_cases], largest change of a mean in the case's last iteration; above a tolerance
                              // that is not 0 if and only if the case was not at rest after it
  int32_t* performed;         // [n_cases], iterations
  std::vector<Outset> start;  // all layers of the program, whose values may then hold anything; empty: values are given
};

// Runs a program on means instead of states: each update replaces the values of its layer, which are real, by the means
// given all other values. A case's result does not depend on the cases beside it. `interrupted()` is asked about every
// 100 ms from the calling thread; true ends the call with means and results undefined.
void mean_field(const Machine& machine, const Program& program, const std::vector<Values>& values,
                const MeanField& what, int threads, const std::function<bool()>& interrupted);

// out[n_chains] = energy at beta = 1.
void energy(double* out, const Machine& machine, const std::vector<Values>& values, int64_t n_chains, int threads);

// Integers B_q = round((bias - base) 2^bits) of every layer, whose sums over units that are on are exact.
struct GapBiases {
  std::vector<const int64_t*> biases;  // per layer [units]
  int bits;
  bool has_base;  // which shares the quadratic term of Gaussian layers
};

// out[n_chains] = E - E_base, by which the tempered energy beta E + (1 - beta) E_base grows with beta.
void gap(double* out, const Machine& machine, const GapBiases& biases, const std::vector<Values>& values,
         int64_t n_chains, int threads);

// Where the chains of every ladder are, and what has come of the swaps so far; updated in place.
struct Rungs {
  int32_t* rungs;       // [n_chains], in each run of n_rungs chains (a ladder) a permutation of 0 .. n_rungs - 1
  int64_t* attempts;    // [n_rungs - 1], += tries of each pair of rungs
  double* acceptances;  // [n_rungs - 1], += probabilities that they were taken
  uint8_t* heading;     // [n_chains], which end a chain was at last: 1 rung 0, 2 the last rung, 0 neither yet
  int64_t* trips;       // [n_chains], += arrivals at the last rung from rung 0
};

// One round of swaps between neighbouring rungs: pairs (0, 1), (2, 3).. if `round` is even, (1, 2), (3, 4).. if odd.
// Throws std::invalid_argument, before anything is changed, where `rungs` holds no permutations.
void swap(const Rungs& rungs, const double* gaps /* [n_chains] */, const float* betas /* [n_rungs] */, int64_t n_rungs,
          int64_t n_chains, uint64_t seed, uint32_t first_ladder, uint32_t round);

// Throws std::invalid_argument unless each run of n_rungs chains holds a permutation.
void check_rungs(const int32_t* rungs /* [n_chains] */, int64_t n_rungs, int64_t n_chains);

struct Temper {
  int64_t n_chains;
  int64_t n_rungs;
  int64_t n_rounds;          // of sweeps_per_round sweeps and then one round of swaps
  int64_t sweeps_per_round;  // at least 1
  uint64_t seed;
  uint32_t first_chain;  // a multiple of n_rungs
  uint32_t first_sweep;
  uint32_t first_round;
  const float* betas;              // [n_rungs]
  std::vector<const float*> base;  // as in Sweep
  GapBiases gap;
  std::vector<float*> means;  // as in Sweep: of the last sweep of all
  double* trace;              // [n_rounds, ladders, n_rungs], the gap on each rung before the swaps; or null
};

// Parallel tempering with a program that updates every layer by all of its couplings. States and rungs are worked on as
// copies and replaced together; callbacks and result are those of `sweep`, with rounds for sweeps.
int64_t temper(const Machine& machine, const Program& program, const std::vector<void*>& states, const Rungs& rungs,
               const Temper& what, int threads, const std::function<void(int64_t)>& progress,
               const std::function<bool()>& interrupted);

struct Anneal {
  int64_t n_chains;
  int64_t n_steps;
  uint64_t seed;
  uint32_t first_chain;
  uint32_t first_sweep;
  const float* betas;              // [n_steps + 1]
  std::vector<const float*> base;  // as in Sweep, but never empty
};

// Annealing: step k adds to log_weights[n_chains] what the log density of each chain's state gains from betas[k] to
// betas[k + 1], and then makes one sweep there. The layers of the program's first block are summed out of the
// densities; every coupling leads to them, and all updates are by all couplings of their layers. States and weights are
// replaced together; callbacks and result are those of `sweep`, with steps for sweeps.
int64_t anneal(const Machine& machine, const Program& program, const std::vector<void*>& states, double* log_weights,
               const Anneal& what, int threads, const std::function<void(int64_t)>& progress,
               const std::function<bool()>& interrupted);

// out[n_betas, n_chains] = -log of the sum of exp(-E_beta) over the units of the updated layers.
void free_energy(double* out, const Machine& machine, const Block& updates, const std::vector<Values>& values,
                 int64_t n_chains, const float* betas /* [n_betas] */, int64_t n_betas,
                 const std::vector<const float*>& base, int threads);

// out[n_lower, n_upper] = sum over chains of lower (transposed) times upper, chains added in order with one fma each.
void statistics(float* out, Values lower /* [n_chains, n_lower] */, int64_t n_lower,
                Values upper /* [n_chains, n_upper] */, int64_t n_upper, int64_t n_chains, int threads);

// What the gradient of an RBM is made from besides the rows themselves.
struct Phases {
  int64_t n_chains;
  const float* signs;          // [n_chains], factor of each row: minus its share of the data, or its share of the model
  const float* visible_means;  // [2, n_visible], of data and model
  const float* hidden_means;   // [2, n_hidden]
  const float* visible_offsets;  // [n_visible] and
  const float* hidden_offsets;   // [n_hidden], what centring subtracts; or both null
};

struct Gradient {
  float* weight;   // [n_visible, n_hidden]
  float* visible;  // [n_visible]
  float* hidden;   // [n_hidden]
};

// Model minus data, ordinary or centred: docs/numbers.md.
void gradient(const Gradient& out, const Phases& phases, Values visible /* [n_chains, n_visible] */, int64_t n_visible,
              const float* hidden /* [n_chains, n_hidden] */, int64_t n_hidden, int threads);

// out[n, units] = 1 where u <= p, with u counted by (unit, row, sweep, purpose).
void bernoulli(uint8_t* out, const float* probabilities /* [n, units] */, const int64_t* rows /* [n] */, int64_t n,
               int64_t units, uint64_t seed, uint32_t sweep, uint32_t layer_and_purpose, int threads);

// Largest |weight| of n; NaN or infinity where one weight is.
float largest_weight(const float* weights /* [n] */, int64_t n, int threads);

// out[n] = round(weights 2^fraction_bits), halves to even; the caller has made sure that all fit.
void quantise(int16_t* out, const float* weights /* [n] */, int64_t n, int fraction_bits, int threads);

// --- the processor ---------------------------------------------------------------------------------------------------

std::vector<std::string> compiled_isas();  // from the least to the most demanding
std::vector<std::string> usable_isas();    // those that this processor has
std::string isa();  // the one in use: the last usable, or BM_FAST_ISA; throws where that is unknown or absent

}  // namespace bm
