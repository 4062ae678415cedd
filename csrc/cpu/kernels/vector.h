// Vectors as wide as the instruction set's registers, for the loops whose accumulators have to stay in registers.
// All other loops are plain and left to the compiler.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "units.h"

namespace bm::cpu::BM_ISA {

#if defined(__AVX512BW__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

constexpr int kShortLanes = kVectorBytes / 2, kFloatLanes = kVectorBytes / 4;

typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Words __attribute__((vector_size(kVectorBytes)));
typedef float Floats __attribute__((vector_size(kVectorBytes)));
typedef int8_t HalfBytes __attribute__((vector_size(kVectorBytes / 2)));
typedef int16_t HalfShorts __attribute__((vector_size(kVectorBytes / 2)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));

template <class V, class T>
BM_UNITS V load(const T* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class V, class T>
BM_UNITS void store(T* to, V v) {
  memcpy(to, &v, sizeof v);
}

// Keeps the compiler from loading a value again for each use.
BM_UNITS void hold(Shorts& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

BM_UNITS Floats floats_of_shorts(const int16_t* from) {
  return __builtin_convertvector(__builtin_convertvector(load<HalfShorts>(from), Ints), Floats);
}

// a * b + c with one rounding in each lane
BM_UNITS Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  Floats d;
  for (int i = 0; i < kFloatLanes; i++) d[i] = units::fma(a[i], b[i], c[i]);
  return d;
#endif
}

}  // namespace bm::cpu::BM_ISA
