// What follows for a draw from a field that is known up to a reach.
#pragma once

#include "units.h"

namespace bm::cpu {

// exp_minus of the exact field lies between `least` and `most` times that of the known one.
struct Doubt {
  float least, most;
};

// The slack is for what exp_minus may be off by, twice 1.5e-7 (1 + 44.4), and for a few roundings; where it would be
// clamped, nothing is certain.
BM_UNITS Doubt doubt_within(float reach) {
  constexpr float kSlack = 0x1p-15f;
  if (!(reach < 40.f)) return {0.f, __builtin_inff()};
  return {units::exp_minus(reach) * (1.f - kSlack), units::exp_minus(-reach) * (1.f + kSlack)};
}

}  // namespace bm::cpu
