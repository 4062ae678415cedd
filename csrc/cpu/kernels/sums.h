// Sums over the units of a state or field: in double, each in one fixed order, or exact.
#pragma once

#include "cpu/kernels/vector.h"
#include "cpu/views.h"
#if defined(__AVX512BW__)
#include "cpu/kernels/avx512.h"
#endif

namespace bm::cpu::BM_ISA {

constexpr int kLanes = 8;  // of every sum: fixed, so that the order is the same on every instruction set

typedef double Doubles __attribute__((vector_size(kVectorBytes)));
typedef int64_t DoubleBits __attribute__((vector_size(kVectorBytes)));
typedef float HalfFloats __attribute__((vector_size(kVectorBytes / 2)));
constexpr int kDoubleLanes = kVectorBytes / sizeof(double), kParts = kLanes / kDoubleLanes;

static inline double add_lanes(const double* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static inline double add_lanes(const Doubles (&parts)[kParts]) {
  alignas(64) double lanes[kLanes];
  for (int i = 0; i < kParts; i++) store(lanes + i * kDoubleLanes, parts[i]);
  return add_lanes(lanes);
}

template <class A, class B>
static inline double dot(const A* __restrict a, const B* __restrict b, int32_t n) {
  alignas(64) double lanes[kLanes] = {};
  int32_t u = 0;
  for (; u + kLanes <= n; u += kLanes)
    for (int i = 0; i < kLanes; i++) lanes[i] += static_cast<double>(a[u + i]) * static_cast<double>(b[u + i]);
  for (int i = 0; u + i < n; i++) lanes[i] += static_cast<double>(a[u + i]) * static_cast<double>(b[u + i]);
  return add_lanes(lanes);
}

#if defined(__AVX512BW__)
// The same sum of the values of units that are on.
static inline double dot(const uint8_t* __restrict state, const double* __restrict values, int32_t n) {
  Doubles sum[kParts] = {};
  for (int32_t u = 0; u < n; u += 64) {
    const __m512i bytes = load_bytes(state + u, n - u);
    const __mmask64 on = _mm512_test_epi8_mask(bytes, bytes);
    for (int i = 0; i < 64 && u + i < n; i += kLanes) {
      const auto eight = static_cast<__mmask8>(on >> i);
      sum[0] = _mm512_mask_add_pd(sum[0], eight, sum[0], _mm512_maskz_loadu_pd(eight, values + u + i));
    }
  }
  return add_lanes(sum);
}
#endif

// Of the values of units that are on, without undefined overflow.
template <class T>
static inline int64_t sum_on(const T* __restrict values, const uint8_t* __restrict state, int32_t n) {
  uint64_t total = 0;
#if defined(__AVX512BW__)
  __m512i sum = _mm512_setzero_si512();
  for (int32_t u = 0; u < n; u += 64) {
    const __m512i bytes = load_bytes(state + u, n - u);
    const __mmask64 on = _mm512_test_epi8_mask(bytes, bytes);
    for (int i = 0; i < 64 && u + i < n; i += 8) {
      const auto eight = static_cast<__mmask8>(on >> i);
      if constexpr (sizeof(T) == sizeof(int64_t)) {
        sum = _mm512_add_epi64(sum, _mm512_maskz_loadu_epi64(eight, values + u + i));
      } else {
        sum = _mm512_add_epi64(sum, _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(eight, values + u + i)));
      }
    }
  }
  total = static_cast<uint64_t>(_mm512_reduce_add_epi64(sum));
#else
  for (int32_t u = 0; u < n; u++) total += state[u] ? static_cast<uint64_t>(int64_t{values[u]}) : 0;
#endif
  return static_cast<int64_t>(total);
}

static inline const uint8_t* binary_state(const ValuesView& values, int32_t units, int64_t chain) {
  return static_cast<const uint8_t*>(values.data) + chain * units;
}

static inline const float* real_state(const ValuesView& values, int32_t units, int64_t chain) {
  return static_cast<const float*>(values.data) + chain * units;
}

template <class B>
static inline double dot_state(const ValuesView& values, const B* other, int32_t units, int64_t chain) {
  return values.real ? dot(real_state(values, units, chain), other, units)
                     : dot(binary_state(values, units, chain), other, units);
}

// log of the sum of exp(field(u)) over n units.
template <class Field>
static inline double log_sum_exp(int32_t n, Field field) {
  double largest = field(0), total = 0;
  for (int32_t u = 1; u < n; u++) largest = field(u) > largest ? field(u) : largest;
  for (int32_t u = 0; u < n; u++)  // both may be infinite
    total += field(u) < largest ? __builtin_exp(field(u) - largest) : 1;
  return largest + __builtin_log(total);
}

}  // namespace bm::cpu::BM_ISA
