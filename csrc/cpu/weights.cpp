#include "cpu/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/work.h"

namespace bm::cpu {

CouplingWeights::CouplingWeights(const int16_t* weights, int32_t lower, int32_t upper, int threads)
    : lower_(lower), upper_(upper), rows_(static_cast<size_t>(lower) * padded(upper)) {
  const int64_t stride = padded(upper);
#pragma omp parallel for num_threads(useful_threads(kPerWeight * lower * upper, threads)) schedule(static)
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
#pragma omp parallel for num_threads(useful_threads(kPerWeight * lower * upper, threads)) schedule(static)
  for (int64_t i = 0; i < padded(lower); i += kLineWeights) {
    for (int64_t j = i; j < std::min<int64_t>(i + kLineWeights, lower); j++) {
      int16_t* row = rows_.data() + j * stride;
      k.quantise(row, values + j * upper, upper, scale);
      std::fill(row + upper, row + stride, int16_t{0});
    }
    transpose(transposed.data(), i, k);
  }
  std::call_once(once_, [&] { transposed_ = std::move(transposed); });
}

WeightsView CouplingWeights::shape(bool transposed) const {
  const int32_t inputs = transposed ? upper_ : lower_, outputs = transposed ? lower_ : upper_;
  return {inputs, outputs, padded(outputs), nullptr};
}

void CouplingWeights::transpose(int16_t* rows, int64_t first, const Kernels& k) const {
  const int64_t from_stride = padded(upper_);
  k.transpose(rows + first, padded(lower_), rows_.data() + first * from_stride, from_stride,
              std::clamp<int64_t>(lower_ - first, 0, kLineWeights), upper_);
}

const int16_t* CouplingWeights::rows(bool transposed, int threads) const {
  if (!transposed) return rows_.data();
  std::call_once(once_, [&] {
    const int64_t stride = padded(lower_);
    Array<int16_t> rows(static_cast<size_t>(upper_) * stride);
    const Kernels& k = kernels();  // throws where there are none: not in the threads
#pragma omp parallel for num_threads(useful_threads(kPerWeight * lower_ * upper_, threads)) schedule(static)
    for (int64_t i = 0; i < stride; i += kLineWeights) transpose(rows.data(), i, k);
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
    threads = useful_threads(kPerWeight * all.inputs * all.outputs, threads);
#pragma omp parallel for num_threads(threads) reduction(max : run, total)
    for (int t = 0; t < threads; t++) {
      const Part p = part(all.outputs, t, threads, kPad);
      const SumBounds bounds = k.sum_bounds({all.inputs, static_cast<int32_t>(p.n), all.stride, own + p.first});
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
