// The driver of sweeps: rounds of bounded time on copies of the states, threads over chains, and a way to stop.
#include <omp.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "cpu/lookup_choice.h"
#include "cpu/run.h"
#include "cpu/stop.h"

namespace bm {
namespace cpu {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kSlowestRate = 1e9;  // multiply-adds per second that the first round may count on
constexpr int64_t kGrain = 64;        // chains at which parts are cut, where there are enough

// Kernels are chosen when a call begins, and again after one sweep, two, four and so on, as states change; while so
// many times as many sweeps follow, as sums that are kept from then on begin with one sweep in full.
constexpr int64_t kFirstLook = 1, kFollowing = 2;
constexpr double kKeptShare = 0.8;               // of the rows that are on: sums are kept where fewer flip
constexpr int64_t kMostKept = int64_t{1} << 28;  // bytes

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

bool is_binary(const Machine& machine) {
  for (int i = 0; i < machine.n_layers(); i++)
    if (machine.layer(i).kind == Kind::kGaussian) return false;
  return true;
}

double highest_beta(const Sweep& what) {
  return what.beta ? std::max(0.f, *std::max_element(what.beta, what.beta + what.n_chains)) : 1.;
}

Outlook outlook(const Machine& machine, const Sweep& what, const std::vector<double>& on, std::vector<bool> is_many) {
  Outlook outlook = {std::move(is_many), on, highest_beta(what), 0, 0};
  for (int64_t c = 0; what.beta && !what.base.empty() && c < what.n_chains; c++)
    outlook.most_rest = std::max(outlook.most_rest, std::abs(1 - static_cast<double>(what.beta[c])));
  for (size_t i = 0; i < what.base.size(); i++)
    for (int32_t u = 0; u < machine.layer(static_cast<int>(i)).units; u++)
      outlook.most_base = std::max(outlook.most_base, std::abs(static_cast<double>(what.base[i][u])));
  return outlook;
}

// The states of some chains as they were a sweep ago.
class Before {
 public:
  Before(const Machine& machine, const ValuesView* values, int64_t n_chains) {
    for (int i = 0; i < machine.n_layers(); i++) {
      const auto* states = static_cast<const uint8_t*>(values[i].data);
      const int64_t n = values[i].real ? 0 : std::min(n_chains, kSampleChains) * machine.layer(i).units;
      states_.emplace_back(states, states + n);
    }
  }
  // Per layer: share of its binary units that have another state now; 0 for a real one.
  std::vector<double> shares_flipped(const ValuesView* values) const {
    std::vector<double> shares;
    for (size_t i = 0; i < states_.size(); i++) {
      const std::vector<uint8_t>& before = states_[i];
      const auto* now = static_cast<const uint8_t*>(values[i].data);
      int32_t flipped = 0;  // sums of differences of bytes have an instruction
      for (size_t k = 0; k < before.size(); k++) flipped += std::abs(before[k] - now[k]);
      shares.push_back(before.empty() ? 0. : static_cast<double>(flipped) / static_cast<double>(before.size()));
    }
    return shares;
  }

 private:
  std::vector<std::vector<uint8_t>> states_;
};

}  // namespace

struct SweepRun::State {
  State(const Machine& a_machine, const Program& program, const std::vector<void*>& states, const Sweep& a_what,
        int64_t most_sweeps, const Along& is_along, int most_threads, const std::function<bool()>& interrupted)
      : machine(a_machine),
        what(a_what),
        along(is_along),
        plan(machine, program),
        work(multiply_adds(plan.view(), what.n_chains)),
        threads(useful_threads(work * static_cast<double>(most_sweeps), most_threads)),
        copies(machine, states, what.n_chains),
        scratch(machine, threads, along.gap ? most_inputs(plan.view()) : 0),
        base(machine, what.base),
        no_means(machine.n_layers()),
        n_sweeps(most_sweeps),
        stops(threads, {&stop, nullptr, Clock::now()}),
        seconds_per_sweep(work / kSlowestRate / threads) {
    if (along.gap && is_binary(machine)) interactions = Array<int64_t>(what.n_chains * machine.n_couplings());
    view = {copies.states(),
            0,
            what.seed,
            what.first_chain,
            what.first_sweep,
            what.beta,
            base.data(),
            what.clamp.data(),
            no_means.data(),
            along.gap,
            interactions.size() ? interactions.data() : nullptr,
            machine.n_couplings(),
            along.anneal ? &annealing : nullptr};
    if (along.anneal) annealing = *along.anneal;
    stops[0].interrupted = &interrupted;
    check_values(machine, copies.values(), std::vector<bool>(machine.n_layers(), true), what.n_chains, threads);
    const std::vector<double> on = shares_on(machine, copies.values(), what.n_chains);
    choose(on, on);
  }

  // Which kernels run from here on, given the shares of units that are on and of rows that would have to be added.
  void choose(const std::vector<double>& on, const std::vector<double>& added) {
    unpack();
    lookup_parts.clear();
    const int64_t n_chains = what.n_chains;
    plan.lay_out(dense_layers(added, n_chains, threads), threads);
    if (!along.anneal) plan.round_sums(outlook(machine, what, on, rounded_layers(added, n_chains, threads)), threads);
    // Sweeps that tables would serve: those up to the first look, or all that are left and, as calls are likely to
    // follow that are like those before, as many as the machine has seen.
    const int64_t sure = done == 0 && looks() ? kFirstLook : n_sweeps - done + machine.chain_sweeps / n_chains;
    const int64_t per_gap = along.gap ? what.n_sweeps : 0;
    const Workload workload = {n_chains, sure, threads, per_gap, highest_beta(what)};
    if (const auto tables = along.anneal ? std::nullopt : choose_lookup(machine, plan.view(), added, workload)) {
      for (int t = 0; t < threads; t++) {
        const Part p = chains(t);
        lookup_parts.push_back(lookup_part(machine, plan.view(), view, p.first, p.n, *tables, threads));
        lookup_pack(*lookup_parts[t]);
      }
      return;
    }
    if (!along.gap || energies) return;
    Block upward;
    for (int i = 0; i < machine.n_couplings(); i++) upward.push_back({machine.coupling(i).upper, {{i, false, 1.}}});
    energies = std::make_unique<ProgramPlan>(machine, Program{upward});
    energies->lay_out(std::vector<bool>(machine.n_layers()), threads);
  }

  // The same, given the states of some chains before the last sweep: of sums that are kept, flips alone change any.
  void choose(const Before& before) {
    const std::vector<double> on = shares_on(machine, copies.values(), what.n_chains);
    std::vector<double> added = before.shares_flipped(copies.values());
    for (size_t i = 0; i < on.size(); i++) added[i] = std::min(added[i], on[i]);
    keeps = share_of_rows(plan.view(), added) < kKeptShare * share_of_rows(plan.view(), on) && take_kept();
    choose(on, keeps ? added : on);
  }

  // Memory for what is kept, the first time that it is wanted; false where that is too much or cannot be had.
  bool take_kept() {
    if (kept.size() > 0) return true;
    const int64_t bytes = what.n_chains * machine.kept_bytes();
    if (bytes > kMostKept) return false;
    try {
      kept = Array<uint8_t>(static_cast<size_t>(bytes));
    } catch (const std::bad_alloc&) {
      return false;
    }
    std::memset(kept.data(), 0, kept.size());
    return true;
  }

  void unpack() {
    for (const auto& lookup : lookup_parts) lookup_unpack(*lookup, plan.view());
  }

  bool run(uint32_t first_sweep, int64_t n, bool with_means, double* gaps) {
    view.n_sweeps = n;
    view.first_sweep = first_sweep;
    view.means = with_means ? what.means.data() : no_means.data();
    if (along.anneal) annealing.betas = along.anneal->betas + (first_sweep - what.first_sweep);
    const auto start = Clock::now();
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int t = 0; t < threads; t++) run_part(t, gaps);
    seconds_per_sweep = Seconds(Clock::now() - start).count() / static_cast<double>(n);
    done += n;
    if (!along.anneal && !keeps) machine.chain_sweeps += n * what.n_chains;
    return !stop.load();
  }

  // Not in tempering: some rungs are cold and some hot, and sums that are kept pay for the former alone.
  bool looks() const { return !along.gap && n_sweeps - next_look >= kFollowing * next_look; }

  Part chains(int thread) const {
    return part(what.n_chains, thread, threads, what.n_chains >= kGrain * threads ? kGrain : 1);
  }

  void run_part(int t, double* gaps) {  // no exception may leave: memory has been taken before
    const StopView ask = {StopState::ask, &stops[t]};
    if (!lookup_parts.empty()) {
      lookup_sweep(*lookup_parts[t], plan.view(), gaps, ask);
      return;
    }
    const Kernels& k = kernels();
    const auto [first, n] = chains(t);
    Scratch own = scratch[t];
    if (keeps) own.kept = {kept.data(), machine.kept_bytes()};
    if (k.sweep(machine.view(), plan.view(), view, copies.values(), first, n, own, ask) && gaps)
      k.gap(gaps, machine.view(), energies->view(), *view.gap, copies.values(), view.interactions, first, n,
            scratch[t]);
  }

  const Machine& machine;
  const Sweep& what;
  const Along along;
  ProgramPlan plan;
  double work;  // of one sweep
  int threads;
  StateCopies copies;
  ThreadScratch scratch;
  PaddedBase base;
  std::vector<float*> no_means;
  AnnealView annealing{};
  SweepView view;
  int64_t n_sweeps, done = 0;
  int64_t next_look = kFirstLook;                         // sweeps that are done when kernels are chosen again
  std::vector<std::shared_ptr<LookupPart>> lookup_parts;  // empty where other kernels run
  std::unique_ptr<ProgramPlan> energies;
  Array<int64_t> interactions;  // of all chains; empty where no gaps are wanted, or some layer is real
  bool keeps = false;
  Array<uint8_t> kept;  // empty until it is wanted
  std::atomic<bool> stop{false};
  std::vector<StopState> stops;
  double seconds_per_sweep;
};

SweepRun::SweepRun(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
                   int64_t n_sweeps, const Along& along, int threads, const std::function<bool()>& interrupted)
    : s_(std::make_unique<State>(machine, program, states, what, n_sweeps, along, threads, interrupted)) {}

SweepRun::~SweepRun() = default;

bool SweepRun::run(uint32_t first_sweep, int64_t n_sweeps, bool with_means, double* gaps) {
  State& s = *s_;
  while (s.looks() && s.done + n_sweeps >= s.next_look) {
    const int64_t n = s.next_look - s.done;
    if (n > 1 && !s.run(first_sweep, n - 1, false, nullptr)) return false;
    s.unpack();
    const Before before(s.machine, s.copies.values(), s.what.n_chains);
    const bool is_last = n == n_sweeps;
    if (!s.run(first_sweep + static_cast<uint32_t>(n - 1), 1, with_means && is_last, is_last ? gaps : nullptr))
      return false;
    s.unpack();
    s.choose(before);
    s.next_look *= 2;
    if (is_last) return true;
    first_sweep += static_cast<uint32_t>(n);
    n_sweeps -= n;
  }
  return s.run(first_sweep, n_sweeps, with_means, gaps);
}

void SweepRun::write_back() {
  s_->unpack();
  s_->copies.write_back(s_->plan.view());
}

bool SweepRun::interrupted() { return StopState::ask(&s_->stops[0]); }

int64_t SweepRun::fitting() const {
  return static_cast<int64_t>(std::clamp(kRoundSeconds / std::max(s_->seconds_per_sweep, 1e-9), 1., 1e9));
}

}  // namespace cpu

int64_t sweep(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
              int threads, const std::function<void(int64_t)>& progress, const std::function<bool()>& interrupted) {
  cpu::SweepRun run(machine, program, states, what, what.n_sweeps, {}, threads, interrupted);
  int64_t done = 0;
  while (done < what.n_sweeps) {
    const int64_t n = std::min(what.n_sweeps - done, run.fitting());
    if (!run.run(what.first_sweep + static_cast<uint32_t>(done), n, done + n == what.n_sweeps, nullptr)) break;
    run.write_back();
    done += n;
    const bool stop = run.interrupted();  // a round of many short sweeps may ask less often
    progress(done);
    if (stop) break;
  }
  return done;
}

}  // namespace bm
