#include "cpu/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/work.h"

namespace bm::cpu {
namespace {

typedef int16_t Eight __attribute__((vector_size(16)));

// Transposes 8 x 8 values in registers: three rounds of interleaving rows that are half the rest apart.
void transpose_eight(int16_t* to, const int16_t* from, int64_t stride) {
  Eight a[8], b[8];
  for (int i = 0; i < 8; i++) std::memcpy(&a[i], from + i * stride, sizeof a[i]);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 4; i++) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i++) a[i] = b[i];
  }
  for (int i = 0; i < 8; i++) std::memcpy(to + i * stride, &a[i], sizeof a[i]);
}

constexpr int64_t kLine = 32;  // weights of a cache line

// Transposes n_rows x kLine values into n_columns rows of kLine, the rest of which is 0; a line at a time at both ends.
// In between they lie close together: at the strides of rows, which may be powers of two, few lines would stay in the
// first-level cache.
void transpose_tile(int16_t* to, int64_t to_stride, int64_t n_columns, const int16_t* from, int64_t from_stride,
                    int64_t n_rows) {
  alignas(64) int16_t rows[kLine * kLine], columns[kLine * kLine];
  for (int64_t i = 0; i < n_rows; i++) std::memcpy(rows + i * kLine, from + i * from_stride, kLine * sizeof *rows);
  std::fill(rows + n_rows * kLine, rows + kLine * kLine, int16_t{0});
  for (int64_t i = 0; i < kLine; i += 8)
    for (int64_t j = 0; j < kLine; j += 8) transpose_eight(columns + j * kLine + i, rows + i * kLine + j, kLine);
  for (int64_t j = 0; j < n_columns; j++) std::memcpy(to + j * to_stride, columns + j * kLine, kLine * sizeof *columns);
}

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
  for (int64_t i = first; i < first + n; i += kLine) {
    for (int64_t j = 0; j < upper_; j += kLine) {
      for (int64_t next = j + kLine; next < std::min<int64_t>(j + 2 * kLine, upper_); next++)
        __builtin_prefetch(rows + next * stride + i, 1);  // to write: no prefetcher of a core follows such strides
      transpose_tile(rows + j * stride + i, stride, std::min(kLine, upper_ - j), rows_.data() + i * from_stride + j,
                     from_stride, std::clamp<int64_t>(lower_ - i, 0, kLine));
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

const SumBounds& CouplingWeights::bounds(bool transposed, int threads) const {
  std::call_once(bounds_once_[transposed], [&] {
    const WeightsView all = shape(transposed);
    const int16_t* own = rows(transposed, threads);
    const Kernels& k = kernels();
    int64_t run = 0, total = 0;
#pragma omp parallel for num_threads(useful_threads(1. * all.inputs * all.outputs, threads)) reduction(max : run, total)
    for (int32_t unit = 0; unit < all.outputs; unit += kStripUnits) {
      const SumBounds bounds =
          k.sum_bounds({all.inputs, std::min(kStripUnits, all.outputs - unit), all.stride, own + unit});
      run = std::max(run, bounds.run);
      total = std::max(total, bounds.all);
    }
    bounds_[transposed] = {run, total};
  });
  return bounds_[transposed];
}

void CouplingWeights::read(int16_t* out) const {
  for (int64_t i = 0; i < lower_; i++) std::copy_n(rows_.data() + i * padded(upper_), upper_, out + i * upper_);
}

}  // namespace bm::cpu
