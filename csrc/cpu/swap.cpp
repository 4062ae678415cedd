// Replica exchange: gaps of energies, and the swaps that they decide.
#include <omp.h>

#include <algorithm>
#include <stdexcept>

#include "cpu/work.h"

namespace bm {
namespace {

// The chain on each rung of a ladder, counted within it.
void invert(int64_t* chain_on, const int32_t* rungs, int64_t n_rungs) {
  std::fill_n(chain_on, n_rungs, -1);
  for (int64_t c = 0; c < n_rungs; c++) {
    const int64_t rung = rungs[c];
    if (rung < 0 || rung >= n_rungs || chain_on[rung] >= 0)
      throw std::invalid_argument("rungs: expected a permutation of 0 to " + std::to_string(n_rungs - 1) +
                                  " in each ladder");
    chain_on[rung] = c;
  }
}

void note_ends(const Rungs& rungs, int64_t chain, int64_t n_rungs) {
  if (rungs.rungs[chain] == n_rungs - 1) {
    rungs.trips[chain] += rungs.heading[chain] == 1;
    rungs.heading[chain] = 2;
  } else if (rungs.rungs[chain] == 0) {
    rungs.heading[chain] = 1;
  }
}

}  // namespace

void gap(double* out, const Machine& machine, const GapBiases& biases, const std::vector<Values>& values,
         int64_t n_chains, int threads) {
  std::vector<cpu::ValuesView> states;
  for (const Values& v : values) states.push_back({v.data, v.real});
  Block upward;
  for (int i = 0; i < machine.n_couplings(); i++) upward.push_back({machine.coupling(i).upper, {{i, false, 1.}}});
  cpu::ProgramPlan plan(machine, {upward});
  threads = cpu::useful_threads(cpu::multiply_adds(plan.view(), n_chains), threads);
  cpu::check_values(machine, states.data(), std::vector<bool>(machine.n_layers(), true), n_chains, threads);
  plan.lay_out(std::vector<bool>(machine.n_layers()), threads);
  const cpu::ThreadScratch scratch(machine, threads);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n_chains, t, threads);
    cpu::kernels().gap(out, machine.view(), plan.view(), {biases.biases.data(), biases.bits, biases.has_base},
                       states.data(), nullptr, p.first, p.n, scratch[t]);
  }
}

void check_rungs(const int32_t* rungs, int64_t n_rungs, int64_t n_chains) {
  std::vector<int64_t> chain_on(n_rungs);
  for (int64_t first = 0; first < n_chains; first += n_rungs) invert(chain_on.data(), rungs + first, n_rungs);
}

void swap(const Rungs& rungs, const double* gaps, const float* betas, int64_t n_rungs, int64_t n_chains, uint64_t seed,
          uint32_t first_ladder, uint32_t round) {
  check_rungs(rungs.rungs, n_rungs, n_chains);
  std::vector<int64_t> chain_on(n_rungs);
  const uint32_t layer_and_purpose = units::layer_and_purpose(0, units::kSwap);
  for (int64_t first = 0, ladder = first_ladder; first < n_chains; first += n_rungs, ladder++) {
    invert(chain_on.data(), rungs.rungs + first, n_rungs);
    for (int64_t group = 0; group < n_rungs - 1; group += 4) {
      uint32_t words[4] = {static_cast<uint32_t>(group / 4), static_cast<uint32_t>(ladder), round, layer_and_purpose};
      units::philox(words[0], words[1], words[2], words[3], seed);
      for (int64_t i = group + round % 2; i < std::min(group + 4, n_rungs - 1); i += 2) {
        const int64_t a = first + chain_on[i], b = first + chain_on[i + 1];
        const double log_ratio = (static_cast<double>(betas[i]) - betas[i + 1]) * (gaps[a] - gaps[b]);
        rungs.attempts[i]++;
        rungs.acceptances[i] += units::acceptance(log_ratio);
        if (units::accept(log_ratio, words[i - group])) std::swap(rungs.rungs[a], rungs.rungs[b]);
      }
    }
    for (int64_t c = first; c < first + n_rungs; c++) note_ends(rungs, c, n_rungs);
  }
}

}  // namespace bm
