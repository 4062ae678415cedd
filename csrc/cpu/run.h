// Sweeps of many chains on copies of their states: what the drivers of long runs share.
#pragma once

#include "cpu/work.h"

namespace bm::cpu {

constexpr double kRoundSeconds = 0.075;  // between updates of the caller's states

class SweepRun {
 public:
  // `gap` is null where `run` is to give no energy gaps; then every layer must be updated, by all of its couplings.
  // `what`, `states` and `gap` must outlive the run. n_sweeps: what.n_sweeps, or more where there are many calls of
  // `run`.
  SweepRun(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
           int64_t n_sweeps, const GapView* gap, int threads, const std::function<bool()>& interrupted);
  ~SweepRun();

  // Runs sweeps on the copies and writes their energy gaps, unless null, to `gaps` [n_chains]; with_means: and the
  // means of the last sweep. False where it gave up, with the copies then undefined.
  bool run(uint32_t first_sweep, int64_t n_sweeps, bool with_means, double* gaps);

  // The copies replace the caller's states.
  void write_back();

  // Asks whether the user has pressed Ctrl-C, unless that has just been done.
  bool interrupted();

  // Sweeps that fit a round.
  int64_t fitting() const;

 private:
  struct State;
  std::unique_ptr<State> s_;
};

}  // namespace bm::cpu
