// When the lookup kernel runs, and on which tables.
#pragma once

#include <optional>

#include "cpu/lookup.h"

namespace bm::cpu {

// Of the rows of W_q that a sweep reads, by shares of the units of each layer, the share that is added up.
double share_of_rows(const ProgramView& program, const std::vector<double>& shares);

struct Workload {
  int64_t n_chains, n_sweeps;
  int threads;
  int64_t per_gap;   // sweeps for each energy gap, which takes the exact sums of settled inputs; 0: no gaps
  double most_beta;  // the highest inverse temperature
};

// Which tables the lookup kernel takes, if it is to run on a program that has been laid out; those of the machine are
// then there. shares: of the units of each layer, whose rows other kernels would add.
std::optional<LookupTablesIn> choose_lookup(const Machine& machine, const ProgramView& program,
                                            const std::vector<double>& shares, const Workload& workload);

}  // namespace bm::cpu
