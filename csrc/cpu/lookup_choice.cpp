#include "cpu/lookup_choice.h"

#include <algorithm>

#include "cpu/lookup_rests.h"
#include "cpu/work.h"

namespace bm::cpu {

namespace {

constexpr double kDenseShare = 0.15;  // of a sweep's multiply-adds: tables of exact sums only where so many are dense

int64_t chains_of_thread(const Workload& workload) {
  return (workload.n_chains + workload.threads - 1) / workload.threads;
}

// Of the multiply-adds of a sweep, the share that the dense kernel has to do.
double share_of_dense(const ProgramView& program, int64_t per_gap) {
  double dense = 0, all = 0;
  for (int i = 0; i < program.n_updates; i++)
    for (int j = 0; j < program.updates[i].n_inputs; j++) {
      const InputView& input = program.updates[i].inputs[j];
      const double products = multiply_adds_of(input);
      const double exact = !input.rounded ? 1 : per_gap && input.settled ? 1 / static_cast<double>(per_gap) : 0;
      dense += input.dense ? exact * products : 0;
      all += products;
    }
  return all > 0 ? dense / all : 0;
}

// Tables in registers serve one block of chains: they cost the same for all chains of a register and however many rows
// would be added, so that the former must be many and the latter not few.
bool registers_pay(const Machine& machine, const ProgramView& program, const std::vector<double>& shares,
                   const Workload& workload) {
  constexpr int64_t kMostChains = 64;  // of a thread
  constexpr double kFewestOnes = 0.4;
  const int64_t each = chains_of_thread(workload),
                lanes = (each + lookup::kLanes - 1) / lookup::kLanes * lookup::kLanes;
  if (each > kMostChains || 8 * each < 7 * lanes) return false;
  for (int i = 0; i < program.n_updates; i++)
    for (int j = 0; j < program.updates[i].n_inputs; j++)
      if (const int source = program.updates[i].inputs[j].layer;
          shares[source] <= kFewestOnes && machine.layer(source).kind != Kind::kSoftmax)  // of these one alone is on
        return false;
  return true;
}

// Where sums have to be exact. Building the tables takes as long as the other kernels need for some hundred chains, and
// fetching them in each sweep as long as the dense kernel needs for about 72; adding rows takes less the fewer they
// are, and for fewer than kFewestRows always less than tables. Measured: docs/kernels.md.
bool exact_tables_pay(const Machine& machine, const ProgramView& program, const std::vector<double>& shares,
                      const Workload& workload) {
  constexpr int64_t kFewestChains = 72, kFewestUpdates = 1024;  // chains of a thread; chains times sweeps
  constexpr double kFewestRows = 0.18, kDense = 0.32;           // from which on rows cost what the dense kernel does
  const int64_t fewest_chains = kFewestChains * workload.threads;
  if (workload.n_chains < fewest_chains) return false;
  if (!machine.has_lookup_tables && workload.n_chains * workload.n_sweeps < kFewestUpdates) return false;
  const double share = share_of_rows(program, shares);
  return share >= kFewestRows &&
         static_cast<double>(workload.n_chains) * std::min(1., share / kDense) >= static_cast<double>(fewest_chains);
}

// Where high limbs do for most draws: by the picoseconds of a multiply-add, of fetching a weight's tables and of
// building a byte of them, on one core of an AMD EPYC (Zen 4). docs/kernels.md says where they come from.
bool high_tables_pay(const Machine& machine, const ProgramView& program, const std::vector<double>& shares,
                     const Workload& workload) {
  constexpr double kRow = 28, kRounded = 4.1, kDense = 6.4;  // of the other kernels
  constexpr double kFarRow = 56, kNearWeights = 2e6;         // rows of couplings with more weights than these
  constexpr double kHigh = 2.5, kExact = 4.2, kBuildByte = 158;
  constexpr int64_t kCached = int64_t{24} << 20;  // bytes of tables that stay in the last cache
  const double fetch = lookup_bytes(machine) <= kCached ? 64 : 300;
  constexpr double kGain = 1.1;  // by which tables have to be better
  const int64_t chains = chains_of_thread(workload);
  const auto n = static_cast<double>(chains);
  const auto lanes = static_cast<double>((chains + lookup::kBlock - 1) / lookup::kBlock * lookup::kBlock);
  double tables = 0, others = 0;
  for (int i = 0; i < program.n_updates; i++) {
    const UpdateView& update = program.updates[i];
    const bool high = high_limbs_do(machine, update, workload.most_beta);
    for (int j = 0; j < update.n_inputs; j++) {
      const InputView& input = update.inputs[j];
      const double products = multiply_adds_of(input);
      const double exact = workload.per_gap && input.settled ? 1 / static_cast<double>(workload.per_gap) : 0;
      const double product = high ? exact * kExact + (1 - exact) * kHigh : kExact;
      tables += products * (product * lanes + fetch);
      const double rows = (products > kNearWeights ? kFarRow : kRow) * shares[input.layer];
      others += products * n *
                (input.rounded ? exact * std::min(rows, kDense) + (1 - exact) * kRounded
                 : input.dense ? kDense
                               : rows);
    }
  }
  if (others < kGain * tables) return false;
  return machine.has_lookup_tables || (others - tables) * static_cast<double>(workload.n_sweeps * workload.threads) >
                                          kBuildByte * static_cast<double>(lookup_bytes(machine));
}

}  // namespace

double share_of_rows(const ProgramView& program, const std::vector<double>& shares) {
  double added = 0, all = 0;
  for (int i = 0; i < program.n_updates; i++)
    for (int j = 0; j < program.updates[i].n_inputs; j++) {
      const InputView& input = program.updates[i].inputs[j];
      const double products = multiply_adds_of(input);
      added += products * shares[input.layer];
      all += products;
    }
  return all > 0 ? added / all : 0;
}

std::optional<LookupTablesIn> choose_lookup(const Machine& machine, const ProgramView& program,
                                            const std::vector<double>& shares, const Workload& workload) {
  constexpr int64_t kMostBytes = int64_t{1} << 31;
  if (!lookup_suits(machine, program)) return {};
  const bool dense = share_of_dense(program, workload.per_gap) > kDenseShare;
  if (dense && registers_pay(machine, program, shares, workload)) return LookupTablesIn::kRegisters;
  if (lookup_bytes(machine) > kMostBytes) return {};
  if (((dense && exact_tables_pay(machine, program, shares, workload)) ||
       high_tables_pay(machine, program, shares, workload)) &&
      lookup_prepare(machine, workload.threads))
    return LookupTablesIn::kMachine;
  return {};
}

}  // namespace bm::cpu
