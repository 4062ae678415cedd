// Sweeps of many chains on copies of their states: what the drivers of long runs share.
#pragma once

#include <chrono>

#include "cpu/work.h"

namespace bm::cpu {

constexpr double kRoundSeconds = 0.075;  // between updates of the caller's states

// One such round, begun when it is made.
class Round {
 public:
  bool is_over() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count() >= kRoundSeconds;
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// What is measured on the way.
struct Along {
  const GapView* gap = nullptr;
  const AnnealView* anneal = nullptr;
};

class SweepRun {
 public:
  // `along` is what is measured on the way, if anything: energy gaps take a program that updates every layer by all of
  // its couplings. `what`, `states` and `along` must outlive the run. n_sweeps: what.n_sweeps, or more where there are
  // many calls of `run`.
  SweepRun(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
           int64_t n_sweeps, const Along& along, int threads, const std::function<bool()>& interrupted);
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
