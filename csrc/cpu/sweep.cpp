// The driver of sweeps: rounds of bounded time on copies of the states, threads over chains, and a way to stop.
#include <omp.h>

#include <chrono>
#include <cstring>
#include <optional>

#include "cpu/lookup.h"
#include "cpu/run.h"
#include "cpu/stop.h"

namespace bm {
namespace cpu {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr double kSlowestRate = 1e9;  // multiply-adds per second that the first round may count on
constexpr int64_t kGrain = 64;        // chains at which parts are cut, where there are enough

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

// Tables in registers serve one block of chains: they cost the same for all chains of a register and whatever the
// states are, so that the former must be many and the latter not mostly zeros.
bool registers_pay(const Machine& machine, const ProgramView& program, const ValuesView* values, int64_t n_chains,
                   int threads) {
  constexpr int64_t kMostChains = 64, kTogether = 32;  // chains of a thread, of a register
  const int64_t each = (n_chains + threads - 1) / threads, lanes = (each + kTogether - 1) / kTogether * kTogether;
  if (each > kMostChains || 8 * each < 7 * lanes) return false;
  const std::vector<bool> is_on = mostly_on(machine, values, n_chains);
  for (int i = 0; i < program.n_updates; i++)
    for (int j = 0; j < program.updates[i].n_inputs; j++)
      if (const int source = program.updates[i].inputs[j].layer;
          !is_on[source] && machine.layer(source).kind != Kind::kSoftmax)  // of these one unit alone is on, of few
        return false;
  return true;
}

// Of the states that a sweep reads, one for each multiply-add, the share that is 1.
double share_on(const Machine& machine, const ProgramView& program, const ValuesView* values, int64_t n_chains) {
  const std::vector<double> shares = shares_on(machine, values, n_chains);
  double on = 0, all = 0;
  for (int i = 0; i < program.n_updates; i++)
    for (int j = 0; j < program.updates[i].n_inputs; j++) {
      const InputView& input = program.updates[i].inputs[j];
      const double products = static_cast<double>(input.weights.inputs) * input.weights.outputs;
      on += products * shares[input.layer];
      all += products;
    }
  return on / all;
}

// Building the tables takes as long as the other kernels need for some hundred chains, and fetching them in each sweep
// as long as the dense kernel needs for about 72; adding rows takes less the fewer states are 1, and with fewer than
// kFewestOnes always less than tables. Measured: docs/kernels.md.
bool tables_pay(const Machine& machine, const ProgramView& program, const ValuesView* values, int64_t n_chains,
                int64_t n_sweeps, int threads) {
  constexpr int64_t kMostBytes = int64_t{1} << 31;
  constexpr int64_t kFewestChains = 72, kFewestUpdates = 1024;  // chains of a thread; chains times sweeps
  constexpr double kFewestOnes = 0.18, kDense = 0.32;           // from which on rows cost what the dense kernel does
  if (n_chains < kFewestChains * threads || lookup_bytes(machine) > kMostBytes) return false;
  if (!machine.has_lookup_tables && n_chains * n_sweeps < kFewestUpdates) return false;
  const double share = share_on(machine, program, values, n_chains);
  return share >= kFewestOnes &&
         static_cast<double>(n_chains) * std::min(1., share / kDense) >= static_cast<double>(kFewestChains * threads);
}

// Which tables the lookup kernel takes, if it is to run; those of the machine are then there.
std::optional<LookupTablesIn> choose_lookup(const Machine& machine, const ProgramView& program,
                                            const ValuesView* values, int64_t n_chains, int64_t n_sweeps, int threads) {
  if (!lookup_suits(machine, program)) return {};
  if (registers_pay(machine, program, values, n_chains, threads)) return LookupTablesIn::kRegisters;
  if (tables_pay(machine, program, values, n_chains, n_sweeps, threads) && lookup_prepare(machine, threads))
    return LookupTablesIn::kMachine;
  return {};
}

}  // namespace

struct SweepRun::State {
  State(const Machine& a_machine, const Program& program, const std::vector<void*>& states, const Sweep& a_what,
        int64_t n_sweeps, const Along& along, int most_threads, const std::function<bool()>& interrupted)
      : machine(a_machine),
        what(a_what),
        plan(machine, program),
        work(multiply_adds(plan.view(), what.n_chains)),
        threads(useful_threads(work * static_cast<double>(n_sweeps), most_threads)),
        copies(machine, states, what.n_chains),
        scratch(machine, threads),
        base(machine, what.base),
        no_means(machine.n_layers()),
        stops(threads, {&stop, nullptr, Clock::now()}),
        seconds_per_sweep(work / kSlowestRate / threads) {
    view = {copies.states(),  0,         what.seed,   what.first_chain,
            what.first_sweep, what.beta, base.data(), what.clamp.data(),
            no_means.data(),  along.gap, along.anneal};
    stops[0].interrupted = &interrupted;
    check_values(machine, copies.values(), std::vector<bool>(machine.n_layers(), true), what.n_chains, threads);
    if (along.anneal) return;  // planned for each call of `run`
    if (const auto tables = choose_lookup(machine, plan.view(), copies.values(), what.n_chains, n_sweeps, threads)) {
      for (int t = 0; t < threads; t++) {
        const Part p = chains(t);
        lookup_parts.push_back(lookup_part(machine, plan.view(), view, p.first, p.n, *tables, threads));
        lookup_pack(*lookup_parts[t]);
      }
      return;
    }
    plan.lay_out(dense_layers(machine, copies.values(), what.n_chains, threads), threads);
    if (!along.gap) return;
    Block upward;
    for (int i = 0; i < machine.n_couplings(); i++) upward.push_back({machine.coupling(i).upper, {{i, false, 1.}}});
    energies = std::make_unique<ProgramPlan>(machine, Program{upward});
    energies->lay_out(std::vector<bool>(machine.n_layers()), threads);
  }

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
    if (k.sweep(machine.view(), plan.view(), view, copies.values(), first, n, scratch[t], ask) && gaps)
      k.gap(gaps, machine.view(), energies->view(), *view.gap, copies.values(), first, n, scratch[t]);
  }

  const Machine& machine;
  const Sweep& what;
  ProgramPlan plan;
  double work;  // of one sweep
  int threads;
  StateCopies copies;
  ThreadScratch scratch;
  PaddedBase base;
  std::vector<float*> no_means;
  SweepView view;
  std::vector<std::shared_ptr<LookupPart>> lookup_parts;  // empty where other kernels run
  std::unique_ptr<ProgramPlan> energies;
  std::atomic<bool> stop{false};
  std::vector<StopState> stops;
  double seconds_per_sweep;
};

SweepRun::SweepRun(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
                   int64_t n_sweeps, const Along& along, int threads, const std::function<bool()>& interrupted)
    : s_(std::make_unique<State>(machine, program, states, what, n_sweeps, along, threads, interrupted)) {}

SweepRun::~SweepRun() = default;

bool SweepRun::run(uint32_t first_sweep, int64_t n_sweeps, bool with_means, double* gaps) {
  if (s_->view.anneal)
    s_->plan.lay_out(dense_layers(s_->machine, s_->copies.values(), s_->what.n_chains, s_->threads), s_->threads);
  s_->view.n_sweeps = n_sweeps;
  s_->view.first_sweep = first_sweep;
  s_->view.means = with_means ? s_->what.means.data() : s_->no_means.data();
  const auto start = Clock::now();
#pragma omp parallel for num_threads(s_->threads) schedule(static, 1)
  for (int t = 0; t < s_->threads; t++) s_->run_part(t, gaps);
  s_->seconds_per_sweep = Seconds(Clock::now() - start).count() / static_cast<double>(n_sweeps);
  return !s_->stop.load();
}

void SweepRun::write_back() {
  for (const auto& lookup : s_->lookup_parts) lookup_unpack(*lookup, s_->plan.view());
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
