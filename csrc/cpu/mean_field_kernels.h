// Kernels of mean-field iterations, as a table like kernels.h. docs/kernels.md has the arithmetic.
//
// Cases are iterated in blocks. The fields that come from layers which stay as they are (data) are computed once; each
// iteration adds to them what comes from the layers that move.
#pragma once

#include "cpu/views.h"

namespace bm::cpu {

struct Scratch;

namespace mean_field {

constexpr int32_t kCases = 64;       // cases of a block
constexpr int32_t kTileCases = 4;    // cases that share loads of weights
constexpr int32_t kPanelUnits = 64;  // outputs whose limbs lie together
constexpr int32_t kQuad = 4;         // inputs that one instruction adds up

enum Limb { kHigh, kLow, kLimbs };

// W_q = step * high + low of a coupling seen from its inputs, as bytes limb + 128: [panels][quads][kPanelUnits][kQuad].
struct LimbsView {
  const uint8_t *high, *low;
  const float* steps;  // [outputs rounded up to panels]
};

// Of a layer's means, what is given to products is a multiple of a grid: a power of two, so fine that half a step in
// every input changes no field by more than kMostLeft. What certainly moves no field by more may wait as well.
constexpr double kCoarsestGrid = 0x1p-23, kFinestGrid = 0x1p-60;  // of the coarsest, multiples up to 2 are exact floats
constexpr double kMostLeft = 0x1p-17;

// What tells from a layer's means by how much they can move a field: largest values over the units that it leads to.
struct Reach {
  double sum;            // of |W_q|
  double norms[kLimbs];  // Euclidean, of W_q and of the low limbs; no more than a few thousandths above them
};

// What the products with one limb have been given of the means of a layer, and what they are given next:
// scale times digits is added to `given` and to the fields of the neighbours.
struct Feed {
  float* given;     // [kCases, padded]
  int8_t* digits;   // [kCases, padded], -127 to 127
  float* scales;    // [kCases]; 0: nothing
  int32_t* totals;  // [kCases], sums of the digits
};

// One layer that moves, in the order of the program. Feeds are for kernels that take limbs.
struct LayerWork {
  float* fields;  // [kCases, padded]; at first those from layers that stay
  Feed feeds[kLimbs];
  float* lags;   // [kCases], at least the Euclidean norm of what products with the low limb have not been given of what
                 // those with the high one have
  bool* is_old;  // [kCases], whether the fields have changed since the means were made of them
  float grid;
  float reaches[kLimbs];  // by how much a field moves, at most, for each unit of the norm of what a limb is given
};

// A layer that is set before the first iteration, as in ops.h.
struct Outset {
  int update;
  float scale;
};

struct Iterations {
  const Outset* start;  // [n_start], in this order
  int n_start;
  int64_t most;
  float tolerance;     // a case stops once no mean changes by more; 0: never
  float damping;       // share of the old mean that is kept
  float* changes;      // [n_cases], largest change of a mean in the case's last iteration; more than the tolerance
                       // where the case was not at rest all the same
  int32_t* performed;  // [n_cases]
  StopView stop;       // after which nothing that a call writes is of any use
};

// Which update of a program is that of a layer.
static inline int update_of(const ProgramView& program, int layer) {
  int i = 0;
  while (program.updates[i].layer != layer) i++;
  return i;
}

struct Kernels {
  // fields[n, padded] = biases and all inputs of the update, for n <= kCases cases from `first` on.
  void (*constant_fields)(float* fields, MachineView machine, UpdateView update, const ValuesView* values,
                          int64_t first, int32_t n, Scratch scratch, StopView stop);

  // Iterates n <= kCases cases. moving: updates with their inputs from layers that move; means: per layer
  // [n_cases, units], updated in place; work: [updates]; limbs: one for each input of the program.
  void (*iterate)(MachineView machine, ProgramView moving, float* const* means, const LayerWork* work,
                  const LimbsView* limbs, const Iterations& what, int64_t first, int32_t n, Scratch scratch);

  // Splits W_q of the outputs from `unit` on into the limbs of a panel; null where `iterate` takes none.
  Reach (*split)(uint8_t* high, uint8_t* low, float* steps, const WeightsView& weights, int32_t unit);
};

}  // namespace mean_field
}  // namespace bm::cpu
