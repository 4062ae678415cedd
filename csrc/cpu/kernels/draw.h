// From fields to states and means, a tile of 64 units of one chain at a time.
#pragma once

#include "cpu/kernels/fields.h"

namespace bm::cpu::BM_ISA {

// words[64 kTiles]: one random number for each unit of some tiles; unit u takes word u % 4 of counter u / 4.
template <int kTiles = 1>
static inline void tile_words(uint32_t* __restrict words, int32_t first_unit, uint32_t chain, uint32_t sweep,
                              uint32_t layer_and_purpose, uint64_t seed) {
#if defined(__AVX512BW__)
  static_assert(kPad == 64);
  __m512i c0[kTiles], c1[kTiles], c2[kTiles], c3[kTiles];
  for (int t = 0; t < kTiles; t++) {
    c0[t] = _mm512_add_epi32(lane_numbers(), _mm512_set1_epi32(first_unit / 4 + 16 * t));
    c1[t] = _mm512_set1_epi32(static_cast<int>(chain));
    c2[t] = _mm512_set1_epi32(static_cast<int>(sweep));
    c3[t] = _mm512_set1_epi32(static_cast<int>(layer_and_purpose));
  }
  philox<kTiles>(c0, c1, c2, c3, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  for (int t = 0; t < kTiles; t++) {
    __m512i of_units[4] = {c0[t], c1[t], c2[t], c3[t]};
    to_unit_order(of_units);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) _mm512_store_si512(words + kPad * t + 16 * i, of_units[i]);
  }
#else
#pragma omp simd
  for (int g = 0; g < kTiles * kPad / 4; g++) {
    uint32_t c0 = static_cast<uint32_t>(first_unit / 4 + g), c1 = chain, c2 = sweep, c3 = layer_and_purpose;
    units::philox(c0, c1, c2, c3, seed);
    words[4 * g] = c0;
    words[4 * g + 1] = c1;
    words[4 * g + 2] = c2;
    words[4 * g + 3] = c3;
  }
#endif
}

// The field at inverse temperature beta on the path from biases `base` to the model, in place; n is a multiple of
// tiles.
static inline void temper(float* __restrict x, const float* beta, const float* __restrict base, int32_t n) {
  if (!beta) return;
  const float b = *beta;
  if (base) {
    for (int32_t u = 0; u < n; u++) x[u] = units::fma(b, x[u], (1.f - b) * base[u]);
  } else {
    for (int32_t u = 0; u < n; u++) x[u] = b * x[u];
  }
}

// Precisions of a tile of a Gaussian layer: beta scales them too, unless a base distribution shares them.
static inline void tile_precisions(float* __restrict to, const float* __restrict precisions, const float* beta,
                                   bool has_base) {
  const float b = beta && !has_base ? *beta : 1.f;
  for (int u = 0; u < kPad; u++) to[u] = b * precisions[u];
}

// What tells the probabilities of a softmax layer from its fields: the largest of them, and the sum of all terms in the
// order of the units.
struct Softmax {
  float largest, total;
};

// terms[64] of the units of a tile; 0 for those that are held
static inline void softmax_terms(float* __restrict terms, const float* __restrict x, float largest,
                                 const uint8_t* __restrict held, int32_t width) {
  for (int u = 0; u < kPad; u++) terms[u] = units::softmax_term(x[u], largest);
  if (!held) return;
  for (int32_t u = 0; u < width; u++) terms[u] = held[u] ? 0.f : terms[u];
}

static inline int32_t tile_width(int32_t n, int32_t unit) { return n - unit < kPad ? n - unit : kPad; }

// The first `width` of a tile: of a whole one some stores, where a call would take longer than they do.
template <class T>
static inline void copy_tile(T* __restrict to, const T* __restrict from, int32_t width) {
  if (width == kPad) {
    memcpy(to, from, kPad * sizeof(T));
  } else {
    memcpy(to, from, width * sizeof(T));
  }
}

// Of n fields, padded to whole tiles; held: [n] or null.
static inline Softmax softmax_of(const float* __restrict x, int32_t n, const uint8_t* __restrict held) {
  Softmax softmax = {-__builtin_inff(), 0.f};
  for (int32_t u = 0; u < n; u++)
    if (x[u] > softmax.largest && !(held && held[u])) softmax.largest = x[u];
  for (int32_t unit = 0; unit < n; unit += kPad) {
    alignas(64) float terms[kPad];
    const int32_t width = tile_width(n, unit);
    softmax_terms(terms, x + unit, softmax.largest, held ? held + unit : nullptr, width);
    for (int32_t u = 0; u < width; u++) softmax.total += terms[u];
  }
  return softmax;
}

// The first unit whose cumulative sum reaches u times the sum of all.
static inline int32_t choose_unit(const float* __restrict x, int32_t n, const uint8_t* __restrict held,
                                  const Softmax& softmax, uint32_t word) {
  const float threshold = units::uniform(word) * softmax.total;
  float sum = 0.f;
  for (int32_t unit = 0; unit < n; unit += kPad) {
    alignas(64) float terms[kPad];
    const int32_t width = tile_width(n, unit);
    softmax_terms(terms, x + unit, softmax.largest, held ? held + unit : nullptr, width);
    for (int32_t u = 0; u < width; u++) {
      sum += terms[u];
      if (!(sum < threshold)) return unit + u;
    }
  }
  return n - 1;
}

// softmax: of all fields of the layer, where it is one.
static inline void tile_means(float* __restrict to, const float* __restrict x, const LayerView& layer, int32_t unit,
                              const float* beta, bool has_base, const Softmax& softmax) {
  if (layer.kind == Kind::kSoftmax) {
    softmax_terms(to, x, softmax.largest, nullptr, kPad);
    for (int u = 0; u < kPad; u++) to[u] /= softmax.total;
  } else if (layer.kind == Kind::kGaussian) {
    alignas(64) float precisions[kPad];
    tile_precisions(precisions, layer.precisions + unit, beta, has_base);
    for (int u = 0; u < kPad; u++) to[u] = x[u] / precisions[u];
  } else {
    for (int u = 0; u < kPad; u++) to[u] = units::logistic(x[u]);
  }
}

static inline void tile_decisions(uint8_t* __restrict to, const float* __restrict x, const uint32_t* __restrict words) {
#if defined(__AVX512BW__)
  uint64_t on = 0;
#pragma GCC unroll 4
  for (int i = 0; i < kPad; i += 16) {
    const __mmask16 bits = turns_on(exp_minus(_mm512_loadu_ps(x + i)), _mm512_load_si512(words + i));
    on |= static_cast<uint64_t>(bits) << i;
  }
  _mm512_storeu_si512(to, _mm512_maskz_set1_epi8(on, 1));
#else
  for (int u = 0; u < kPad; u++) to[u] = units::decide(x[u], words[u]);
#endif
}

static inline void tile_normals(float* __restrict to, const uint32_t* __restrict words) {
  for (int u = 0; u < kPad; u += 2) units::normals(words[u], words[u + 1], to[u], to[u + 1]);
}

static inline void tile_gaussians(float* __restrict to, const float* __restrict x, const uint32_t* __restrict words,
                                  const LayerView& layer, int32_t unit, const float* beta, bool has_base) {
  alignas(64) float precisions[kPad], noise[kPad];
  tile_precisions(precisions, layer.precisions + unit, beta, has_base);
  tile_normals(noise, words);
  for (int u = 0; u < kPad; u++) to[u] = x[u] / precisions[u] + noise[u] / __builtin_sqrtf(precisions[u]);
}

}  // namespace bm::cpu::BM_ISA
