// The largest of many values that order like whole numbers; for kernels alone.
#pragma once

#include "cuda/partials.h"
#include "simt/simt.h"

namespace bm::cuda {

template <class T>
SIMT_DEVICE T larger(T a, T b) {
  return a > b ? a : b;
}

// Of the values of a block's threads, for thread 0; shared: a value for each warp.
template <unsigned kThreads, class T>
SIMT_DEVICE T largest_of_block(T value, T* shared) {
  for (unsigned mask = 16; mask > 0; mask /= 2) value = larger(value, exchanged(value, mask));
  const unsigned thread = simt::thread_x();
  if (thread % 32 == 0) shared[thread / 32] = value;
  simt::sync_block();  // a value of each warp
  for (unsigned warp = 1; thread == 0 && warp < kThreads / 32; warp++) value = larger(value, shared[warp]);
  return value;
}

}  // namespace bm::cuda
