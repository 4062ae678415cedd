// Sums by tables of five weights in memory: how they are built, and how their entries are added up.
#pragma once

#include "cpu/kernels/avx512.h"
#include "cpu/lookup_kernels.h"

namespace bm::cpu::BM_ISA {

using namespace lookup;

// Sums of 16 subsets: the high limbs, and the low ones as they are.
BM_UNITS void store_limbs(int16_t* high, __m256i& low, __m512i sums) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi32_epi16(_mm512_srai_epi32(sums, kLowBits)));
  low = _mm512_cvtepi32_epi16(_mm512_and_si512(sums, _mm512_set1_epi32(kMostLow)));
}

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
BM_UNITS void build_entries(int16_t* high, __m256i (&low)[2], const int16_t* w) {
  __m512i sums = _mm512_maskz_set1_epi32(0xAAAA, w[0]);
  sums = _mm512_mask_add_epi32(sums, 0xCCCC, sums, _mm512_set1_epi32(w[1]));
  sums = _mm512_mask_add_epi32(sums, 0xF0F0, sums, _mm512_set1_epi32(w[2]));
  sums = _mm512_mask_add_epi32(sums, 0xFF00, sums, _mm512_set1_epi32(w[3]));
  store_limbs(high, low[0], sums);
  store_limbs(high + 16, low[1], _mm512_add_epi32(sums, _mm512_set1_epi32(w[4])));
}

static int build_tables(int16_t* high, int16_t* low, const int16_t* weights, int64_t pitch, int n_in, int n_out,
                        int words) {
  int fit = words < kRunWords ? words : kRunWords;
  for (int u = 0; u < n_out; u++) fit = words_that_fit(weights + u * pitch, n_in, fit);
  const int groups = words * kWordGroups, whole = n_in / kGroup;
  for (int g = 0; g < groups; g++, high += kUnits * kEntries) {
    for (int pair = 0; pair < kUnits / kLowUnits; pair++, low += kEntries) {
      __m256i limbs[kLowUnits][2];
      for (int u = 0; u < kLowUnits; u++) {
        const int unit = pair * kLowUnits + u;
        const int16_t* five = weights + unit * pitch + g * kGroup;
        if (unit < n_out && g < whole) {
          build_entries(high + unit * kEntries, limbs[u], five);
        } else {
          int16_t w[kGroup] = {};
          for (int i = 0; unit < n_out && i < kGroup && g * kGroup + i < n_in; i++) w[i] = five[i];
          build_entries(high + unit * kEntries, limbs[u], w);
        }
      }
      for (int half = 0; half < 2; half++)
        _mm256_store_si256(reinterpret_cast<__m256i*>(low + 16 * half),
                           _mm256_or_si256(limbs[0][half], _mm256_slli_epi16(limbs[1][half], 8)));
    }
  }
  return fit;
}

// --- accumulation ----------------------------------------------------------------------------------------------------

// sums[kRows][32 kRegs] over `words` words, wrapped to 16 bits (the caller keeps to what fits), of tables that have
// kRows entries of 32 lanes for each group. The accumulators stay in registers, but for one or two of 24. Two vpermw
// and two vpaddw are one asm because GCC otherwise reorders the additions and spills more, which costs a factor of two;
// where they take turns, that is 7 % slower, and with entries from memory 5 %.
template <int kRows, int kRegs>
BM_UNITS void accumulate_limb(__m512i (&sums)[kRows][kRegs], const int16_t* states, int64_t block_stride,
                              const int16_t* table, int words, const int16_t* ahead, int lines_ahead) {
  static_assert(kRegs % 2 == 0);
#pragma GCC unroll 4
  for (int u = 0; u < kRows; u++)
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) sums[u][r] = _mm512_setzero_si512();
  for (int w = 0; w < words; w++, states += kBlock) {
    for (int line = 0; line < lines_ahead; line++, ahead += kEntries) _mm_prefetch(ahead, _MM_HINT_T1);
    __m512i index[kRegs];
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) index[r] = _mm512_load_si512(states + r / 2 * block_stride + r % 2 * kLanes);
#pragma GCC unroll 3
    for (int g = 0; g < kWordGroups; g++, table += kRows * kEntries) {
#pragma GCC unroll 4
      for (int u = 0; u < kRows; u++) {
        const __m512i entries = _mm512_load_si512(table + u * kEntries);
#pragma GCC unroll 3
        for (int r = 0; r < kRegs; r += 2)
          asm volatile("vpermw %4,%2,%%zmm30\n\tvpermw %4,%3,%%zmm31\n\tvpaddw %%zmm30,%0,%0\n\tvpaddw %%zmm31,%1,%1"
                       : "+v"(sums[u][r]), "+v"(sums[u][r + 1])
                       : "v"(index[r]), "v"(index[r + 1]), "v"(entries)
                       : "zmm30", "zmm31");
      }
      if (g + 1 < kWordGroups) {  // the next five bits; vpermw ignores the bits above
#pragma GCC unroll 6
        for (int r = 0; r < kRegs; r++) index[r] = _mm512_srli_epi16(index[r], kGroup);
      }
    }
  }
}

// to[32] = (or +=) sums
BM_UNITS void add_to(int16_t* to, bool add, __m512i sums) {
  _mm512_store_si512(to, add ? _mm512_add_epi16(_mm512_load_si512(to), sums) : sums);
}

template <int kRegs>
__attribute__((noinline)) static void accumulate_high_tile(int16_t* to, bool add, int shift, const int16_t* states,
                                                           int64_t block_stride, const int16_t* table, int words,
                                                           const int16_t* ahead, int lines_ahead) {
  __m512i sums[kUnits][kRegs];
  accumulate_limb(sums, states, block_stride, table, words, ahead, lines_ahead);
  const __m128i by = _mm_cvtsi32_si128(shift);
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) add_to(to + u * kTile + r * kLanes, add, _mm512_sra_epi16(sums[u][r], by));
}

static void accumulate_high(int16_t* sums, bool add, int shift, const int16_t* states, int64_t block_stride,
                            const int16_t* high, int words, int blocks, const int16_t* ahead, int lines_ahead) {
  const auto tile = blocks == 1   ? accumulate_high_tile<2>
                    : blocks == 2 ? accumulate_high_tile<4>
                                  : accumulate_high_tile<6>;
  tile(sums, add, shift, states, block_stride, high, words, ahead, lines_ahead);
}

template <int kRegs>
__attribute__((noinline)) static void accumulate_low_tile(int16_t* to, bool add, const int16_t* states,
                                                          int64_t block_stride, const int16_t* table, int words,
                                                          const int16_t* ahead, int lines_ahead) {
  __m512i sums[kUnits / kLowUnits][kRegs];
  accumulate_limb(sums, states, block_stride, table, words, ahead, lines_ahead);
  const __m512i byte = _mm512_set1_epi16(255);
#pragma GCC unroll 2
  for (int pair = 0; pair < kUnits / kLowUnits; pair++)
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) {
      int16_t* first = to + pair * kLowUnits * kTile + r * kLanes;
      add_to(first, add, _mm512_and_si512(sums[pair][r], byte));
      add_to(first + kTile, add, _mm512_srli_epi16(sums[pair][r], 8));
    }
}

static void accumulate_low(int16_t* sums, bool add, const int16_t* states, int64_t block_stride, const int16_t* low,
                           int words, int blocks, const int16_t* ahead, int lines_ahead) {
  const auto tile = blocks == 1   ? accumulate_low_tile<2>
                    : blocks == 2 ? accumulate_low_tile<4>
                                  : accumulate_low_tile<6>;
  tile(sums, add, states, block_stride, low, words, ahead, lines_ahead);
}

static void widen(int32_t* sums, bool add, const int16_t* high, int runs, const int16_t* low, int blocks) {
  for (int u = 0; u < kUnits; u++)
    for (int lane = 0; lane < blocks * kBlock; lane += 16) {
      const int at = u * kTile + lane;
      const auto load = [at](const int16_t* from) __attribute__((always_inline)) {
        return _mm256_load_si256(reinterpret_cast<const __m256i*>(from + at));
      };
      __m512i total = _mm512_cvtepi16_epi32(load(high));
      for (int run = 1; run < runs; run++)
        total = _mm512_add_epi32(total, _mm512_cvtepi16_epi32(load(high + run * kUnits * kTile)));
      __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(total, kLowBits), _mm512_cvtepu16_epi32(load(low)));
      if (add) sum = _mm512_add_epi32(sum, _mm512_load_si512(sums + at));
      _mm512_store_si512(sums + at, sum);
    }
}

}  // namespace bm::cpu::BM_ISA
