// Sums over the units of a layer that leave a tile as one number for each chain and warp, and the kernel that adds them
// in order, so that results do not depend on when a block runs: atomic additions would. For kernels alone.
#pragma once

#include <string.h>

#include "simt/simt.h"

namespace bm::cuda {

constexpr unsigned kPartialThreads = 128;

inline unsigned blocks_for(int64_t n, int64_t of_block) { return static_cast<unsigned>((n + of_block - 1) / of_block); }

// The value of lane ^ mask, of 4 or 8 bytes.
template <class T>
SIMT_DEVICE T exchanged(T value, unsigned mask) {
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof words);
  SIMT_UNROLL
  for (size_t i = 0; i < sizeof(T) / 4; i++) words[i] = simt::shuffle_xor(words[i], mask);
  memcpy(&value, words, sizeof words);
  return value;
}

// Where a warp leaves the sum over its 32 units, from `first_unit` on.
SIMT_DEVICE int64_t partial_at(int first_unit, int64_t chain, int32_t n_chains) {
  return static_cast<int64_t>(first_unit / 32) * n_chains + chain;
}

template <class T>
struct Subtraction {
  double* out;
  const T* partials;  // [n, n_partials, n_chains]
  int64_t n_partials;
  int32_t n, n_chains;
  double scale;
  const float* grid;  // [1], a factor of the scale; or null
};

template <class T>
SIMT_KERNEL void subtract_kernel(SIMT_PARAMETER Subtraction<T> p) {
  const int64_t index = static_cast<int64_t>(simt::block_x()) * kPartialThreads + simt::thread_x();
  const int64_t k = index / p.n_chains, chain = index % p.n_chains;
  if (k >= p.n) return;
  T sum = 0;
  for (int64_t i = 0; i < p.n_partials; i++) sum += p.partials[(k * p.n_partials + i) * p.n_chains + chain];
  p.out[index] -= static_cast<double>(sum) * (p.grid ? p.scale * static_cast<double>(*p.grid) : p.scale);
}

template <class T>
void subtract(const Subtraction<T>& p, void* stream) {
  simt::launch(subtract_kernel<T>, {blocks_for(int64_t{p.n} * p.n_chains, kPartialThreads), 1, kPartialThreads, 0},
               stream, p);
}

}  // namespace bm::cuda
