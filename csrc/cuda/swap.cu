// Swaps of replica exchange. A block takes a ladder: its threads find the chain on each rung, then decide one pair
// each. States stay where they are. Probabilities are added by a second kernel, ladder by ladder: atomic additions
// would depend on when a block runs.
#include "cuda/swap.h"
#include "simt/simt.h"
#include "units.h"

namespace bm::cuda {
namespace {

constexpr int kThreads = 128;

SIMT_DEVICE uint32_t round_of(const Swap& p) { return p.round + (p.rounds_before ? *p.rounds_before : 0); }

SIMT_KERNEL void swap_kernel(SIMT_PARAMETER Swap p) {
  const int thread = static_cast<int>(simt::thread_x());
  const int64_t ladder = simt::block_x(), first = ladder * p.n_rungs;
  const uint32_t round = round_of(p);
  auto* chain_on = reinterpret_cast<int32_t*>(simt::dynamic_shared());
  for (int c = thread; c < p.n_rungs; c += kThreads) {
    const int32_t rung = p.rungs[first + c];
    chain_on[rung] = c;
    if (p.trace) p.trace[first + rung] = p.gaps[first + c];
  }
  simt::sync_block();  // the whole ladder is known
  for (int i = static_cast<int>(round % 2) + 2 * thread; i + 1 < p.n_rungs; i += 2 * kThreads) {
    const int64_t a = first + chain_on[i], b = first + chain_on[i + 1];
    uint32_t words[4] = {static_cast<uint32_t>(i) / 4, p.first_ladder + static_cast<uint32_t>(ladder), round,
                         units::layer_and_purpose(0, units::kSwap)};
    units::philox(words[0], words[1], words[2], words[3], p.seed);
    const uint32_t word = i % 4 < 2 ? (i % 2 ? words[1] : words[0]) : (i % 2 ? words[3] : words[2]);
    const double log_ratio =
        (static_cast<double>(p.betas[i]) - static_cast<double>(p.betas[i + 1])) * (p.gaps[a] - p.gaps[b]);
    p.probabilities[ladder * (p.n_rungs - 1) + i] = static_cast<double>(units::acceptance(log_ratio));
    if (!units::accept(log_ratio, word)) continue;
    p.rungs[a] = i + 1;
    p.rungs[b] = i;
  }
  simt::sync_block();  // every pair is decided
  for (int c = thread; c < p.n_rungs; c += kThreads) {
    const int64_t chain = first + c;
    const int32_t rung = p.rungs[chain];
    if (p.beta) p.beta[chain] = p.betas[rung];
    if (rung == p.n_rungs - 1) {
      p.trips[chain] += p.heading[chain] == 1;
      p.heading[chain] = 2;
    } else if (rung == 0) {
      p.heading[chain] = 1;
    }
  }
}

SIMT_KERNEL void tally_kernel(SIMT_PARAMETER Swap p) {
  const int64_t i = static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x();
  if (i + 1 >= p.n_rungs || static_cast<uint32_t>(i) % 2 != round_of(p) % 2) return;
  double sum = p.acceptances[i];
  for (int64_t ladder = 0; ladder < p.n_ladders; ladder++) sum += p.probabilities[ladder * (p.n_rungs - 1) + i];
  p.acceptances[i] = sum;
  p.attempts[i] += p.n_ladders;
}

}  // namespace

// --- launcher --------------------------------------------------------------------------------------------------------

void swap(const Swap& swap, void* stream) {
  if (swap.n_rungs < 1 || swap.n_rungs > kMaxRungs)
    throw std::invalid_argument("betas: expected 1 to " + std::to_string(kMaxRungs) + ", got " +
                                std::to_string(swap.n_rungs));
  simt::launch(swap_kernel, {static_cast<unsigned>(swap.n_ladders), 1, kThreads, swap.n_rungs * sizeof(int32_t)},
               stream, swap);
  simt::launch(tally_kernel, {(static_cast<unsigned>(swap.n_rungs) + kThreads - 1) / kThreads, 1, kThreads, 0}, stream,
               swap);
}

}  // namespace bm::cuda
