// Draws of the lookup kernel by high limbs of its tables alone.
#pragma once

#include <vector>

#include "cpu/doubt.h"
#include "cpu/machine.h"

namespace bm::cpu {

// What the low limbs, which draws can do without, and the rounding of high sums may take from the fields of an update.
// Half of the most is put back; fields are then off by no more than the other half.
struct LookupRests {
  // base: [padded units] or null; n_chains: of whole blocks
  LookupRests(const Machine& machine, const UpdateView& update, const float* base, int64_t n_chains, int threads);

  // Takes up the inverse temperatures of the first n chains, null: 1.
  void bound(const float* beta, int64_t n);

  double middle = 0;  // what is put back
  double reach;       // by how much fields may be off: the same, and
  double slack;       // of floats, which is in it
  bool has_base;
  bool pays = false;                    // so few draws are then in doubt, at these temperatures
  Array<float> least, most;             // [chains], as in lookup::Decision
  std::vector<float> scales;            // of each input's rounded sums
  std::vector<const int16_t*> columns;  // of each input the weights [units, padded inputs]

 private:
  static constexpr int kKnownBits = 6;
  struct Known {  // rungs share few temperatures
    bool is_set;
    float beta;
    double reach;
    Doubt doubt;
  };
  Known known_[1 << kKnownBits] = {};
};

// Whether that will pay, before there are tables.
bool high_limbs_do(const Machine& machine, const UpdateView& update, double most_beta);

}  // namespace bm::cpu
