// Draws of the lookup kernel by high limbs of its tables alone.
#pragma once

#include <vector>

#include "cpu/machine.h"

namespace bm::cpu {

// What the low limbs, which draws before the last of a round can do without, may add to fields of an update. Half of
// the most is put back; fields are then off by no more than the other half.
struct LookupRests {
  // base: [padded units] or null; n_chains: of whole blocks
  LookupRests(const Machine& machine, const UpdateView& update, const float* base, int64_t n_chains, int threads);

  // Takes up the inverse temperatures of the first n chains, null: 1.
  void bound(const float* beta, int64_t n);

  double reach;  // that half, and
  double slack;  // of floats, which is in it
  bool has_base;
  bool pays = false;                    // so few draws are then in doubt, at these temperatures
  Array<float> least, most;             // [chains], as in lookup::Decision
  std::vector<const int16_t*> columns;  // of each input the weights [units, padded inputs]
};

}  // namespace bm::cpu
