// Rounded sums of rows of W_q for binary inputs of which many are on: the tables of the dense kernel, in 16 bits.
//
// Most draws need no more of a field than a few digits. Weights are rounded down to multiples of 2^fine, so that sums
// of subsets take one addition of 16 bits where exact ones take one and a half and their unpacking. What a run of
// inputs adds up to is rounded down again, to a multiple of 2^coarse. Half of the most that both can take away is put
// back, so that a sum is off by no more than that half, of which each chain has its own, given by how many of its
// inputs are on.
#pragma once

#include "cpu/kernels/dense.h"

namespace bm::cpu::BM_ISA {

constexpr int kRunTables = kRunInputs / kSubsetInputs;
static_assert(kRunTables % kByteGroups == 0);

struct RoundedTable {
  Shorts sums[kSubsets];
};

// Subset sums of up to four rows, in units of 2^fine.
static inline void build_rounded(RoundedTable& __restrict table, const int16_t* __restrict rows, int64_t stride,
                                 int32_t n_rows, int fine) {
  Shorts row[kSubsetInputs];
  Words sums[kSubsets];  // which may wrap: the sum of a run does not
#pragma GCC unroll 4
  for (int i = 0; i < kSubsetInputs; i++) row[i] = i < n_rows ? load<Shorts>(rows + i * stride) >> fine : Shorts{};
  sums[0] = Words{};
#pragma GCC unroll 16
  for (int s = 1; s < kSubsets; s++) sums[s] = sums[s & (s - 1)] + reinterpret_cast<Words>(row[__builtin_ctz(s)]);
#pragma GCC unroll 16
  for (int s = 0; s < kSubsets; s++) table.sums[s] = reinterpret_cast<Shorts>(sums[s]);
}

// sums[n] += the entries that each of n chains takes from n_tables tables, in units of 2^(fine + shift)
static inline void add_run(Shorts* __restrict sums, const RoundedTable* __restrict tables, int32_t n_tables,
                           const uint16_t* __restrict indices, int64_t n_groups, int32_t n, int shift) {
  for (int32_t c = 0; c < n; c++, indices += n_groups) {
    Words run = Words{};
    for (int32_t g = 0; g < n_tables; g += kByteGroups) {
      uint64_t four;
      memcpy(&four, indices + g, sizeof four);
#pragma GCC unroll 4
      for (int i = 0; i < kByteGroups; i++) {
        const uint64_t place = (four >> 16 * i & 0xffff) * (sizeof(Words) / sizeof(HalfBytes));
        run += load<Words>(reinterpret_cast<const char*>(tables[g + i].sums) + place);
      }
    }
    sums[c] += reinterpret_cast<Shorts>(run) >> shift;
  }
}

// fields[n, stride of the weights] += scale * rounded sums, for n <= kBlockChains chains from `states` on, and reach[n]
// += the most by which that may be off; false if asked to stop.
static inline bool add_rounded_input(float* fields, float* __restrict reach, const InputView& input,
                                     const uint8_t* states, int32_t n, uint16_t* indices, StopView stop) {
  const WeightsView& weights = input.weights;
  const auto [fine, coarse] = input.rounding;
  const int32_t n_groups = subset_groups(weights.inputs), n_runs = (n_groups + kRunTables - 1) / kRunTables;
  const float lost = static_cast<float>((int64_t{1} << fine) - 1);
  const float lost_by_runs = static_cast<float>(n_runs) * static_cast<float>((int64_t{1} << coarse) - (1 << fine));
  float middle[kBlockChains];
  for (int32_t c = 0; c < n; c++) {
    const int32_t n_on = index_subsets(indices + static_cast<int64_t>(c) * n_groups, n_groups,
                                       states + c * static_cast<int64_t>(weights.inputs), weights.inputs);
    middle[c] = input.scale * (0.5f * (static_cast<float>(n_on) * lost + lost_by_runs));
    reach[c] += __builtin_fabsf(middle[c]);
  }
  const float scale = input.scale * static_cast<float>(int64_t{1} << coarse);
  RoundedTable tables[kRunTables];
  Shorts sums[kBlockChains];
  for (int32_t unit = 0; unit < weights.outputs; unit += kShortLanes) {
    if (stop.requested()) return false;
    for (int32_t c = 0; c < n; c++) sums[c] = Shorts{};
    for (int32_t g = 0; g < n_groups; g += kRunTables) {
      const int32_t n_tables = n_groups - g < kRunTables ? n_groups - g : kRunTables;
      for (int32_t i = 0; i < n_tables; i++) {
        const int32_t row = (g + i) * kSubsetInputs, left = weights.inputs - row;
        build_rounded(tables[i], weights.rows + row * static_cast<int64_t>(weights.stride) + unit, weights.stride,
                      left < kSubsetInputs ? left : kSubsetInputs, fine);
      }
      add_run(sums, tables, n_tables, indices + g, n_groups, n, coarse - fine);
    }
    for (int32_t c = 0; c < n; c++) {
      alignas(64) int16_t sum[kShortLanes];
      store(sum, sums[c]);
      float* __restrict to = fields + c * static_cast<int64_t>(weights.stride) + unit;
      for (int u = 0; u < kShortLanes; u++) to[u] = units::fma(static_cast<float>(sum[u]), scale, to[u] + middle[c]);
    }
  }
  return true;
}

}  // namespace bm::cpu::BM_ISA
