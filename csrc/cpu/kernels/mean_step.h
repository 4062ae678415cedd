// What the mean-field kernels share: the step from fields to means, and which cases still change.
#pragma once

#include "cpu/kernels/draw.h"
#include "cpu/mean_field_kernels.h"

namespace bm::cpu::BM_ISA {

// means[units] from the fields of one case; returns the largest change.
static inline float step_means(float* __restrict means, const float* __restrict fields, const LayerView& layer,
                               float damping) {
  float change = 0.f;
  const Softmax softmax = layer.kind == Kind::kSoftmax ? softmax_of(fields, layer.units, nullptr) : Softmax{};
  for (int32_t unit = 0; unit < layer.units; unit += kPad) {
    const int32_t width = layer.units - unit < kPad ? layer.units - unit : kPad;
    alignas(64) float fresh[kPad], old[kPad] = {};
    memcpy(old, means + unit, width * sizeof(float));
    tile_means(fresh, fields + unit, layer, unit, nullptr, false, softmax);
    float largest[kPad];
    for (int32_t u = 0; u < kPad; u++) {
      if (damping != 0.f) fresh[u] = units::fma(damping, old[u] - fresh[u], fresh[u]);  // `old` may hold anything
      const float size = __builtin_fabsf(fresh[u] - old[u]);
      largest[u] = u < width ? size : 0.f;
    }
    for (int32_t u = 0; u < kPad; u++) change = largest[u] > change ? largest[u] : change;
    memcpy(means + unit, fresh, width * sizeof(float));
  }
  return change;
}

// Makes up for inputs that do not count yet.
static inline void scale_fields(float* __restrict fields, const LayerView& layer, float scale) {
  for (int32_t u = 0; u < layer.padded; u++)
    fields[u] = units::fma(scale, fields[u] - layer.biases[u], layer.biases[u]);
}

// The cases of a block that have not come to rest. A case's path does not depend on those beside it.
struct ActiveCases {
  int32_t n;
  int32_t rows[mean_field::kCases];
  float changes[mean_field::kCases];

  explicit ActiveCases(int32_t n_cases) : n(n_cases) {
    for (int32_t c = 0; c < n; c++) rows[c] = c;
  }
  void begin_iteration() {
    for (int32_t k = 0; k < n; k++) changes[rows[k]] = 0.f;
  }
  void note(int32_t row, float change) { changes[row] = change > changes[row] ? change : changes[row]; }
  void end_iteration(const mean_field::Iterations& what, int64_t first, int64_t iteration) {
    int32_t left = 0;
    for (int32_t k = 0; k < n; k++) {
      const int32_t row = rows[k];
      what.changes[first + row] = changes[row];
      what.performed[first + row] = static_cast<int32_t>(iteration) + 1;
      rows[left] = row;
      left += !(what.tolerance > 0.f && changes[row] <= what.tolerance);
    }
    n = left;
  }
};

}  // namespace bm::cpu::BM_ISA
