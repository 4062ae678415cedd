#include "cpu/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/work.h"

namespace bm::cpu {
namespace {

typedef int16_t Eight __attribute__((vector_size(16)));

// Transposes 8 x 8 values in registers: three rounds of interleaving rows that are half the rest apart.
void transpose_tile(int16_t* to, int64_t to_stride, const int16_t* from, int64_t from_stride) {
  Eight a[8], b[8];
  for (int i = 0; i < 8; i++) std::memcpy(&a[i], from + i * from_stride, sizeof a[i]);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 4; i++) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i++) a[i] = b[i];
  }
  for (int i = 0; i < 8; i++) std::memcpy(to + i * to_stride, &a[i], sizeof a[i]);
}

constexpr int64_t kLine = 32;  // weights of a cache line: each line of the transposed rows is written at once

}  // namespace

CouplingWeights::CouplingWeights(const int16_t* weights, int32_t lower, int32_t upper, int threads)
    : lower_(lower), upper_(upper), rows_(static_cast<size_t>(lower) * padded(upper)) {
  const int64_t stride = padded(upper);
#pragma omp parallel for num_threads(useful_threads(2. * lower * upper, threads)) schedule(static)
  for (int64_t i = 0; i < lower; i++) {
    int16_t* row = rows_.data() + i * stride;
    std::fill(std::copy_n(weights + i * upper, upper, row), row + stride, int16_t{0});
  }
}

CouplingWeights::CouplingWeights(const float* values, int fraction_bits, int32_t lower, int32_t upper, int threads)
    : lower_(lower), upper_(upper), rows_(static_cast<size_t>(lower) * padded(upper)) {
  const int64_t stride = padded(upper);
  const float scale = std::ldexp(1.f, fraction_bits);
  Array<int16_t> transposed(static_cast<size_t>(upper) * padded(lower));
  const Kernels& k = kernels();  // throws where there are none: not in the threads
#pragma omp parallel for num_threads(useful_threads(12. * lower * upper, threads)) schedule(static)
  for (int64_t i = 0; i < padded(lower); i += kLine) {
    for (int64_t j = i; j < std::min<int64_t>(i + kLine, lower); j++) {
      int16_t* row = rows_.data() + j * stride;
      k.quantise(row, values + j * upper, upper, scale);
      std::fill(row + upper, row + stride, int16_t{0});
    }
    transpose(transposed.data(), i, kLine);
  }
  std::call_once(once_, [&] { transposed_ = std::move(transposed); });
}

WeightsView CouplingWeights::shape(bool transposed) const {
  const int32_t inputs = transposed ? upper_ : lower_, outputs = transposed ? lower_ : upper_;
  return {inputs, outputs, padded(outputs), nullptr};
}

void CouplingWeights::transpose(int16_t* rows, int64_t first, int64_t n) const {
  const int64_t stride = padded(lower_), from_stride = padded(upper_);
  for (int64_t j = 0; j < upper_; j += 8) {
    for (int64_t i = first; i < first + n; i += 8) {
      const int16_t* from = rows_.data() + i * from_stride + j;
      int16_t* to = rows + j * stride + i;
      if (i + 8 <= lower_ && j + 8 <= upper_) {
        transpose_tile(to, stride, from, from_stride);
        continue;
      }
      for (int64_t y = 0; y < std::min<int64_t>(8, upper_ - j); y++)
        for (int64_t x = 0; x < 8; x++) to[y * stride + x] = i + x < lower_ ? from[x * from_stride + y] : int16_t{0};
    }
  }
}

const int16_t* CouplingWeights::rows(bool transposed, int threads) const {
  if (!transposed) return rows_.data();
  std::call_once(once_, [&] {
    const int64_t stride = padded(lower_);
    Array<int16_t> rows(static_cast<size_t>(upper_) * stride);
#pragma omp parallel for num_threads(useful_threads(4. * lower_ * upper_, threads)) schedule(static)
    for (int64_t i = 0; i < stride; i += kLine) transpose(rows.data(), i, kLine);
    transposed_ = std::move(rows);
  });
  return transposed_.data();
}

void CouplingWeights::read(int16_t* out) const {
  for (int64_t i = 0; i < lower_; i++) std::copy_n(rows_.data() + i * padded(upper_), upper_, out + i * upper_);
}

}  // namespace bm::cpu
