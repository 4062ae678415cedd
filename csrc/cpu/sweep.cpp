// The driver of sweeps: rounds of bounded time on copies of the states, threads over chains, and a way to stop.
#include <omp.h>

#include <atomic>
#include <chrono>
#include <cstring>

#include "cpu/lookup.h"
#include "cpu/work.h"

namespace bm {
namespace cpu {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kRoundSeconds = 0.075;  // between updates of the caller's states
constexpr double kPollSeconds = 0.1;     // between questions whether the user has pressed Ctrl-C
constexpr double kSlowestRate = 1e9;     // multiply-adds per second that the first round may count on
constexpr int64_t kGrain = 64;           // chains at which parts are cut, where there are enough

// One per thread: kernels ask it; that of the calling thread polls.
struct StopState {
  std::atomic<bool>* stop;
  const std::function<bool()>* interrupted;  // null in other threads
  Clock::time_point last_poll;

  static bool ask(void* context) {
    auto& self = *static_cast<StopState*>(context);
    if (self.interrupted && Seconds(Clock::now() - self.last_poll).count() > kPollSeconds) {
      if ((*self.interrupted)()) self.stop->store(true, std::memory_order_relaxed);
      self.last_poll = Clock::now();
    }
    return self.stop->load(std::memory_order_relaxed);
  }
};

// Copies of the states of all layers, as bytes.
class StateCopies {
 public:
  StateCopies(const Machine& machine, const std::vector<void*>& states, int64_t n_chains) : originals_(states) {
    for (int i = 0; i < machine.n_layers(); i++) {
      const bool real = machine.layer(i).kind == Kind::kGaussian;
      copies_.emplace_back(n_chains * machine.layer(i).units * (real ? sizeof(float) : 1));
      std::memcpy(copies_[i].data(), states[i], copies_[i].size());
      pointers_.push_back(copies_[i].data());
      values_.push_back({copies_[i].data(), real});
    }
  }
  void write_back(const ProgramView& program) const {
    for (int i = 0; i < program.n_updates; i++) {
      const int layer = program.updates[i].layer;
      std::memcpy(originals_[layer], copies_[layer].data(), copies_[layer].size());
    }
  }
  void* const* states() const { return pointers_.data(); }
  const ValuesView* values() const { return values_.data(); }

 private:
  const std::vector<void*>& originals_;
  std::vector<Array<uint8_t>> copies_;
  std::vector<void*> pointers_;
  std::vector<ValuesView> values_;
};

// Building the tables takes as long as the other kernels need for some hundred chains, and fetching them in each sweep
// as long as the dense kernel needs for about 72.
bool lookup_pays(const Machine& machine, const ProgramView& program, int64_t n_chains, int64_t n_sweeps, int threads) {
  constexpr int64_t kMostBytes = int64_t{1} << 31;  // of tables
  if (!lookup_suits(machine, program) || lookup_bytes(machine) > kMostBytes) return false;
  constexpr int64_t kFewestChains = 72, kFewestUpdates = 1024;  // chains of a thread; chains times sweeps
  return n_chains >= kFewestChains * threads && (machine.has_lookup_tables || n_chains * n_sweeps >= kFewestUpdates);
}

}  // namespace
}  // namespace cpu

int64_t sweep(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
              int threads, const std::function<void(int64_t)>& progress, const std::function<bool()>& interrupted) {
  using namespace cpu;
  ProgramPlan plan(machine, program);
  const double work = multiply_adds(plan.view(), what.n_chains);  // of one sweep
  threads = useful_threads(work * static_cast<double>(what.n_sweeps), threads);
  const StateCopies copies(machine, states, what.n_chains);
  check_values(machine, copies.values(), std::vector<bool>(machine.n_layers(), true), what.n_chains, threads);
  const ThreadScratch scratch(machine, threads);
  const PaddedBase base(machine, what.base);
  const std::vector<float*> no_means(machine.n_layers());
  SweepView view{copies.states(), 0,           what.seed,         what.first_chain, what.first_sweep,
                 what.beta,       base.data(), what.clamp.data(), no_means.data()};

  const Kernels& k = kernels();
  const int64_t grain = what.n_chains >= kGrain * threads ? kGrain : 1;
  const bool by_lookup =
      lookup_pays(machine, plan.view(), what.n_chains, what.n_sweeps, threads) && lookup_prepare(machine, threads);
  std::vector<std::shared_ptr<LookupPart>> lookup_parts;
  if (by_lookup) {
    for (int t = 0; t < threads; t++) {
      const Part p = part(what.n_chains, t, threads, grain);
      lookup_parts.push_back(lookup_part(machine, view, p.first, p.n));
    }
  } else {
    plan.lay_out(dense_layers(machine, copies.values(), what.n_chains, threads), threads);
  }
  std::atomic<bool> stop{false};
  std::vector<StopState> stops(threads, {&stop, nullptr, Clock::now()});
  stops[0].interrupted = &interrupted;

  double seconds_per_sweep = work / kSlowestRate / threads;
  int64_t done = 0;
  while (done < what.n_sweeps) {
    const double fit = std::max(1., kRoundSeconds / std::max(seconds_per_sweep, 1e-9));
    view.n_sweeps = static_cast<int64_t>(std::min(static_cast<double>(what.n_sweeps - done), fit));
    view.first_sweep = what.first_sweep + static_cast<uint32_t>(done);
    if (done + view.n_sweeps == what.n_sweeps) view.means = what.means.data();
    const auto start = Clock::now();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) {  // no exception may leave: memory has been taken before
      const Part p = part(what.n_chains, t, threads, grain);
      const StopView ask = {StopState::ask, &stops[t]};
      if (by_lookup) {
        lookup_sweep(*lookup_parts[t], plan.view(), ask);
      } else {
        k.sweep(machine.view(), plan.view(), view, copies.values(), p.first, p.n, scratch[t], ask);
      }
    }
    if (stop.load()) break;
    copies.write_back(plan.view());
    done += view.n_sweeps;
    seconds_per_sweep = Seconds(Clock::now() - start).count() / static_cast<double>(view.n_sweeps);
    StopState::ask(&stops[0]);  // a round of many short sweeps may ask less often
    progress(done);
    if (stop.load()) break;
  }
  return done;
}

}  // namespace bm
