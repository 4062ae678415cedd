// From fields to states and means, a tile of 64 units of one chain at a time.
#pragma once

#include "cpu/kernels/fields.h"

namespace bm::cpu::BM_ISA {

// words[64]: one random number for each unit of a tile; unit u takes word u % 4 of counter u / 4.
static inline void tile_words(uint32_t* __restrict words, int32_t first_unit, uint32_t chain, uint32_t sweep,
                              uint32_t layer_and_purpose, uint64_t seed) {
#pragma omp simd
  for (int g = 0; g < kPad / 4; g++) {
    uint32_t c0 = static_cast<uint32_t>(first_unit / 4 + g), c1 = chain, c2 = sweep, c3 = layer_and_purpose;
    units::philox(c0, c1, c2, c3, seed);
    words[4 * g] = c0;
    words[4 * g + 1] = c1;
    words[4 * g + 2] = c2;
    words[4 * g + 3] = c3;
  }
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

static inline void tile_means(float* __restrict to, const float* __restrict x, const LayerView& layer, int32_t unit,
                              const float* beta, bool has_base) {
  if (layer.kind == Kind::kGaussian) {
    alignas(64) float precisions[kPad];
    tile_precisions(precisions, layer.precisions + unit, beta, has_base);
    for (int u = 0; u < kPad; u++) to[u] = x[u] / precisions[u];
  } else {
    for (int u = 0; u < kPad; u++) to[u] = units::logistic(x[u]);
  }
}

static inline void tile_decisions(uint8_t* __restrict to, const float* __restrict x, const uint32_t* __restrict words) {
  for (int u = 0; u < kPad; u++) to[u] = units::decide(x[u], words[u]);
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
