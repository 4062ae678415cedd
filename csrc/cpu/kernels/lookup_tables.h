// Sums by tables of five weights in memory: how they are built, and how their entries are added up.
#pragma once

#include "cpu/kernels/avx512.h"
#include "cpu/lookup_kernels.h"

namespace bm::cpu::BM_ISA {

using namespace lookup;

BM_UNITS void store_limbs(int16_t* high, int16_t* low, __m512i sums) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi32_epi16(_mm512_srai_epi32(sums, kLowBits)));
  _mm256_store_si256(reinterpret_cast<__m256i*>(low),
                     _mm512_cvtepi32_epi16(_mm512_and_si512(sums, _mm512_set1_epi32(kMostLow))));
}

constexpr int kMaxLowWords = 65535 / kMostLow / kWordGroups;  // low sums are at most kMostLow a group

struct Extremes {  // of the sums over subsets of some weights
  int64_t positive, negative;
};

BM_UNITS Extremes extremes(const int16_t* weights, int begin, int end) {
  int64_t positive = 0, negative = 0;
  for (int i = begin; i < end; i++) {
    positive += weights[i] > 0 ? weights[i] : 0;
    negative += weights[i] < 0 ? weights[i] : 0;
  }
  return {positive, negative};
}

BM_UNITS Extremes word_extremes(const int16_t* weights, int n_in, int word) {
  return extremes(weights, word * kWordUnits, (word + 1) * kWordUnits < n_in ? (word + 1) * kWordUnits : n_in);
}

// Whether high sums over `words` words with these extremes fit 16 bits; the floors of the high limbs take up to one
// from each group's negative sum.
BM_UNITS bool fits(const Extremes& e, int words) {
  constexpr int64_t kLimit = int64_t{32767} << kLowBits;
  return e.positive < kLimit && e.negative - (int64_t{kWordGroups} * words << kLowBits) > -kLimit;
}

// Largest length, up to `fit` words, such that no run of that many words can take a high sum out of 16 bits.
static int words_that_fit(const int16_t* weights, int n_in, int fit) {
  const int words = (n_in + kWordUnits - 1) / kWordUnits;
  if (fits(extremes(weights, 0, n_in), words)) return fit;
  Extremes run = {0, 0};
  for (int start = 0, end = 0; end < words; end++) {
    const Extremes next = word_extremes(weights, n_in, end);
    run.positive += next.positive, run.negative += next.negative;
    while (!fits(run, end - start + 1)) {
      const Extremes first = word_extremes(weights, n_in, start++);
      run.positive -= first.positive, run.negative -= first.negative;
      fit = end - start + 1 < fit ? end - start + 1 : fit;
    }
  }
  return fit;
}

// The 32 subset sums of five weights: of the first four in 16 lanes, then the same plus the fifth.
BM_UNITS void build_entries(int16_t* high, int16_t* low, const int16_t* w) {
  __m512i sums = _mm512_maskz_set1_epi32(0xAAAA, w[0]);
  sums = _mm512_mask_add_epi32(sums, 0xCCCC, sums, _mm512_set1_epi32(w[1]));
  sums = _mm512_mask_add_epi32(sums, 0xF0F0, sums, _mm512_set1_epi32(w[2]));
  sums = _mm512_mask_add_epi32(sums, 0xFF00, sums, _mm512_set1_epi32(w[3]));
  store_limbs(high, low, sums);
  store_limbs(high + 16, low + 16, _mm512_add_epi32(sums, _mm512_set1_epi32(w[4])));
}

static int build_tables(int16_t* high, int16_t* low, const int16_t* weights, int64_t pitch, int n_in, int n_out,
                        int words) {
  const int groups = words * kWordGroups, whole = n_in / kGroup;
  int fit = words < kMaxLowWords ? words : kMaxLowWords;
  for (int u = 0; u < kUnits; u++) {
    const int16_t* row = weights + u * pitch;
    for (int g = 0; g < groups; g++) {
      const int64_t at = (static_cast<int64_t>(g) * kUnits + u) * kEntries;
      if (u < n_out && g < whole) {
        build_entries(high + at, low + at, row + g * kGroup);
      } else {
        int16_t w[kGroup] = {};
        if (u < n_out)
          for (int i = g * kGroup; i < n_in && i < (g + 1) * kGroup; i++) w[i - g * kGroup] = row[i];
        build_entries(high + at, low + at, w);
      }
    }
    if (u < n_out) fit = words_that_fit(row, n_in, fit);
  }
  return fit;
}

// --- accumulation ----------------------------------------------------------------------------------------------------

// One limb: sums[4][32 kRegs] over `words` words, wrapped to 16 bits (the caller keeps to what fits).
// The accumulators stay in registers. vpermw and vpaddw are one asm pair because GCC otherwise reorders the additions
// and spills, which costs a factor of two.
template <int kRegs>
BM_UNITS void accumulate_limb(__m512i (&sums)[kUnits][kRegs], const int16_t* states, int64_t block_stride,
                              const int16_t* table, int words, const int16_t* ahead, int lines_ahead) {
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) sums[u][r] = _mm512_setzero_si512();
  for (int w = 0; w < words; w++, states += kBlock) {
    for (int line = 0; line < lines_ahead; line++, ahead += kEntries) _mm_prefetch(ahead, _MM_HINT_T1);
    __m512i index[kRegs];
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) index[r] = _mm512_load_si512(states + r / 2 * block_stride + r % 2 * kLanes);
#pragma GCC unroll 3
    for (int g = 0; g < kWordGroups; g++, table += kUnits * kEntries) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnits; u++) {
        const __m512i entries = _mm512_load_si512(table + u * kEntries);
#pragma GCC unroll 6
        for (int r = 0; r < kRegs; r++)
          asm volatile("vpermw %2,%1,%%zmm31\n\tvpaddw %%zmm31,%0,%0"
                       : "+v"(sums[u][r])
                       : "v"(index[r]), "v"(entries)
                       : "zmm31");
      }
      if (g + 1 < kWordGroups) {  // the next five bits; vpermw ignores the bits above
#pragma GCC unroll 6
        for (int r = 0; r < kRegs; r++) index[r] = _mm512_srli_epi16(index[r], kGroup);
      }
    }
  }
}

template <int kRegs>
__attribute__((noinline)) static void accumulate_tile(int32_t* out, bool add, const int16_t* states,
                                                      int64_t block_stride, const int16_t* high_table,
                                                      const int16_t* low_table, int words, const int16_t* high_ahead,
                                                      const int16_t* low_ahead, int lines_ahead) {
  alignas(64) int16_t high[kUnits][kRegs * kLanes];
  __m512i sums[kUnits][kRegs];
  accumulate_limb<kRegs>(sums, states, block_stride, high_table, words, high_ahead, lines_ahead);
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) _mm512_store_si512(&high[u][r * kLanes], sums[u][r]);
  if (low_table) {
    accumulate_limb<kRegs>(sums, states, block_stride, low_table, words, low_ahead, lines_ahead);
  } else {
    const __m512i middle = _mm512_set1_epi16(static_cast<int16_t>(words * kWordGroups * kMostLow / 2));
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 6
      for (int r = 0; r < kRegs; r++) sums[u][r] = middle;
  }
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++) {
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) {
      const __m256i low[2] = {_mm512_castsi512_si256(sums[u][r]), _mm512_extracti64x4_epi64(sums[u][r], 1)};
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        const int at = r * kLanes + half * 16;
        const __m512i h = _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(&high[u][at])));
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(h, kLowBits), _mm512_cvtepu16_epi32(low[half]));
        int32_t* to = out + u * kTile + at;
        if (add) sum = _mm512_add_epi32(sum, _mm512_load_si512(to));
        _mm512_store_si512(to, sum);
      }
    }
  }
}

static void accumulate(int32_t* sums, bool add, const int16_t* states, int64_t block_stride, const int16_t* high,
                       const int16_t* low, int words, int blocks, const int16_t* high_ahead, const int16_t* low_ahead,
                       int lines_ahead) {
  const auto tile = blocks == 1 ? accumulate_tile<2> : blocks == 2 ? accumulate_tile<4> : accumulate_tile<6>;
  tile(sums, add, states, block_stride, high, low, words, high_ahead, low_ahead, lines_ahead);
}

}  // namespace bm::cpu::BM_ISA
