// Sums by tables of four weights that are made in registers whenever they are wanted.
//
// The low limb of a sum is the sum modulo 2^16, the high one the sum divided by 512 and rounded down. Over some groups
// of four inputs, sum = 512 high + rest, where the rest is below 2^16 and the low limb gives it modulo 2^16. With
// weights of at most 32,639, high sums fit 16 bits for 128 groups, and so do rests, which are at most 511 a group.
#pragma once

#include "cpu/kernels/avx512.h"
#include "cpu/lookup_kernels.h"

namespace bm::cpu::BM_ISA {

using namespace lookup;

constexpr int kLimbBits = 9;
constexpr int kLimbGroups = 128;

// Lane i: 1 in the low half if `bit` of i is set, 1 in the high half if the next bit is.
template <int kBit>
BM_UNITS __m512i pair_subsets() {
  const __m512i one = _mm512_set1_epi32(1), bits = _mm512_srli_epi32(lane_numbers(), kBit);
  return _mm512_or_si512(_mm512_and_si512(bits, one),
                         _mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(bits, 1), one), 16));
}

// Lane i: the sum of those of two weights that `subsets` selects.
BM_UNITS __m512i pair_sums(const int16_t* weights, __m512i subsets) {
  int32_t two;
  memcpy(&two, weights, sizeof two);
  return _mm512_madd_epi16(_mm512_set1_epi32(two), subsets);
}

// Moves the bits of the high limb to the upper word of 32.
BM_UNITS __m512i high_up(__m512i sums) { return _mm512_slli_epi32(sums, 16 - kLimbBits); }

// Lookups in two registers of chains, each added to a sum. In assembly because GCC otherwise reorders the additions and
// spills, which costs a factor of two; permutes and additions that take turns are 15 % slower.
BM_UNITS void look_up(__m512i& a, __m512i& b, __m512i index_a, __m512i index_b, __m512i table) {
  asm volatile("vpermw %4,%2,%%zmm30\n\tvpermw %4,%3,%%zmm31\n\tvpaddw %%zmm30,%0,%0\n\tvpaddw %%zmm31,%1,%1"
               : "+v"(a), "+v"(b)
               : "v"(index_a), "v"(index_b), "v"(table)
               : "zmm30", "zmm31");
}

using Limbs = int16_t[kUnits][2][kBlock];  // sums of low and high limbs, modulo 2^16

// sums = (or +=) what the limbs stand for. Apart from the loops that add up limbs, whose registers it would spill.
__attribute__((noinline)) static void widen(int32_t* sums, bool add, const Limbs& limbs, int n_chains) {
  for (int u = 0; u < kUnits; u++) {
    for (int chain = 0; chain < n_chains; chain += kLanes) {
      const __m512i low = _mm512_load_si512(&limbs[u][0][chain]), high = _mm512_load_si512(&limbs[u][1][chain]);
      const __m512i rest = _mm512_sub_epi16(low, _mm512_slli_epi16(high, kLimbBits));
      const __m256i highs[2] = {_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64(high, 1)};
      const __m256i rests[2] = {_mm512_castsi512_si256(rest), _mm512_extracti64x4_epi64(rest, 1)};
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        int32_t* to = sums + u * kTile + chain + half * 16;
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(_mm512_cvtepi16_epi32(highs[half]), kLimbBits),
                                       _mm512_cvtepu16_epi32(rests[half]));
        if (add) sum = _mm512_add_epi32(sum, _mm512_load_si512(to));
        _mm512_store_si512(to, sum);
      }
    }
  }
}

// The 16 subset sums of four weights are the table, in lanes of 32 bits: the low limb is the lower word of a lane, and
// the high limb the upper word after a shift. So an index is twice the subset, or that plus one.
template <int kRegs>
__attribute__((noinline)) static void accumulate_few_tile(Limbs& limbs, const int16_t* states,
                                                          const int16_t* const* rows, int64_t first, int64_t end) {
  const __m512i subsets01 = pair_subsets<0>(), subsets23 = pair_subsets<2>(), one = _mm512_set1_epi16(1);
  const int16_t* const row[kUnits] = {rows[0], rows[1], rows[2], rows[3]};
  __m512i low[kUnits][kRegs], high[kUnits][kRegs];
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 2
    for (int r = 0; r < kRegs; r++) low[u][r] = high[u][r] = _mm512_setzero_si512();
  for (int64_t i = first * kInRegisters.units; i < end * kInRegisters.units;
       i += kInRegisters.units, states += kBlock) {
    __m512i at_low[kRegs], at_high[kRegs];
#pragma GCC unroll 2
    for (int r = 0; r < kRegs; r++) {
      at_low[r] = _mm512_load_si512(states + r * kLanes);
      at_high[r] = _mm512_or_si512(at_low[r], one);
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; u++) {
      const __m512i table = _mm512_add_epi32(pair_sums(row[u] + i, subsets01), pair_sums(row[u] + i + 2, subsets23));
      if constexpr (kRegs == 2) {
        look_up(low[u][0], low[u][1], at_low[0], at_low[1], table);
        look_up(high[u][0], high[u][1], at_high[0], at_high[1], high_up(table));
      } else {
        low[u][0] = _mm512_add_epi16(low[u][0], _mm512_permutexvar_epi16(at_low[0], table));
        high[u][0] = _mm512_add_epi16(high[u][0], _mm512_permutexvar_epi16(at_high[0], high_up(table)));
      }
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 2
    for (int r = 0; r < kRegs; r++) {
      _mm512_store_si512(&limbs[u][0][r * kLanes], low[u][r]);
      _mm512_store_si512(&limbs[u][1][r * kLanes], high[u][r]);
    }
}

static void accumulate_few(int32_t* sums, const int16_t* states, const int16_t* const* rows, int n_in, int n_chains) {
  const auto tile = n_chains <= kLanes ? accumulate_few_tile<1> : accumulate_few_tile<2>;
  const int64_t groups = kInRegisters.words(n_in);
  alignas(64) Limbs limbs;
  for (int64_t first = 0; first < groups; first += kLimbGroups) {
    tile(limbs, states + first * kBlock, rows, first, groups - first < kLimbGroups ? groups : first + kLimbGroups);
    widen(sums, first > 0, limbs, n_chains);
  }
}

}  // namespace bm::cpu::BM_ISA
