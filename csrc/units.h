// The arithmetic of one unit, shared by all backends: random numbers, exp, decisions, means, normals.
//
// Plain functions of scalars with explicit fma and no libm, so that they vectorise and give the same bits everywhere.
// Callers compile with -ffp-contract=off, CUDA sources with -fmad=false. Everything is static: each unit that includes
// this has its own copy, compiled for its own instruction set. docs/numbers.md states the contract,
// python/bm_fast/reference/arithmetic.py is its plain form.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define BM_UNITS static __host__ __device__ __forceinline__
#define BM_UNROLL_ROUNDS  // nvcc unrolls them of itself
#else
#define BM_UNITS static inline __attribute__((always_inline))
#define BM_UNROLL_ROUNDS _Pragma("GCC unroll 10")
#endif

namespace bm {

// How a unit responds to its field.
enum class Kind : int32_t { kBernoulli = 0, kGaussian = 1, kSoftmax = 2 };

}  // namespace bm

namespace bm::units {

BM_UNITS uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

BM_UNITS float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// --- fused multiply-add ----------------------------------------------------------------------------------------------

// a * b + c with one rounding, without the instruction: the product is exact in double, the sum is rounded to odd
// there, and then rounding to float is right (Boldo and Melquiond, 2008). Faster than a call of libm.
BM_UNITS float emulated_fma(float a, float b, float c) {
  const double product = static_cast<double>(a) * b, addend = c;
  const double total = product + addend;
  const double high = total - product;
  const double error = (product - (total - high)) + (addend - high);
  uint64_t bits, error_bits;
  memcpy(&bits, &total, sizeof bits);
  memcpy(&error_bits, &error, sizeof error_bits);
  // truncate: one step towards zero if the total was rounded away from it; then set the last bit
  const uint64_t odd = (bits - ((error_bits ^ bits) >> 63)) | 1;
  bits = (error < 0) | (error > 0) ? odd : bits;
  double rounded;
  memcpy(&rounded, &bits, sizeof rounded);
  return static_cast<float>(rounded);
}

BM_UNITS float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__x86_64__) && !defined(__FMA__)
  return emulated_fma(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

// --- random numbers --------------------------------------------------------------------------------------------------

// Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
BM_UNITS void philox(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  BM_UNROLL_ROUNDS
  for (int round = 0; round < 10; round++) {
    const uint64_t product0 = static_cast<uint64_t>(c0) * 0xD2511F53u,
                   product1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

constexpr uint32_t kGibbs = 0, kInitial = 1, kBinarise = 2, kSwap = 3;  // purposes
BM_UNITS uint32_t layer_and_purpose(uint32_t layer, uint32_t purpose) { return layer | purpose << 16; }

// The top 24 bits as the middle of their cell, (k + 1/2) 2^-24 rounded to float: never 0, 1 at most.
BM_UNITS float uniform(uint32_t word) {
  return fma(static_cast<float>(static_cast<int32_t>(word >> 8)), 0x1p-24f, 0x1p-25f);
}

// --- decisions -------------------------------------------------------------------------------------------------------

// exp(-x), relative error below 1.5e-7 (1 + |x|); exponents are clamped to 2^±64, so that nothing overflows or turns
// denormal.
BM_UNITS float exp_minus(float x) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  float t = x * -1.44269504f;
  t = t < -64.f ? -64.f : t;
  t = t > 64.f ? 64.f : t;
  const float shifted = t + kMagic;
  const float r = t - (shifted - kMagic);
  // 2^r on [-1/2, 1/2]: minimax for the relative error
  float p = fma(0.00132647f, r, 0.00967151f);
  p = fma(p, r, 0.05550734f);
  p = fma(p, r, 0.24022242f);
  p = fma(p, r, 0.69314698f);
  p = fma(p, r, 1.f);
  return float_of(bits_of(p) + (bits_of(shifted) << 23));
}

// Whether a unit with field x turns on: u < 1 / (1 + exp(-x)), without the division.
BM_UNITS bool decide(float x, uint32_t word) {
  const float u = uniform(word);
  return fma(u, exp_minus(x), u) < 1.f;
}

// What a unit of a softmax layer weighs beside the one with the largest field, exp(x - largest); 1 for that one even
// where its field is infinite.
BM_UNITS float softmax_term(float x, float largest) { return exp_minus(x < largest ? largest - x : 0.f); }

// min(1, exp(log_ratio))
BM_UNITS float acceptance(double log_ratio) { return log_ratio >= 0 ? 1.f : exp_minus(-static_cast<float>(log_ratio)); }

// Whether a Metropolis move is taken: u < exp(log_ratio), without a logarithm.
BM_UNITS bool accept(double log_ratio, uint32_t word) {
  return log_ratio >= 0 || uniform(word) * exp_minus(static_cast<float>(log_ratio)) < 1.f;
}

BM_UNITS float logistic(float x) { return 1.f / (1.f + exp_minus(x)); }

// --- annealing -------------------------------------------------------------------------------------------------------

constexpr float kShortStep = 0.25f;

// softplus(x + step) - softplus(x) for steps of at most kShortStep, relative error below 1e-7 (2 + |x|). With
// E = exp(step) - 1 it is log(1 + E / (1 + exp(-x))) = 2 artanh(E / (2 (1 + exp(-x)) + E)).
BM_UNITS float short_softplus_rise(float x, float step) {
  float e = fma(1.f / 720, step, 1.f / 120);  // Taylor's series
  e = fma(e, step, 1.f / 24);
  e = fma(e, step, 1.f / 6);
  e = fma(e, step, 0.5f);
  e = fma(e, step, 1.f) * step;
  const float s = e / fma(2.f, exp_minus(x), 2.f + e), square = s * s;
  float a = fma(0.28571429f, square, 0.4f);
  a = fma(a, square, 0.66666667f) * square;
  return fma(a, s, 2.f * s);
}

// The same for any step, relative error below 3e-7 (2 + |x|) and 1e-7 on average, however small the step is.
// With t = |step| and h the higher of the two fields it is log((1 + exp(-h)) / (exp(-h) + exp(-t))), whose parts differ
// by 1 - exp(-t). Where both exponentials vanish, it is min(h, t) - log(1 + exp(-|h - t|)).
BM_UNITS float long_softplus_rise(float x, float step) {
  const float t = step < 0.f ? -step : step, high = step < 0.f ? x : x + step;
  const float least = high < t ? high : t, low = high < t ? t - high : high - t;
  const bool is_far = least > 32.f;
  const float e = exp_minus(is_far ? low : high);
  // exp(-t) as exp_minus has it, but what it lacks to 1 needs digits of its own where t is small
  constexpr float kMagic = 12582912.f;
  float n = t * -1.44269504f;
  n = n < -64.f ? -64.f : n;
  const float shifted = n + kMagic;
  const float r = n > -64.f ? fma(shifted - kMagic, -0.69314718f, -t) : 0.f;
  float p = fma(1.f / 5040, r, 1.f / 720);  // exp(r) - 1 on [-0.35, 0.35]: Taylor's series
  p = fma(p, r, 1.f / 120);
  p = fma(p, r, 1.f / 24);
  p = fma(p, r, 1.f / 6);
  p = fma(p, r, 0.5f);
  p = fma(p, r, 1.f) * r;
  const float scale = float_of(bits_of(1.f) + (bits_of(shifted) << 23));
  const float bottom = e + (is_far ? 1.f : fma(scale, p, scale));
  const float excess = is_far ? -e : fma(-scale, p, 1.f - scale);
  const float top = bottom + excess;
  // log(top / bottom) = k log 2 + 2 artanh((top - 2^k bottom) / (top + 2^k bottom))
  const int32_t k = static_cast<int32_t>(bits_of(top) - bits_of(bottom) + 0x400000u) >> 23;
  const float scaled = bottom * float_of(bits_of(1.f) + (static_cast<uint32_t>(k) << 23));
  const float s = (excess + (bottom - scaled)) / (top + scaled), square = s * s;
  float a = fma(0.22222222f, square, 0.28571429f);
  a = fma(a, square, 0.4f);
  a = fma(a, square, 0.66666667f) * square;
  const float rise = fma(static_cast<float>(k), 0.69314718f, fma(a, s, 2.f * s)) + (is_far ? least : 0.f);
  return step < 0.f ? -rise : rise;
}

BM_UNITS float softplus_rise(float x, float step) {
  return step <= kShortStep && step >= -kShortStep ? short_softplus_rise(x, step) : long_softplus_rise(x, step);
}

// --- normals ---------------------------------------------------------------------------------------------------------

// log(u) of a uniform, 2^-25 <= u <= 1, relative error 3e-7: u = 2^e m with m in [1/sqrt 2, sqrt 2), and the series of
// log m = 2 artanh((m - 1) / (m + 1)).
BM_UNITS float log_uniform(float u) {
  const int32_t e = static_cast<int32_t>(bits_of(u) - 0x3f3504f3u) >> 23;
  const float m = float_of(bits_of(u) - (static_cast<uint32_t>(e) << 23));
  const float s = (m - 1.f) / (m + 1.f), z = s * s;
  float p = fma(0.22222222f, z, 0.28571429f);
  p = fma(p, z, 0.4f);
  p = fma(p, z, 0.66666667f);
  p = fma(p, z, 2.f);
  return fma(static_cast<float>(e), 0.69314718f, p * s);
}

// Two standard normals by Box and Muller (1958): sqrt(-2 log u) times the cosine and the sine of 2 pi times the other
// u. The angle is reduced to the nearest quarter turn, which is exact, then the series of sine and cosine in quarter
// turns.
BM_UNITS void normals(uint32_t radius_word, uint32_t angle_word, float& first, float& second) {
  const float radius = __builtin_sqrtf(-2.f * log_uniform(uniform(radius_word)));
  const float turns = 4.f * uniform(angle_word);
  constexpr float kMagic = 12582912.f;
  const float shifted = turns + kMagic;
  const float r = turns - (shifted - kMagic), z = r * r;
  const uint32_t quarter = bits_of(shifted);
  float sine = fma(1.6044118e-4f, z, -4.6817541e-3f);
  sine = fma(sine, z, 7.9692626e-2f);
  sine = fma(sine, z, -0.64596410f);
  sine = fma(sine, z, 1.5707963f) * r;
  float cosine = fma(-2.5202042e-5f, z, 9.1926027e-4f);
  cosine = fma(cosine, z, -2.0863481e-2f);
  cosine = fma(cosine, z, 0.25366951f);
  cosine = fma(cosine, z, -1.2337006f);
  cosine = fma(cosine, z, 1.f);
  const float c = quarter & 1 ? sine : cosine, s = quarter & 1 ? cosine : sine;
  first = radius * float_of(bits_of(c) ^ (((quarter + 1) & 2) << 30));
  second = radius * float_of(bits_of(s) ^ ((quarter & 2) << 30));
}

}  // namespace bm::units
