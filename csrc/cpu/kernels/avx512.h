// The arithmetic of units.h on registers of 16 lanes: the same bits, faster than what the compiler makes of the scalar
// form.
#pragma once

#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns about undefined registers in its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include "units.h"

namespace bm::cpu::BM_ISA {

BM_UNITS __m512i lane_numbers() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

BM_UNITS __mmask64 first_lanes(int64_t n) { return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }

// n bytes, at most 64, and zeros
BM_UNITS __m512i load_bytes(const uint8_t* from, int64_t n) { return _mm512_maskz_loadu_epi8(first_lanes(n), from); }

// Philox4x32-10 on 16 lanes and kStreams independent counters, interleaved to hide the latency of the multiplications.
template <int kStreams>
BM_UNITS void philox(__m512i (&c0)[kStreams], __m512i (&c1)[kStreams], __m512i (&c2)[kStreams], __m512i (&c3)[kStreams],
                     uint32_t key0, uint32_t key1) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53u), m1 = _mm512_set1_epi64(0xCD9E8D57u);
  constexpr auto kDupEven = static_cast<_MM_PERM_ENUM>(0xA0), kDupOdd = static_cast<_MM_PERM_ENUM>(0xF5);
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const __m512i k0 = _mm512_set1_epi32(static_cast<int>(key0)), k1 = _mm512_set1_epi32(static_cast<int>(key1));
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; s++) {
      // vpmuludq multiplies even lanes only: multiply even and odd ones, then merge the halves of the products
      const __m512i even0 = _mm512_mul_epu32(c0[s], m0), even1 = _mm512_mul_epu32(c2[s], m1);
      const __m512i odd0 = _mm512_mul_epu32(_mm512_srli_epi64(c0[s], 32), m0);
      const __m512i odd1 = _mm512_mul_epu32(_mm512_srli_epi64(c2[s], 32), m1);
      const __m512i low0 = _mm512_mask_shuffle_epi32(even0, 0xAAAA, odd0, kDupEven);
      const __m512i high0 = _mm512_mask_shuffle_epi32(odd0, 0x5555, even0, kDupOdd);
      const __m512i low1 = _mm512_mask_shuffle_epi32(even1, 0xAAAA, odd1, kDupEven);
      const __m512i high1 = _mm512_mask_shuffle_epi32(odd1, 0x5555, even1, kDupOdd);
      c0[s] = _mm512_ternarylogic_epi32(high1, c1[s], k0, 0x96);  // three-way xor
      c2[s] = _mm512_ternarylogic_epi32(high0, c3[s], k1, 0x96);
      c1[s] = low1;
      c3[s] = low0;
    }
  }
}

// exp(-x): the polynomial of units.h, 16 lanes
BM_UNITS __m512 exp_minus(__m512 x) {
  const __m512 magic = _mm512_set1_ps(12582912.f);
  __m512 t = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f));
  t = _mm512_min_ps(_mm512_max_ps(t, _mm512_set1_ps(-64.f)), _mm512_set1_ps(64.f));
  const __m512 shifted = _mm512_add_ps(t, magic);
  const __m512 r = _mm512_sub_ps(t, _mm512_sub_ps(shifted, magic));
  __m512 p = _mm512_set1_ps(0.00132647f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00967151f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.05550734f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24022242f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69314698f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

BM_UNITS __mmask16 turns_on(__m512 e, __m512i random) {
  const __m512 u = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(random, 8)), _mm512_set1_ps(0x1p-24f),
                                   _mm512_set1_ps(0x1p-25f));
  return _mm512_cmp_ps_mask(_mm512_fmadd_ps(u, e, u), _mm512_set1_ps(1.f), _CMP_LT_OQ);
}

// Transposes the 4 x 4 words of each group of four lanes: from word k of Philox group g in lane g of register k to
// consecutive units, four of each group, in four registers.
BM_UNITS void to_unit_order(__m512i (&words)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi32(words[0], words[1]), high01 = _mm512_unpackhi_epi32(words[0], words[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(words[2], words[3]), high23 = _mm512_unpackhi_epi32(words[2], words[3]);
  // register k: groups k, 4 + k, 8 + k, 12 + k
  const __m512i group[4] = {_mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
                            _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
  const __m512i even01 = _mm512_shuffle_i32x4(group[0], group[1], 0x88);  // groups 0, 8, 1, 9
  const __m512i even23 = _mm512_shuffle_i32x4(group[2], group[3], 0x88);
  const __m512i odd01 = _mm512_shuffle_i32x4(group[0], group[1], 0xDD);  // groups 4, 12, 5, 13
  const __m512i odd23 = _mm512_shuffle_i32x4(group[2], group[3], 0xDD);
  words[0] = _mm512_shuffle_i32x4(even01, even23, 0x88);
  words[1] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
  words[2] = _mm512_shuffle_i32x4(even01, even23, 0xDD);
  words[3] = _mm512_shuffle_i32x4(odd01, odd23, 0xDD);
}

}  // namespace bm::cpu::BM_ISA
