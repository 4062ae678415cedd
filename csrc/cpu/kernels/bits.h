// Bits of states for AVX-512 BW: 64 chains times 64 units, turned from one word for each chain to one for each unit.
#pragma once

#include "cpu/kernels/avx512.h"

namespace bm::cpu::BM_ISA {

// kStep: rows whose halves of 2 kStep bits are exchanged; all of them lie kStep rows apart in eight registers.
template <int kStep>
BM_UNITS void exchange_registers(__m512i (&rows)[8], uint64_t low) {
  const __m512i mask = _mm512_set1_epi64(static_cast<int64_t>(low));
  constexpr int kApart = kStep / 8;
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) {
    if (k & kApart) continue;
    __m512i& upper = rows[k];
    __m512i& lower = rows[k + kApart];
    const __m512i swap = _mm512_and_si512(_mm512_xor_si512(_mm512_srli_epi64(upper, kStep), lower), mask);
    upper = _mm512_xor_si512(upper, _mm512_slli_epi64(swap, kStep));
    lower = _mm512_xor_si512(lower, swap);
  }
}

// The same where they are lanes of one register.
template <int kStep>
BM_UNITS void exchange_lanes(__m512i (&rows)[8], uint64_t low, __mmask8 lower, __m512i partner) {
  const __m512i taken = _mm512_mask_mov_epi64(_mm512_set1_epi64(static_cast<int64_t>(low << kStep)), lower,
                                              _mm512_set1_epi64(static_cast<int64_t>(low)));
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) {
    const __m512i other = _mm512_permutexvar_epi64(partner, rows[k]);
    const __m512i shifted = _mm512_mask_srli_epi64(_mm512_slli_epi64(other, kStep), lower, other, kStep);
    rows[k] = _mm512_ternarylogic_epi64(taken, shifted, rows[k], 0xCA);  // taken ? shifted : rows[k]
  }
}

// Transposes a 64 x 64 bit matrix in place: bit j of row i becomes bit i of row j.
static void transpose_bits(uint64_t (&matrix)[64]) {
  __m512i rows[8];
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) rows[k] = _mm512_loadu_si512(matrix + 8 * k);
  exchange_registers<32>(rows, 0x00000000FFFFFFFFu);
  exchange_registers<16>(rows, 0x0000FFFF0000FFFFu);
  exchange_registers<8>(rows, 0x00FF00FF00FF00FFu);
  exchange_lanes<4>(rows, 0x0F0F0F0F0F0F0F0Fu, 0xF0, _mm512_set_epi64(3, 2, 1, 0, 7, 6, 5, 4));
  exchange_lanes<2>(rows, 0x3333333333333333u, 0xCC, _mm512_set_epi64(5, 4, 7, 6, 1, 0, 3, 2));
  exchange_lanes<1>(rows, 0x5555555555555555u, 0xAA, _mm512_set_epi64(6, 7, 4, 5, 2, 3, 0, 1));
#pragma GCC unroll 8
  for (int k = 0; k < 8; k++) _mm512_storeu_si512(matrix + 8 * k, rows[k]);
}

// masks[unit] for 64 units: bit c set where the byte of chain c is not 0.
static void gather_bits(uint64_t (&masks)[64], const uint8_t* bytes, int64_t pitch, int64_t units, int n_chains) {
  for (int c = 0; c < 64; c++) {
    const __m512i x = c < n_chains ? load_bytes(bytes + c * pitch, units) : _mm512_setzero_si512();
    masks[c] = _mm512_test_epi8_mask(x, x);
  }
  transpose_bits(masks);
}

}  // namespace bm::cpu::BM_ISA
