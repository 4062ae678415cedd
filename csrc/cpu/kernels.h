// The kernels of one instruction set, as a table that dispatch.cpp chooses from.
//
// Every kernel works on a part of the chains (or rows) in one thread; the drivers cut the parts. Results depend neither
// on the parts nor on the instruction set.
#pragma once

#include "cpu/lookup_kernels.h"
#include "cpu/mean_field_kernels.h"
#include "cpu/views.h"

namespace bm::cpu {

constexpr int32_t kBlockChains = 128;  // chains whose fields are computed together, at most

constexpr int64_t kLineWeights = 32;  // in a cache line

constexpr int32_t kRunInputs = 48;  // whose rounded sums fit 16 bits

// The largest size of the sum of some weights of a unit: from inputs of one run, and from all.
struct SumBounds {
  int64_t run, all;
};

// What chains keep from one sweep to the next: for each input sums of rows, and the states that they are the sums of.
// Zeros belong together.
struct KeptView {
  uint8_t* slots;  // [n_chains, bytes], 64-byte aligned; null where nothing is kept
  int64_t bytes;   // of one chain
  int32_t* sums(const InputView& input, int64_t chain) const {
    return reinterpret_cast<int32_t*>(slots + chain * bytes + input.kept);
  }
  uint8_t* states(const InputView& input, int64_t chain) const {
    return reinterpret_cast<uint8_t*>(sums(input, chain) + input.weights.stride);
  }
};

// Working memory of one thread, sized for the largest layer.
struct Scratch {
  uint16_t* rows;  // [kBlockChains, 2, padded]
  int32_t* sums;   // [padded]
  float* fields;   // [kBlockChains, padded]
  int32_t* exact;  // [inputs of an update, kBlockChains, padded], sums of W_q; null where no interactions are wanted
  KeptView kept;
};

// Inverse temperatures and the biases at beta = 0.
struct TemperView {
  const float* beta;         // [n_chains] or null: 1
  const float* const* base;  // per layer [padded] or null: none
};

// Statistics take chains in panels and units of either layer in tiles: lists of chains that are on for binary units of
// the lower layer, or values of real ones and lists once these are 0 or 1, and rows of the upper layer.
constexpr int32_t kPanels = 8, kPanelChains = 200, kCountUnits = 64, kCountWords = 16;
constexpr int32_t kListUnits = 1024, kListTile = 32, kListed = 4, kListSlack = 64;
constexpr int32_t kFactors = 4;

struct PanelLists {
  int32_t first;                          // of the chains that are listed; 0 unless the values are real
  int32_t order[kListUnits];              // units by the length of their lists
  int32_t lengths[kListUnits / kListed];  // of the longest list of each four
  uint16_t rows[kListUnits * kPanelChains + kListSlack];
};

struct StatisticsScratch {
  alignas(64) float tile[(kPanelChains + 1) * kListTile];
  float factors[kPanels][kListUnits * kPanelChains];
  PanelLists lists[kPanels];
  uint64_t* bits;  // [kCountWords, n_upper]
};

constexpr int kMostSums = 2;

// Weighted and centred statistics: sum over chains of factor lower (upper - its offset), less the product of the lower
// offset and the upper difference. What is null counts as 1 for factors and 0 for all others.
struct WeightingView {
  const float* factors;            // [n_chains]
  const float* upper_offsets;      // [n_upper]
  const float* upper_differences;  // [n_upper]
  const float* lower_offsets;      // [n_lower]
};

struct Kernels {
  const char* isa;

  // Runs all sweeps on chains first .. first + n; false if it gave up half-way because it was asked to stop.
  // values: the states once more, as inputs.
  bool (*sweep)(MachineView machine, ProgramView program, const SweepView& what, const ValuesView* values,
                int64_t first, int64_t n, Scratch scratch, StopView stop);

  // The unit of a softmax layer that turns on, by one random word, and the probabilities of all [units] unless null.
  //   x: tempered fields [padded]; held: [units], not 0 for units that stay off; null: none
  int32_t (*draw_softmax)(float* means, const float* x, int32_t units, const uint8_t* held, uint32_t word);

  void (*layer_means)(float* out, MachineView machine, UpdateView update, const ValuesView* values, TemperView how,
                      int64_t first, int64_t n, Scratch scratch);

  // upward: for each coupling an update of its upper layer with this one input.
  void (*energy)(double* out, MachineView machine, ProgramView upward, const ValuesView* values, int64_t first,
                 int64_t n, Scratch scratch);

  // upward: as for energy; interactions: [n_chains, couplings], as a sweep leaves them, or null.
  void (*gap)(double* out, MachineView machine, ProgramView upward, const GapView& biases, const ValuesView* values,
              const int64_t* interactions, int64_t first, int64_t n, Scratch scratch);

  // out: [n_betas, n_chains]; is_summed: [n_layers].
  void (*free_energy)(double* out, MachineView machine, ProgramView summed, const bool* is_summed,
                      const ValuesView* values, int64_t n_chains, const float* betas, int64_t n_betas,
                      const float* const* base, int64_t first, int64_t n, Scratch scratch);

  // Rows first .. first + n of out: units of the lower layer.
  void (*statistics)(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper, int64_t n_chains,
                     int64_t first, int64_t n, const WeightingView& weighting, StatisticsScratch& scratch);

  // out[n_sums, units] = sums over chains of factor value, for factors [n_chains, n_sums] and units first .. first + n;
  // the bits of statistics, for n_sums <= kMostSums lower units
  void (*weighted_sums)(float* out, const float* factors, int n_sums, ValuesView values, int64_t units,
                        int64_t n_chains, int64_t first, int64_t n);

  // out[n_chains] = sums over units of (value - offset) offset
  void (*offset_products)(float* out, ValuesView values, int64_t units, const float* offsets, int64_t n_chains);

  void (*bernoulli)(uint8_t* out, const float* probabilities, const int64_t* rows, int64_t units, uint64_t seed,
                    uint32_t sweep, uint32_t layer_and_purpose, int64_t first, int64_t n);

  uint32_t (*largest_magnitude)(const float* values, int64_t n);  // bits of the largest |value|; NaN is the largest
  uint8_t (*largest_byte)(const uint8_t* bytes, int64_t n);
  void (*quantise)(int16_t* out, const float* values, int64_t n, float scale);
  // to[n_columns, kLineWeights] = from[n_rows, n_columns] transposed, and 0 for the rows beyond n_rows <= kLineWeights;
  // both aligned to cache lines, with rows of whole ones
  void (*transpose)(int16_t* to, int64_t to_stride, const int16_t* from, int64_t from_stride, int64_t n_rows,
                    int64_t n_columns);
  SumBounds (*sum_bounds)(WeightsView weights);  // above the true ones by at most 64 for each input

  const mean_field::Kernels* mean_field;
  const lookup::Kernels* lookup;  // null where the instruction set has none
};

}  // namespace bm::cpu
