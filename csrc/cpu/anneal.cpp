// Annealing: log weights that grow by what densities gain from one inverse temperature to the next, and sweeps, in
// turn.
#include "cpu/run.h"

namespace bm {
namespace {

// Per layer, how the log density of its states grows with beta apart from couplings: biases minus those of the base.
class Slopes {
 public:
  Slopes(const Machine& machine, const std::vector<const float*>& base) {
    for (int i = 0; i < machine.n_layers(); i++) {
      const cpu::LayerView& layer = machine.layer(i);
      slopes_.emplace_back(layer.units);
      for (int32_t u = 0; u < layer.units; u++)
        slopes_[i][u] = static_cast<double>(layer.biases[u]) - static_cast<double>(base[i][u]);
      pointers_.push_back(slopes_[i].data());
    }
  }
  const double* const* data() const { return pointers_.data(); }

 private:
  std::vector<cpu::Array<double>> slopes_;
  std::vector<const double*> pointers_;
};

}  // namespace

int64_t anneal(const Machine& machine, const Program& program, const std::vector<void*>& states, double* log_weights,
               const Anneal& what, int threads, const std::function<void(int64_t)>& progress,
               const std::function<bool()>& interrupted) {
  const int64_t n_chains = what.n_chains;
  const std::vector<const uint8_t*> no_clamp(machine.n_layers());
  const std::vector<float*> no_means(machine.n_layers());
  const Sweep sweep{n_chains, what.n_steps, what.seed, what.first_chain, what.first_sweep,
                    nullptr,  what.base,    no_clamp,  no_means};
  const Slopes slopes(machine, what.base);
  std::vector<double> weights(log_weights, log_weights + n_chains);
  const cpu::AnnealView steps{what.betas, static_cast<int>(program.front().size()), slopes.data(), weights.data()};
  cpu::SweepRun run(machine, program, states, sweep, what.n_steps, {nullptr, &steps}, threads, interrupted);
  int64_t done = 0, kept = 0;  // steps that the copies hold, and the caller's arrays
  cpu::Round round;
  while (done < what.n_steps) {
    const int64_t n = std::min(what.n_steps - done, run.fitting());
    if (!run.run(what.first_sweep + static_cast<uint32_t>(done), n, false, nullptr)) break;
    done += n;
    if (done < what.n_steps && !round.is_over()) continue;
    run.write_back();
    std::copy(weights.begin(), weights.end(), log_weights);
    kept = done;
    round = {};
    const bool stop = run.interrupted();
    progress(kept);
    if (stop) break;
  }
  return kept;
}

}  // namespace bm
