// Draws from fields that are known up to a reach: certain for nearly all units. The others, in doubt, get their exact
// fields, so that rounded sums change no bit.
#pragma once

#include "cpu/doubt.h"
#include "cpu/kernels/draw.h"

namespace bm::cpu::BM_ISA {

// What temper makes of a reach. What floats add to it, `slack`, is in proportion to the largest field or base bias: the
// base's own share of a tempered field adds the like.
static inline float tempered_reach(float reach, float slack, const float* beta, const float* base) {
  if (!beta) return reach;
  return *beta * reach + (base ? __builtin_fabsf(1.f - *beta) * slack : 0.f);
}

// Bit u: whether unit u of a tile of 64 is in doubt; what is drawn for the others. fma(u, e, u) never falls as e rises.
static inline uint64_t tile_likely_decisions(uint8_t* __restrict to, const float* __restrict x,
                                             const uint32_t* __restrict words, const Doubt& doubt) {
#if defined(__AVX512BW__)
  const __m512 least = _mm512_set1_ps(doubt.least), most = _mm512_set1_ps(doubt.most);
  uint64_t surely_on = 0, maybe_on = 0;
#pragma GCC unroll 4
  for (int i = 0; i < kPad; i += 16) {
    const __m512 e = exp_minus(_mm512_loadu_ps(x + i));
    const __m512i random = _mm512_load_si512(words + i);
    surely_on |= static_cast<uint64_t>(turns_on(_mm512_mul_ps(e, most), random)) << i;
    maybe_on |= static_cast<uint64_t>(turns_on(_mm512_mul_ps(e, least), random)) << i;
  }
  _mm512_storeu_si512(to, _mm512_maskz_set1_epi8(surely_on, 1));
  return surely_on ^ maybe_on;
#else
  uint8_t open[kPad];
  for (int i = 0; i < kPad; i++) {
    const float u = units::uniform(words[i]), e = units::exp_minus(x[i]);
    to[i] = units::fma(u, e * doubt.most, u) < 1.f;
    open[i] = to[i] ^ static_cast<uint8_t>(units::fma(u, e * doubt.least, u) < 1.f);
  }
  uint64_t bits = 0;
  for (int i = 0; i < kPad; i += 8) {
    uint64_t eight;
    memcpy(&eight, open + i, sizeof eight);
    if (!eight) continue;
    for (int k = i; k < i + 8; k++) bits |= static_cast<uint64_t>(open[k]) << k;
  }
  return bits;
#endif
}

// Of the weights of the inputs that are on; weights: [padded n]
static inline int32_t sum_of_weights(const int16_t* __restrict weights, const uint8_t* __restrict states, int32_t n) {
  int32_t sum = 0;
#if defined(__AVX512BW__)
  __m512i sums = _mm512_setzero_si512();
  for (int32_t i = 0; i < n; i += 64) {
    const __m512i bytes = load_bytes(states + i, n - i);
    const __m512i low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes));
    const __m512i high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(bytes, 1));
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_load_si512(weights + i), low));
    sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_load_si512(weights + i + 32), high));
  }
  sum = _mm512_reduce_add_epi32(sums);
#else
  for (int32_t i = 0; i < n; i++) sum += weights[i] * states[i];
#endif
  return sum;
}

// The field of one unit of one chain before tempering, with the bits of block_fields; inputs are binary.
static inline float exact_field(const LayerView& layer, const UpdateView& update, const ValuesView* values,
                                int64_t chain, int32_t unit) {
  float x = layer.biases[unit];
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    const int32_t n = input.weights.inputs;
    const int32_t sum = sum_of_weights(input.columns + static_cast<int64_t>(unit) * padded(n),
                                       static_cast<const uint8_t*>(values[input.layer].data) + chain * n, n);
    x = units::fma(static_cast<float>(sum), input.scale, x);
  }
  return x;
}

}  // namespace bm::cpu::BM_ISA
