// Parallel tempering: sweeps of every chain at the inverse temperature of its rung, and swaps of rungs, in turn.
#include "cpu/run.h"

namespace bm {
namespace {

// Rungs as they are within a run; the caller's are replaced together with the states.
class RungsCopy {
 public:
  RungsCopy(const Rungs& original, int64_t n_rungs, int64_t n_chains)
      : original_(original),
        rungs_(original.rungs, original.rungs + n_chains),
        attempts_(original.attempts, original.attempts + n_rungs - 1),
        acceptances_(original.acceptances, original.acceptances + n_rungs - 1),
        heading_(original.heading, original.heading + n_chains),
        trips_(original.trips, original.trips + n_chains) {}

  Rungs view() { return {rungs_.data(), attempts_.data(), acceptances_.data(), heading_.data(), trips_.data()}; }

  void write_back() const {
    std::copy(rungs_.begin(), rungs_.end(), original_.rungs);
    std::copy(attempts_.begin(), attempts_.end(), original_.attempts);
    std::copy(acceptances_.begin(), acceptances_.end(), original_.acceptances);
    std::copy(heading_.begin(), heading_.end(), original_.heading);
    std::copy(trips_.begin(), trips_.end(), original_.trips);
  }

 private:
  const Rungs& original_;
  std::vector<int32_t> rungs_;
  std::vector<int64_t> attempts_;
  std::vector<double> acceptances_;
  std::vector<uint8_t> heading_;
  std::vector<int64_t> trips_;
};

}  // namespace

int64_t temper(const Machine& machine, const Program& program, const std::vector<void*>& states, const Rungs& original,
               const Temper& what, int threads, const std::function<void(int64_t)>& progress,
               const std::function<bool()>& interrupted) {
  const int64_t n_chains = what.n_chains, n_rungs = what.n_rungs;
  check_rungs(original.rungs, n_rungs, n_chains);
  RungsCopy copy(original, n_rungs, n_chains);
  const Rungs rungs = copy.view();
  std::vector<float> beta(n_chains);
  const auto take_rungs = [&] {
    for (int64_t c = 0; c < n_chains; c++) beta[c] = what.betas[rungs.rungs[c]];
  };
  take_rungs();
  std::vector<double> gaps(n_chains);
  const cpu::GapView gap = {what.gap.biases.data(), what.gap.bits, what.gap.has_base};
  const std::vector<const uint8_t*> no_clamp(machine.n_layers());
  const Sweep sweep{n_chains,         what.sweeps_per_round, what.seed, what.first_chain,
                    what.first_sweep, beta.data(),           what.base, no_clamp,
                    what.means};
  cpu::SweepRun run(machine, program, states, sweep, what.n_rounds * what.sweeps_per_round, {&gap}, threads,
                    interrupted);
  const uint32_t first_ladder = static_cast<uint32_t>(what.first_chain / n_rungs);
  int64_t done = 0, kept = 0;  // rounds that the copies hold, and the caller's arrays
  cpu::Round round;
  while (done < what.n_rounds) {
    take_rungs();
    const auto first_sweep = what.first_sweep + static_cast<uint32_t>(done * what.sweeps_per_round);
    if (!run.run(first_sweep, what.sweeps_per_round, done + 1 == what.n_rounds, gaps.data())) break;
    if (what.trace)
      for (int64_t c = 0; c < n_chains; c++)
        what.trace[done * n_chains + c / n_rungs * n_rungs + rungs.rungs[c]] = gaps[c];
    swap(rungs, gaps.data(), what.betas, n_rungs, n_chains, what.seed, first_ladder,
         what.first_round + static_cast<uint32_t>(done));
    done++;
    if (done < what.n_rounds && !round.is_over()) continue;
    run.write_back();
    copy.write_back();
    kept = done;
    round = {};
    const bool stop = run.interrupted();
    progress(kept);
    if (stop) break;
  }
  return kept;
}

}  // namespace bm
