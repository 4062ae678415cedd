// Sweeps of a program, and replica exchange: launch by launch, or many sweeps at once where weights stay in shared
// memory.
#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <set>
#include <thread>
#include <type_traits>
#include <variant>

#include "cuda/device.h"
#include "cuda/gap.h"
#include "cuda/launch.h"
#include "cuda/many_sweeps.h"
#include "cuda/pack.h"
#include "cuda/swap.h"

namespace bm::cuda {
namespace {

// --- long calls ------------------------------------------------------------------------------------------------------

constexpr double kRoundWork = 2e12;  // multiply-adds: about 10 ms on an H100, 0.1 s on the slowest GPU
constexpr int64_t kMaxRound = 100;   // sweeps

int64_t sweeps_of_round(const Machine& machine, const Program& program, int64_t n_chains) {
  double work = 1;
  for (const Block& block : program)
    for (const Update& update : block)
      for (const Input& input : update.inputs)
        work += static_cast<double>(n_chains) * static_cast<double>(machine.layers()[update.layer].units) *
                units_of(machine, source_of(machine, input));
  return std::clamp(static_cast<int64_t>(kRoundWork / work), int64_t{1}, kMaxRound);
}

// Keeps at most two rounds under way, so that work that nobody waits for any more ends soon.
class Rounds {
 public:
  Rounds(void* stream, const std::function<bool()>& interrupted) : stream_(stream), interrupted_(interrupted) {}

  // Closes a round; false if the call is to end.
  bool close() {
    Event& event = events_[n_closed_++ % 2];
    while (n_closed_ > 2 && !event.has_passed()) {
      if (!ask()) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    event.record(stream_);
    return ask();
  }

 private:
  bool ask() {
    const auto now = std::chrono::steady_clock::now();
    if (now - asked_ < std::chrono::milliseconds(50)) return true;
    asked_ = now;
    return !interrupted_();
  }

  void* stream_;
  const std::function<bool()>& interrupted_;
  Event events_[2];
  int64_t n_closed_ = 0;
  std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
};

// --- what is launched ------------------------------------------------------------------------------------------------

// A program on packed states, some sweeps at a time.
class Sweeps {
 public:
  Sweeps(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
         const uint32_t* sweeps_before, const Place& place)
      : machine_(machine), program_(program), states_(states), what_(what), stream_(place.stream) {
    const auto n_chains = static_cast<int32_t>(what.n_chains);
    std::set<int> used;
    for (const Block& block : program) {
      for (const Update& update : block) updated_.insert(update.layer);
      used.merge(sources_of(machine, block));
    }
    used.insert(updated_.begin(), updated_.end());
    for (size_t i = 0; i < states.size(); i++)
      values_.push_back({states[i], machine.layers()[i].precisions != nullptr});
    views_ = packed(machine, values_, used, n_chains, place);
    std::vector<const uint32_t*> clamp(states.size());
    for (const int layer : updated_)
      if (what.clamp[layer]) clamp[layer] = packed(what.clamp[layer], n_chains, units_of(machine, layer), place);

    many_ = many_sweeps(machine, program, views_, clamp, what, sweeps_before, place);
    if (many_) return;
    for (const Block& block : program)
      for (const Update& update : block) {
        launches_.push_back(launch_of(machine, update, views_, n_chains, what.beta, what.base, place));
        std::visit(
            [&](auto& launch) {
              launch.clamp = clamp[update.layer];
              launch.states = views_[update.layer].bits;
              if constexpr (std::is_same_v<decltype(launch), RealUpdate&>)
                launch.numbers = launch.precisions ? static_cast<float*>(states[update.layer]) : nullptr;
              launch.seed = what.seed;
              launch.sweeps_before = sweeps_before;
              launch.first_chain = what.first_chain;
              launch.layer_and_purpose = units::layer_and_purpose(static_cast<uint32_t>(update.layer), units::kGibbs);
            },
            launches_.back());
      }
  }

  // Sweeps `first` to `end` of the call.
  void launch(int64_t first, int64_t end) {
    if (many_)
      run(*many_, program_, what_, first, end, stream_);
    else
      for (int64_t i = first; i < end; i++) launch_one(i);
  }

  const Views& views() const { return views_; }
  const std::vector<Values>& values() const { return values_; }

  void unpack() const {
    for (const int layer : updated_)
      if (const uint32_t* bits = views_[layer].bits)
        unpack_bits(static_cast<uint8_t*>(states_[layer]), bits, static_cast<int32_t>(what_.n_chains),
                    units_of(machine_, layer), stream_);
  }

 private:
  void launch_one(int64_t number) {
    size_t next = 0;
    for (const Block& block : program_)
      for (const Update& update : block) {
        std::visit(
            [&](auto& launch) {
              launch.sweep = what_.first_sweep + static_cast<uint32_t>(number);
              launch.means = number + 1 == what_.n_sweeps ? what_.means[update.layer] : nullptr;
              run(launch, stream_);
            },
            launches_[next++]);
        if (const View& view = views_[update.layer]; view.values)
          pack_values(view.values, view.quanta, static_cast<const float*>(states_[update.layer]),
                      static_cast<int32_t>(what_.n_chains), units_of(machine_, update.layer), stream_);
      }
  }

  const Machine& machine_;
  const Program& program_;
  const std::vector<void*>& states_;
  const Sweep& what_;
  void* stream_;
  std::set<int> updated_;
  std::vector<Values> values_;
  Views views_;
  std::optional<ManySweeps> many_;
  std::vector<Launch> launches_;  // of one sweep, else
};

// Launches `n` steps, at most `round` at a time, and waits where there are more of them, unless a graph is recorded.
// `finish` launches what is to follow the last step, also where the call ends early. Returns the steps done.
template <class Launch, class Finish>
int64_t in_rounds(int64_t n, int64_t round, void* stream, const std::function<void(int64_t)>& progress,
                  const std::function<bool()>& interrupted, const Launch& launch, const Finish& finish) {
  std::optional<Rounds> rounds;
  if (n > round && !is_capturing(stream)) rounds.emplace(stream, interrupted);
  std::exception_ptr failure;
  int64_t done = 0;
  for (bool goes_on = true; done < n && goes_on;) {
    const int64_t end = std::min(done + round, n);
    launch(done, end);
    done = end;
    if (!rounds || done % round != 0) continue;
    try {
      goes_on = rounds->close();
      progress(done);
    } catch (...) {  // the states must still become those of `done` steps
      failure = std::current_exception();
      goes_on = false;
    }
  }
  finish();
  if (failure) std::rethrow_exception(failure);
  if (!rounds || done % round != 0) progress(done);
  return done;
}

}  // namespace

int64_t sweep(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
              const uint32_t* sweeps_before, const Place& place, const std::function<void(int64_t)>& progress,
              const std::function<bool()>& interrupted) {
  Sweeps sweeps(machine, program, states, what, sweeps_before, place);
  return in_rounds(
      what.n_sweeps, sweeps_of_round(machine, program, what.n_chains), place.stream, progress, interrupted,
      [&](int64_t first, int64_t end) { sweeps.launch(first, end); }, [&] { sweeps.unpack(); });
}

int64_t temper(const Machine& machine, const Program& program, const std::vector<void*>& states, const Rungs& rungs,
               float* beta, const Temper& what, const Before& before, const Place& place,
               const std::function<void(int64_t)>& progress, const std::function<bool()>& interrupted) {
  const std::vector<const uint8_t*> no_clamp(states.size());
  const Sweep sweep{what.n_chains,    what.n_rounds * what.sweeps_per_round,
                    what.seed,        what.first_chain,
                    what.first_sweep, beta,
                    what.base,        no_clamp,
                    what.means};
  Sweeps sweeps(machine, program, states, sweep, before.sweeps, place);
  const Gap gap(machine, what.base, sweeps.views(), sweeps.values(), static_cast<int32_t>(what.n_chains), place);
  auto* gaps = take<double>(place, what.n_chains);
  const int64_t n_ladders = what.n_chains / what.n_rungs;
  Swap swaps{};
  swaps.rungs = rungs.rungs;
  swaps.gaps = gaps;
  swaps.betas = what.betas;
  swaps.beta = beta;
  swaps.probabilities = take<double>(place, n_ladders * (what.n_rungs - 1));
  swaps.attempts = rungs.attempts;
  swaps.acceptances = rungs.acceptances;
  swaps.heading = rungs.heading;
  swaps.trips = rungs.trips;
  swaps.n_ladders = static_cast<int32_t>(n_ladders);
  swaps.n_rungs = static_cast<int32_t>(what.n_rungs);
  swaps.seed = what.seed;
  swaps.rounds_before = before.rounds;
  swaps.first_ladder = what.first_chain / static_cast<uint32_t>(what.n_rungs);
  const auto rounds = [&](int64_t first, int64_t end) {
    for (int64_t i = first; i < end; i++) {
      for (int64_t at = 0; at < what.sweeps_per_round;) {
        const int64_t n = std::min(what.sweeps_per_round - at, kMaxRound);
        sweeps.launch(i * what.sweeps_per_round + at, i * what.sweeps_per_round + at + n);
        at += n;
      }
      gap.launch(gaps);
      swaps.trace = what.trace ? what.trace + i * what.n_chains : nullptr;
      swaps.round = what.first_round + static_cast<uint32_t>(i);
      swap(swaps, place.stream);
    }
  };
  // an energy costs about as much as half a sweep
  const int64_t round = sweeps_of_round(machine, program, what.n_chains) / (what.sweeps_per_round + 1);
  return in_rounds(what.n_rounds, std::max(round, int64_t{1}), place.stream, progress, interrupted, rounds,
                   [&] { sweeps.unpack(); });
}

}  // namespace bm::cuda
