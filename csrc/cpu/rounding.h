// Whether draws may take rounded sums, and how these are rounded.
#pragma once

#include <vector>

#include "cpu/kernels.h"

namespace bm {
class Machine;
}

namespace bm::cpu {

// The finest rounding by which sums fit 16 bits, given their bounds and the number of inputs.
Rounding finest_rounding(const SumBounds& bounds, int32_t inputs);

// What sums so rounded may be off by, in units of W_q, with a share of the inputs on.
double rounding_reach(const Rounding& rounding, int32_t inputs, double share_on);

// What floats may change fields by on the way to them, whichever kernels sums come from. most_base: the largest size of
// a base bias.
double float_slack(const Machine& machine, const UpdateView& update, double most_base, int threads);

// Whether it pays to make up for draws in doubt: those whose random numbers fall within `reach` of a field. A unit's
// probability grows by at most a quarter of what its field does. weights: those that one unit reads.
bool few_in_doubt(double reach, int64_t units, int64_t weights);

// Of rounded sums, before beta scales it: floats that are computed with what may be more stay finite.
constexpr double kMostReach = 1e6;

// What a sweep is like, as far as it can be told when it begins.
struct Outlook {
  std::vector<bool> is_many;     // per layer: so many states are on that rounded sums are the fastest
  std::vector<double> share_on;  // per layer
  double most_beta;              // the highest inverse temperature, and
  double most_rest;              // where there is a base, the largest size of what it lacks to 1
  double most_base;              // the largest size of a base bias
};

}  // namespace bm::cpu
