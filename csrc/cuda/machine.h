// The operations of csrc/ops.h on a GPU: a machine whose weights lie there in the order of the kernels, and the
// launches of each operation. All addresses are on the device. Nothing waits for the device unless it says so.
#pragma once

#include <functional>
#include <vector>

#include "cuda/hopper.h"
#include "ops.h"

namespace bm::cuda {

// Memory of the device. What a call takes is needed until its launches are done, what a machine takes as long as it is.
using Allocate = std::function<void*(int64_t bytes)>;

// Where a call works.
struct Place {
  void* stream;
  Allocate allocate;
};

// The weights of a coupling: W_q with their grid, or real ones, which a machine puts on a grid that it chooses itself.
struct CouplingSource {
  int lower, upper;
  const int16_t* integers;  // [units of lower, units of upper]; or null
  const float* weights;     // the same, where there are no integers
  float* grid;              // [1], 2^-f: given with integers, else written
};

// A machine on the device. Biases and precisions are used where they are; weights are copied, in the order of kernels.
class Machine {
 public:
  Machine(std::vector<LayerParameters> layers, std::vector<CouplingSource> couplings, const Place& place);

  // Copies the weights anew. Of real ones, refused[1] becomes 1 where one is not finite or beyond the largest grid.
  void refresh(uint32_t* refused, const Place& place) const;

  // Weights as inputs of one of the layers that a coupling joins.
  struct Direction {
    void* portable;         // see cuda/layout.h
    void* hopper;           // see cuda/hopper_layout.h; null where no kernel would read them
    hopper::Layout layout;  // of `hopper`
  };
  struct Coupling {
    CouplingSource source;
    Direction up, down;
    const Direction& to(const Input& input) const { return input.transposed ? down : up; }
  };

  const std::vector<LayerParameters>& layers() const { return layers_; }
  const std::vector<Coupling>& couplings() const { return couplings_; }

 private:
  Direction direction(int from, int to, bool is_alone, const Place& place) const;

  std::vector<LayerParameters> layers_;
  std::vector<Coupling> couplings_;
};

// As bm::sweep. Long calls wait for the device now and then, to tell progress and to ask whether they are interrupted;
// what is launched by then is still done. Inside a CUDA graph nothing waits.
// sweeps_before: [1], added to the number of each sweep, so that a graph can go on when it runs again; or null.
int64_t sweep(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
              const uint32_t* sweeps_before, const Place& place, const std::function<void(int64_t)>& progress,
              const std::function<bool()>& interrupted);

// Numbers on the device that are added to those of sweeps and rounds of swaps, so that a graph can go on when it runs
// again; or null.
struct Before {
  const uint32_t *sweeps, *rounds;  // [1]
};

// As bm::temper, with the waiting of `sweep`, but that biases and base are put on the grid of gaps here: what.gap is
// not read. beta[n_chains] is that of each chain's rung before and afterwards.
int64_t temper(const Machine& machine, const Program& program, const std::vector<void*>& states, const Rungs& rungs,
               float* beta, const Temper& what, const Before& before, const Place& place,
               const std::function<void(int64_t)>& progress, const std::function<bool()>& interrupted);

// As bm::layer_means.
void layer_means(float* out, const Machine& machine, const Update& update, const std::vector<Values>& values,
                 int64_t n_chains, const float* beta, const std::vector<const float*>& base, const Place& place);

// As bm::mean_field, but for the memory of each case, `performed` and `scratch`, which are 0 before. Cases that have
// settled cost little, yet the launches of all iterations are made: asking whether one is left would mean waiting.
struct MeanField {
  int64_t n_cases, iterations;
  float tolerance, damping;
  float* changes;       // [n_cases]
  uint32_t* performed;  // [n_cases]
  uint32_t* scratch;    // [2, n_cases]
};
void mean_field(const Machine& machine, const Program& program, const std::vector<Values>& values,
                const MeanField& what, const Place& place);

// As bm::energy; `out` is 0 before.
void energy(double* out, const Machine& machine, const std::vector<Values>& values, int64_t n_chains,
            const Place& place);

// As bm::gap, of the machine's biases and those of a base, per layer [units]; or empty: none.
void gap(double* out, const Machine& machine, const std::vector<const float*>& base, const std::vector<Values>& values,
         int64_t n_chains, const Place& place);

// As bm::free_energy; `out` is 0 before.
void free_energy(double* out, const Machine& machine, const Block& updates, const std::vector<Values>& values,
                 int64_t n_chains, const float* betas, int64_t n_betas, const std::vector<const float*>& base,
                 const Place& place);

// As bm::statistics.
void statistics(float* out, Values lower, int64_t n_lower, Values upper, int64_t n_upper, int64_t n_chains,
                const Place& place);

}  // namespace bm::cuda
