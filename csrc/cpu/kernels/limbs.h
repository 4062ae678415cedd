// W_q as a multiple of a step of the output plus a rest, 8 bits each, in the layout of vpdpbusd.
#pragma once

#include "cpu/kernels/mean_step.h"

namespace bm::cpu::BM_ISA {

using mean_field::kHigh;
using mean_field::kLimbs;
using mean_field::kLow;
using mean_field::kPanelUnits;
using mean_field::kQuad;

constexpr int kLanes = 16, kVectors = kPanelUnits / kLanes;

constexpr int kWords = 32;  // weights of a register

static inline __m512i load_weights(const WeightsView& weights, int32_t row, int32_t unit) {
  if (row >= weights.inputs) return _mm512_setzero_si512();
  return _mm512_load_si512(weights.rows + row * static_cast<int64_t>(weights.stride) + unit);
}

// The least step with which the high limbs of each output fit 8 bits. Steps beyond 240 become 256, with which 32,639
// still gives 127 and all low limbs fit as well.
static inline __m512i high_steps(const WeightsView& weights, int32_t unit) {
  __m512i largest = _mm512_setzero_si512();
  for (int32_t row = 0; row < weights.inputs; row++)
    largest = _mm512_max_epu16(largest, _mm512_abs_epi16(load_weights(weights, row, unit)));
  alignas(64) uint16_t sizes[kWords], steps[kWords];
  _mm512_store_si512(sizes, largest);
  for (int i = 0; i < kWords; i++) {
    const int step = (sizes[i] + 126) / 127;
    steps[i] = static_cast<uint16_t>(step > 240 ? 256 : step > 1 ? step : 1);
  }
  return _mm512_load_si512(steps);
}

// Bytes of limbs of four inputs each, as limb + 128, from words whose low bytes they are; adds up their squares for
// each of 32 outputs, those of -128 as of -127.
static inline void store_quads(uint8_t* to, const __m512i (&limbs)[kQuad], __m512i* squares) {
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80)), low = _mm512_set1_epi16(0xff);
  const __m512i pairs[2] = {_mm512_or_si512(_mm512_and_si512(limbs[0], low), _mm512_slli_epi16(limbs[1], 8)),
                            _mm512_or_si512(_mm512_and_si512(limbs[2], low), _mm512_slli_epi16(limbs[3], 8))};
  const __m512i first = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
  const __m512i orders[2] = {first, _mm512_add_epi64(first, _mm512_set1_epi64(4))};
  const __m512i a = _mm512_unpacklo_epi16(pairs[0], pairs[1]), b = _mm512_unpackhi_epi16(pairs[0], pairs[1]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const __m512i quads = _mm512_permutex2var_epi64(a, orders[i], b);
    const __m512i sizes = _mm512_min_epu8(_mm512_abs_epi8(quads), _mm512_set1_epi8(127));
    squares[i] = _mm512_dpbusd_epi32(squares[i], sizes, sizes);
    _mm512_store_si512(to + i * 64, _mm512_xor_si512(quads, offset));
  }
}

static inline double root(int32_t squares) { return __builtin_sqrt(static_cast<double>(squares)) * (128. / 127.); }

static mean_field::Reach split(uint8_t* high, uint8_t* low, float* steps, const WeightsView& weights, int32_t unit) {
  constexpr int kParts = kPanelUnits / kWords;
  const __m512i one = _mm512_set1_epi16(1);
  mean_field::Reach reach{};
  __m512i step[kParts], reciprocals[kParts], sums[2 * kParts], squares[kLimbs][2 * kParts];
  for (int i = 0; i < 2 * kParts; i++) sums[i] = squares[kHigh][i] = squares[kLow][i] = _mm512_setzero_si512();
  for (int p = 0; p < kParts; p++) {
    alignas(64) uint16_t as_words[kWords], inverse[kWords];
    step[p] = high_steps(weights, unit + p * kWords);
    _mm512_store_si512(as_words, step[p]);
    for (int i = 0; i < kWords; i++) {
      steps[p * kWords + i] = as_words[i];
      inverse[i] = static_cast<uint16_t>(as_words[i] == 1 ? 32767 : (65536 / as_words[i] + 1) / 2);
    }
    reciprocals[p] = _mm512_load_si512(inverse);
  }
  for (int32_t row = 0; row < weights.inputs; row += kQuad) {
    for (int p = 0; p < kParts; p++) {
      __m512i highs[kQuad], lows[kQuad];
#pragma GCC unroll 4
      for (int r = 0; r < kQuad; r++) {
        const __m512i w = load_weights(weights, row + r, unit + p * kWords), size = _mm512_abs_epi16(w);
        sums[2 * p] = _mm512_add_epi32(sums[2 * p], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(size)));
        sums[2 * p + 1] = _mm512_add_epi32(sums[2 * p + 1], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(size, 1)));
        const __m512i h = _mm512_mulhrs_epi16(w, reciprocals[p]);  // off by one at most
        const __m512i l = _mm512_sub_epi16(w, _mm512_mullo_epi16(h, step[p]));
        const __mmask32 above = _mm512_cmpgt_epi16_mask(l, _mm512_set1_epi16(127));
        const __mmask32 below = _mm512_cmplt_epi16_mask(l, _mm512_set1_epi16(-128));
        highs[r] = _mm512_mask_add_epi16(_mm512_mask_sub_epi16(h, below, h, one), above, h, one);
        lows[r] = _mm512_mask_sub_epi16(_mm512_mask_add_epi16(l, below, l, step[p]), above, l, step[p]);
      }
      store_quads(high, highs, squares[kHigh] + 2 * p);
      store_quads(low, lows, squares[kLow] + 2 * p);
      high += 2 * 64;
      low += 2 * 64;
    }
  }
  __m512i largest = _mm512_setzero_si512();
  for (const __m512i& sum : sums) largest = _mm512_max_epi32(largest, sum);
  reach.sum = _mm512_reduce_max_epi32(largest);
  for (int v = 0; v < kVectors; v++) {
    alignas(64) int32_t of_high[kLanes], of_low[kLanes];
    _mm512_store_si512(of_high, squares[kHigh][v]);
    _mm512_store_si512(of_low, squares[kLow][v]);
    for (int i = 0; i < kLanes; i++) {
      const double rest = root(of_low[i]), all = steps[v * kLanes + i] * root(of_high[i]) + rest;
      reach.norms[kHigh] = all > reach.norms[kHigh] ? all : reach.norms[kHigh];
      reach.norms[kLow] = rest > reach.norms[kLow] ? rest : reach.norms[kLow];
    }
  }
  return reach;
}

}  // namespace bm::cpu::BM_ISA
