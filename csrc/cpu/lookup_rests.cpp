#include "cpu/lookup_rests.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "cpu/lookup_tables.h"
#include "cpu/rounding.h"

namespace bm::cpu {
namespace {

constexpr double kMostOpen = 0.05;  // draws in doubt, above which low limbs cost less

double largest(const float* values, int32_t n) {
  double most = 0;
  for (int32_t i = 0; values && i < n; i++) most = std::max(most, std::abs(static_cast<double>(values[i])));
  return most;
}

int64_t groups_of_inputs(const InputView& input) {
  return (input.weights.inputs + lookup::kGroup - 1) / lookup::kGroup;
}

}  // namespace

LookupRests::LookupRests(const Machine& machine, const UpdateView& update, const float* base, int64_t n_chains,
                         int threads)
    : has_base(base != nullptr), least(n_chains), most(n_chains) {
  double lost = 0;
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    const Direction& d = machine.lookup_tables->directions[direction_of(input)];
    const int64_t of_chunk = ((int64_t{1} << d.coarse) - 1) << lookup::kLowBits;
    const double half =
        0.5 * input.scale * static_cast<double>(groups_of_inputs(input) * lookup::kMostLow + d.chunks() * of_chunk);
    middle += half;
    lost += std::abs(half);
    scales.push_back(std::ldexp(input.scale, lookup::kLowBits + d.coarse));
    columns.push_back(machine.weights(input.coupling).rows(!input.transposed, threads));
  }
  slack = float_slack(machine, update, largest(base, machine.layer(update.layer).units) + lost, threads);
  reach = lost + slack;
}

bool high_limbs_do(const Machine& machine, const UpdateView& update, double most_beta) {
  if (machine.layer(update.layer).kind != Kind::kBernoulli) return false;
  constexpr double kRounding = 1.25;  // of sums of high limbs, at most about as much again as this leaves
  double reach = 0;
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    reach += 0.5 * std::abs(input.scale) * static_cast<double>(groups_of_inputs(input) * lookup::kMostLow);
  }
  return 0.5 * kRounding * most_beta * reach <= kMostOpen;
}

void LookupRests::bound(const float* beta, int64_t n) {
  double most_reach = 0;
  for (int64_t c = 0; c < n; c++) {
    const float b = beta ? beta[c] : 1.f;
    Known& known = known_[(std::bit_cast<uint32_t>(b) * 2654435769u) >> (32 - kKnownBits)];  // multiplicative hashing
    if (!known.is_set || known.beta != b) {
      const double own = b * reach + (has_base ? std::abs(1. - b) * slack : 0);
      known = {true, b, own, doubt_within(static_cast<float>(std::min(own, 1e30)))};
    }
    least[c] = known.doubt.least;
    most[c] = known.doubt.most;
    most_reach = std::max(most_reach, known.reach);
  }
  pays = reach < kMostReach && 0.5 * most_reach <= kMostOpen;
}

}  // namespace bm::cpu
