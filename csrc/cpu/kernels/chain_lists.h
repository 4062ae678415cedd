// Which chains of a panel each unit of the lower layer is on in, as lists of rows of a tile of the upper one.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/vector.h"
#if defined(__AVX512BW__)
#include "cpu/kernels/bits.h"
#endif

namespace bm::cpu::BM_ISA {

// bits[n_units] of up to 64 chains: bit c is the state in chain c
static inline void pack(uint64_t* __restrict bits, const uint8_t* __restrict states, int64_t stride, int64_t n_units,
                        int32_t n_chains) {
#if defined(__AVX512BW__)
  for (int64_t u = 0; u < n_units; u += 64) {
    uint64_t part[64];
    gather_bits(part, states + u, stride, n_units - u, n_chains);
    memcpy(bits + u, part, (n_units - u < 64 ? n_units - u : 64) * sizeof *bits);
  }
#else
  for (int64_t u = 0; u < n_units; u++) bits[u] = 0;
  for (int32_t c = 0; c < n_chains; c++)
    for (int64_t u = 0; u < n_units; u++) bits[u] |= static_cast<uint64_t>(states[c * stride + u]) << c;
#endif
}

constexpr int32_t kPanelWords = (kPanelChains + 63) / 64;

// to[longest, kListed] = rows of the chains in which each of n units is on, and the row of zeros, `none`, where there
// are no more; in AVX-512 BW up to kListSlack more entries are written.
static inline void list_together(uint16_t* __restrict to, const uint64_t (*bits)[kListUnits],
                                 const int32_t* __restrict units, int32_t n, int32_t longest, int32_t n_words,
                                 uint16_t none) {
#if defined(__AVX512BW__)
  static_assert(kListed == 4 && kListSlack == 64);
  uint16_t lists[kListed][kPanelWords * 64 + 32];
  const __m512i filler = _mm512_set1_epi16(static_cast<int16_t>(none));
  const __m512i step = _mm512_set1_epi32(16 * kListTile);
  for (int32_t j = 0; j < kListed; j++) {
    __m512i rows = _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32(kListTile));
    int32_t length = 0;
    for (int32_t w = 0; j < n && w < n_words; w++) {
      const uint64_t on = bits[w][units[j]];
#pragma GCC unroll 4
      for (int i = 0; i < 64; i += 16, rows = _mm512_add_epi32(rows, step)) {
        const auto set = static_cast<__mmask16>(on >> i);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(lists[j] + length),
                            _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(set, rows)));
        length += __builtin_popcount(set);
      }
    }
    for (; length < longest; length += 32) _mm512_storeu_si512(lists[j] + length, filler);
  }
  // entry 4 k + j is lane k of list j: 16 j + k of the first two lists, and from 32 on of the others
  const __m512i lane = lane_numbers(), list = _mm512_slli_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(1)), 5);
  const __m512i pair = _mm512_add_epi32(_mm512_srli_epi32(lane, 1), list);
  const __m512i first = _mm512_or_si512(pair, _mm512_slli_epi32(_mm512_add_epi32(pair, _mm512_set1_epi32(16)), 16));
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(8));
  for (int32_t k = 0; k < longest; k += 16) {
    __m512i two[2];
    for (int i = 0; i < 2; i++) {
      const __m256i *even = reinterpret_cast<const __m256i*>(lists[2 * i] + k),
                    *odd = reinterpret_cast<const __m256i*>(lists[2 * i + 1] + k);
      two[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(even)), _mm256_loadu_si256(odd), 1);
    }
    _mm512_storeu_si512(to + k * kListed, _mm512_permutex2var_epi16(two[0], first, two[1]));
    _mm512_storeu_si512(to + k * kListed + 32, _mm512_permutex2var_epi16(two[0], second, two[1]));
  }
#else
  for (int32_t j = 0; j < kListed; j++) {
    int32_t k = 0;
    for (int32_t w = 0; j < n && w < n_words; w++)
      for (uint64_t rest = bits[w][units[j]]; rest; rest &= rest - 1, k++)
        to[k * kListed + j] = static_cast<uint16_t>((w * 64 + __builtin_ctzll(rest)) * kListTile);
    for (; k < longest; k++) to[k * kListed + j] = none;
  }
#endif
}

// Lists the chains of a panel in which each lower unit is on. Units are taken by the length of their lists, and those
// of four are interleaved; the row of zeros fills up the shorter ones.
static void list_chains(PanelLists& lists, const uint8_t* states, int64_t stride, int32_t n_units, int32_t n_chains) {
  uint64_t bits[kPanelWords][kListUnits];
  int32_t n_words = 0;
  for (int32_t c = 0; c < n_chains; c += 64, n_words++)
    pack(bits[n_words], states + c * stride, stride, n_units, n_chains - c < 64 ? n_chains - c : 64);
  int32_t lengths[kListUnits], begins[kPanelChains + 2] = {};
  for (int32_t u = 0; u < n_units; u++) {
    lengths[u] = 0;
    for (int32_t w = 0; w < n_words; w++) lengths[u] += __builtin_popcountll(bits[w][u]);
    begins[lengths[u] + 1]++;
  }
  for (int32_t i = 0; i <= kPanelChains; i++) begins[i + 1] += begins[i];
  for (int32_t u = 0; u < n_units; u++) lists.order[begins[lengths[u]]++] = u;
  int32_t place = 0;
  for (int32_t i = 0; i < n_units; i += kListed) {
    const int32_t n = n_units - i < kListed ? n_units - i : kListed;
    const int32_t longest = lengths[lists.order[i + n - 1]];
    lists.lengths[i / kListed] = longest;
    list_together(lists.rows + place, bits, lists.order + i, n, longest, n_words,
                  static_cast<uint16_t>(n_chains * kListTile));
    place += longest * kListed;
  }
}

// The first chain from which on all values of some lower units are 0 or 1.
static int32_t first_binary(const float* values, int64_t stride, int32_t n_units, int32_t n_chains) {
  for (int32_t c = n_chains; c > 0; c--) {
    bool is_binary = true;
    for (int32_t u = 0; u < n_units; u++) {
      const float value = values[(c - 1) * stride + u];
      is_binary &= value == 0.f || value == 1.f;
    }
    if (!is_binary) return c;
  }
  return 0;
}

// Values of lower units in a panel: those of kFactors units together, chain by chain, where any is neither 0 nor 1, and
// from there on lists as list_chains makes them, of units as they come. Zeros fill up the last ones.
static void gather_factors(float* __restrict factors, PanelLists& lists, const float* values, int64_t stride,
                           int32_t n_units, int32_t n_chains) {
  static_assert(kFactors == kListed);
  lists.first = first_binary(values, stride, n_units, n_chains);
  uint16_t* rows = lists.rows;
  for (int32_t unit = 0; unit < n_units; unit += kFactors) {
    const int32_t n = n_units - unit < kFactors ? n_units - unit : kFactors;
    for (int32_t c = 0; c < lists.first; c++, factors += kFactors)
      for (int32_t i = 0; i < kFactors; i++) factors[i] = i < n ? values[c * stride + unit + i] : 0.f;
    int32_t lengths[kFactors] = {}, longest = 0;
    for (int32_t c = lists.first; c < n_chains; c++)
      for (int32_t i = 0; i < n; i++) {
        rows[lengths[i] * kFactors + i] = static_cast<uint16_t>(c * kListTile);
        lengths[i] += values[c * stride + unit + i] != 0.f;
      }
    for (const int32_t length : lengths) longest = length > longest ? length : longest;
    for (int32_t i = 0; i < kFactors; i++)
      for (int32_t k = lengths[i]; k < longest; k++)
        rows[k * kFactors + i] = static_cast<uint16_t>(n_chains * kListTile);
    lists.lengths[unit / kFactors] = longest;
    rows += longest * kFactors;
  }
}

}  // namespace bm::cpu::BM_ISA
