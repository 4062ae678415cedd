// Sums of rows of W_q for binary inputs of which many are on: by tables of subset sums.
//
// Lanes are output units. For each four inputs, the sums of all 16 subsets of their rows are laid down once for many
// chains; a chain then adds one entry for four inputs, where adding rows takes two on average at fair coins. What
// bounds that is the first-level cache, so that an entry has 24 bits: the sum modulo 2^16, and a byte e that leaves a
// rest sum - 4096 e of 0 to 4104. Bytes of four groups are added up as they are, more of them in 16 bits; over the
// groups that share the cache rests stay below 2^16, and the former gives them modulo 2^16. Then what is kept of a sum
// are multiples of 4096 and a rest below that.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vector.h"

namespace bm::cpu::BM_ISA {

constexpr int kSubsetInputs = 4, kSubsets = 1 << kSubsetInputs;
constexpr int kByteGroups = 4;                    // of four inputs, whose high parts add up in 8 bits
constexpr int kTableGroups = 3 * kByteGroups;     // whose tables share the first-level cache
constexpr int kExactGroups = 16 * kTableGroups;   // of which sums are exact
constexpr int kFineShift = 2, kCoarseShift = 10;  // of weights, whose sums then fit 16 bits; of these sums
constexpr int kHighBits = kFineShift + kCoarseShift, kHighUnit = 1 << kHighBits;
constexpr int kMostRest = kSubsetInputs * ((1 << kFineShift) - 1) + (((1 << kCoarseShift) - 1) << kFineShift);
static_assert(kByteGroups * (kSubsetInputs << (15 - kFineShift) >> kCoarseShift) <= 128);
static_assert(kTableGroups * kMostRest < 1 << 16);
static_assert(kExactGroups / kTableGroups * (kHighUnit - 1) < 1 << 16);

struct SubsetTable {
  Words low[kSubsets];       // modulo 2^16
  HalfBytes high[kSubsets];  // in units of kHighUnit, rounded down
};

struct SubsetSum {
  Words low;
  Shorts high;
};

// Subset sums of up to four rows.
static inline void build_subsets(SubsetTable& __restrict table, const int16_t* __restrict rows, int64_t stride,
                                 int32_t n_rows) {
  Shorts row[kSubsetInputs], high[kSubsets];
  Words low[kSubsets];
#pragma GCC unroll 4
  for (int i = 0; i < kSubsetInputs; i++) row[i] = i < n_rows ? load<Shorts>(rows + i * stride) : Shorts{};
  low[0] = Words{};
#pragma GCC unroll 16
  for (int s = 1; s < kSubsets; s++) low[s] = low[s & (s - 1)] + reinterpret_cast<Words>(row[__builtin_ctz(s)]);
#pragma GCC unroll 16
  for (int s = 0; s < kSubsets; s++) table.low[s] = low[s];
#pragma GCC unroll 4
  for (int i = 0; i < kSubsetInputs; i++) row[i] >>= kFineShift;
  high[0] = Shorts{};
#pragma GCC unroll 16
  for (int s = 1; s < kSubsets; s++) high[s] = high[s & (s - 1)] + row[__builtin_ctz(s)];
#pragma GCC unroll 16
  for (int s = 0; s < kSubsets; s++) table.high[s] = __builtin_convertvector(high[s] >> kCoarseShift, HalfBytes);
}

static inline int32_t subset_groups(int32_t inputs) {
  constexpr int32_t kInputs = kByteGroups * kSubsetInputs;
  return (inputs + kInputs - 1) / kInputs * kByteGroups;
}

// indices[n_groups]: for each four inputs the place of their subset in `high` of a table, in bytes; groups are padded
// by empty subsets. Returns how many inputs are on.
static inline int32_t index_subsets(uint16_t* __restrict indices, int32_t n_groups, const uint8_t* __restrict states,
                                    int32_t units) {
  const int32_t whole = units / kSubsetInputs;
  int32_t n_on = 0;
  for (int32_t g = 0; g < whole; g++) {
    uint32_t four;  // bytes of 0 or 1
    memcpy(&four, states + g * kSubsetInputs, sizeof four);
    indices[g] = static_cast<uint16_t>(((four | four >> 7 | four >> 14 | four >> 21) & 15) * sizeof(HalfBytes));
  }
  for (int32_t g = whole; g < n_groups; g++) indices[g] = 0;
  for (int32_t u = whole * kSubsetInputs; u < units; u++)
    indices[whole] += static_cast<uint16_t>((states[u] << u % kSubsetInputs) * sizeof(HalfBytes));
  for (int32_t u = 0; u < units; u++) n_on += states[u];
  return n_on;
}

// sums[n] += the entries that each of n chains takes from n_tables tables
static inline void add_subsets(SubsetSum* __restrict sums, const SubsetTable* __restrict tables, int32_t n_tables,
                               const uint16_t* __restrict indices, int64_t n_groups, int32_t n) {
  for (int32_t c = 0; c < n; c++, indices += n_groups) {
    Words low = Words{};
    Shorts high = Shorts{};
    for (int32_t g = 0; g < n_tables; g += kByteGroups) {
      uint64_t four;
      memcpy(&four, indices + g, sizeof four);
      HalfBytes bytes = HalfBytes{};
#pragma GCC unroll 4
      for (int i = 0; i < kByteGroups; i++) {
        const uint64_t place = four >> 16 * i & 0xffff;
        const SubsetTable& table = tables[g + i];
        low += load<Words>(reinterpret_cast<const char*>(table.low) + place * (sizeof(Words) / sizeof(HalfBytes)));
        bytes += load<HalfBytes>(reinterpret_cast<const char*>(table.high) + place);
      }
      high += __builtin_convertvector(bytes, Shorts);
    }
    const Words rest = low - (reinterpret_cast<Words>(high) << kHighBits);
    sums[c].low += rest & (kHighUnit - 1);
    sums[c].high += high + reinterpret_cast<Shorts>(rest >> kHighBits);
  }
}

// fields[n, stride of the weights] += scale * sums, for n <= kBlockChains chains from `states` on; false if asked to
// stop. exact: [n, stride], for the sums themselves; or null
static inline bool add_dense_input(float* fields, int32_t* exact, const InputView& input, const uint8_t* states,
                                   int32_t n, uint16_t* indices, StopView stop) {
  const WeightsView& weights = input.weights;
  const int32_t n_groups = subset_groups(weights.inputs);
  for (int32_t c = 0; c < n; c++)
    index_subsets(indices + static_cast<int64_t>(c) * n_groups, n_groups,
                  states + c * static_cast<int64_t>(weights.inputs), weights.inputs);
  SubsetTable tables[kTableGroups];
  SubsetSum sums[kBlockChains];
  alignas(64) int32_t totals[kBlockChains][kShortLanes];
  for (int32_t unit = 0; unit < weights.outputs; unit += kShortLanes) {
    if (stop.requested()) return false;
    for (int32_t first = 0; first < n_groups; first += kExactGroups) {
      for (int32_t c = 0; c < n; c++) sums[c] = SubsetSum{};
      for (int32_t g = first; g < n_groups && g < first + kExactGroups; g += kTableGroups) {
        const int32_t n_tables = n_groups - g < kTableGroups ? n_groups - g : kTableGroups;
        for (int32_t i = 0; i < n_tables; i++) {
          const int32_t row = (g + i) * kSubsetInputs, left = weights.inputs - row;
          build_subsets(tables[i], weights.rows + row * static_cast<int64_t>(weights.stride) + unit, weights.stride,
                        left < kSubsetInputs ? left : kSubsetInputs);
        }
        add_subsets(sums, tables, n_tables, indices + g, n_groups, n);
      }
      for (int32_t c = 0; c < n; c++) {
        alignas(64) uint16_t low[kShortLanes];
        alignas(64) int16_t high[kShortLanes];
        store(low, sums[c].low);
        store(high, sums[c].high);
        for (int u = 0; u < kShortLanes; u++) {
          const int32_t sum = static_cast<int32_t>(high[u]) * kHighUnit + low[u];
          totals[c][u] = first ? totals[c][u] + sum : sum;
        }
      }
    }
    for (int32_t c = 0; c < n; c++) {
      const int64_t place = c * static_cast<int64_t>(weights.stride) + unit;
      float* __restrict to = fields + place;
      if (exact) memcpy(exact + place, totals[c], sizeof totals[c]);
      for (int u = 0; u < kShortLanes; u++) to[u] = units::fma(static_cast<float>(totals[c][u]), input.scale, to[u]);
    }
  }
  return true;
}

}  // namespace bm::cpu::BM_ISA
