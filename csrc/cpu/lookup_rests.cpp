#include "cpu/lookup_rests.h"

#include <algorithm>
#include <cmath>

#include "cpu/doubt.h"
#include "cpu/lookup_kernels.h"
#include "cpu/rounding.h"

namespace bm::cpu {
namespace {

constexpr double kMostOpen = 0.025;  // draws in doubt, above which low limbs cost less

double largest(const float* values, int32_t n) {
  double most = 0;
  for (int32_t i = 0; values && i < n; i++) most = std::max(most, std::abs(static_cast<double>(values[i])));
  return most;
}

}  // namespace

LookupRests::LookupRests(const Machine& machine, const UpdateView& update, const float* base, int64_t n_chains,
                         int threads)
    : slack(float_slack(machine, update, largest(base, machine.layer(update.layer).units), threads)),
      has_base(base != nullptr),
      least(n_chains),
      most(n_chains) {
  reach = slack;
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    const double groups = static_cast<double>(lookup::kTabled.words(input.weights.inputs)) * lookup::kWordGroups;
    // and a half for each time that accumulators are emptied, at most once a group
    reach += std::abs(static_cast<double>(input.scale)) * groups * (lookup::kMostLow + 1) / 2;
    columns.push_back(machine.weights(input.coupling).rows(!input.transposed, threads));
  }
}

void LookupRests::bound(const float* beta, int64_t n) {
  double most_reach = 0;
  for (int64_t c = 0; c < n; c++) {
    const double b = beta ? beta[c] : 1, own = b * reach + (has_base ? std::abs(1 - b) * slack : 0);
    const Doubt doubt = doubt_within(static_cast<float>(std::min(own, 1e30)));
    least[c] = doubt.least;
    most[c] = doubt.most;
    most_reach = std::max(most_reach, own);
  }
  pays = 0.5 * most_reach <= kMostOpen;
}

}  // namespace bm::cpu
