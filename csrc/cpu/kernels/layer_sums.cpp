// Sums over one layer's values of many chains: over chains, as statistics of few lower units are, and over units.
#include "cpu/kernels/isa.h"

namespace bm::cpu::BM_ISA {

// `values` are read once, in place.
template <int kSums, class T>
static void add_chains(float* __restrict out, const float* __restrict factors, const T* __restrict values,
                       int64_t units, int64_t n_chains, int64_t first, int64_t n) {
  constexpr int kVectors = 4, kWidth = kVectors * kFloatLanes;
  for (int64_t unit = first; unit < first + n; unit += kWidth) {
    const auto width = static_cast<int32_t>(first + n - unit < kWidth ? first + n - unit : kWidth);
    Floats sums[kSums][kVectors] = {};
    alignas(64) float row[kWidth] = {};
    for (int64_t c = 0; c < n_chains; c++) {
      const T* from = values + c * units + unit;
      if (width == kWidth) {  // the compiler knows the length
        for (int32_t u = 0; u < kWidth; u++) row[u] = from[u];
      } else {
        for (int32_t u = 0; u < width; u++) row[u] = from[u];
      }
#pragma GCC unroll 2
      for (int i = 0; i < kSums; i++) {
        const Floats factor = factors[c * kSums + i] - Floats{};
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) sums[i][v] = fma(factor, load<Floats>(row + v * kFloatLanes), sums[i][v]);
      }
    }
    for (int i = 0; i < kSums; i++) {
      for (int v = 0; v < kVectors; v++) store(row + v * kFloatLanes, sums[i][v]);
      memcpy(out + i * units + unit, row, width * sizeof(float));
    }
  }
}

template <class T>
static void add_chains(float* out, const float* factors, int n_sums, const T* values, int64_t units, int64_t n_chains,
                       int64_t first, int64_t n) {
  static_assert(kMostSums == 2);
  n_sums == 1 ? add_chains<1>(out, factors, values, units, n_chains, first, n)
              : add_chains<2>(out, factors, values, units, n_chains, first, n);
}

void weighted_sums(float* out, const float* factors, int n_sums, ValuesView values, int64_t units, int64_t n_chains,
                   int64_t first, int64_t n) {
  if (values.real) {
    add_chains(out, factors, n_sums, static_cast<const float*>(values.data), units, n_chains, first, n);
  } else {
    add_chains(out, factors, n_sums, static_cast<const uint8_t*>(values.data), units, n_chains, first, n);
  }
}

constexpr int kDotLanes = 16;  // of every dot product: fixed, so that the order is the same on every instruction set

template <class T>
static float offset_product(const T* values, const float* offsets, int64_t units) {
  constexpr int kVectors = kDotLanes / kFloatLanes;
  Floats sums[kVectors] = {};
  for (int64_t unit = 0; unit < units; unit += kDotLanes) {
    alignas(64) float value[kDotLanes] = {}, offset[kDotLanes] = {};
    if (units - unit >= kDotLanes) {
      for (int i = 0; i < kDotLanes; i++) value[i] = values[unit + i], offset[i] = offsets[unit + i];
    } else {
      for (int i = 0; unit + i < units; i++) value[i] = values[unit + i], offset[i] = offsets[unit + i];
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      const Floats o = load<Floats>(offset + v * kFloatLanes);
      sums[v] = fma(load<Floats>(value + v * kFloatLanes) - o, o, sums[v]);
    }
  }
  alignas(64) float lanes[kDotLanes];
  for (int v = 0; v < kVectors; v++) store(lanes + v * kFloatLanes, sums[v]);
  for (int half = kDotLanes / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

void offset_products(float* out, ValuesView values, int64_t units, const float* offsets, int64_t n_chains) {
  for (int64_t c = 0; c < n_chains; c++)
    out[c] = values.real ? offset_product(static_cast<const float*>(values.data) + c * units, offsets, units)
                         : offset_product(static_cast<const uint8_t*>(values.data) + c * units, offsets, units);
}

}  // namespace bm::cpu::BM_ISA
