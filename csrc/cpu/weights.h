// Memory for the kernels, and W_q of a coupling as seen from either end.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <new>

#include "cpu/kernels.h"

namespace bm::cpu {

// Aligned to cache lines, so that rows of whole tiles never straddle one; not initialised.
template <class T>
class Array {
 public:
  Array() = default;
  explicit Array(size_t size) : data_(new (std::align_val_t{64}) T[size]), size_(size) {}
  T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete[](data, std::align_val_t{64}); }
  };
  std::unique_ptr<T[], Free> data_;
  size_t size_ = 0;
};

// Rows of W_q belong to units of the lower layer, or of the upper one if transposed. Of given W_q the transposed rows
// are made when they are first wanted; a machine in training, which lives for one update and wants both, makes them
// while the others are in the cache.
class CouplingWeights {
 public:
  // weights: [lower, upper], copied
  CouplingWeights(const int16_t* weights, int32_t lower, int32_t upper, int threads);

  // values: [lower, upper], rounded to the grid 2^-fraction_bits and laid down in both directions at once
  CouplingWeights(const float* values, int fraction_bits, int32_t lower, int32_t upper, int threads);

  WeightsView shape(bool transposed) const;  // without rows
  const int16_t* rows(bool transposed, int threads) const;
  const SumBounds& bounds(bool transposed, int threads) const;  // of sums of rows
  void read(int16_t* out) const;                                // [lower, upper]

 private:
  // kLineWeights columns of the transposed rows, from `first` on
  void transpose(int16_t* rows, int64_t first, const Kernels& k) const;

  int32_t lower_, upper_;
  Array<int16_t> rows_;
  mutable std::once_flag once_, bounds_once_[2];
  mutable Array<int16_t> transposed_;
  mutable SumBounds bounds_[2];
};

}  // namespace bm::cpu
