// States are packed once for a call, so these kernels are plain: what they cost is moving each array once.
#include "cuda/pack.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr unsigned kThreads = 128, kTurns = 16;  // items that a thread, or a warp, makes

simt::Size size_for(int64_t n_items, int64_t items_of_turn) {
  const int64_t items = items_of_turn * kTurns;
  return {static_cast<unsigned>((n_items + items - 1) / items), 1, kThreads, 0};
}

// Number of a thread of the grid in one of its turns.
SIMT_DEVICE int64_t thread_of_grid(unsigned turn) {
  return (static_cast<int64_t>(simt::block_x()) * kTurns + turn) * kThreads + simt::thread_x();
}

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Bits {
  uint32_t* bits;
  const uint8_t* values;
  int32_t n_chains, units;
};

// A warp makes one word: each lane reads the value of its own unit.
SIMT_KERNEL void pack_bits_kernel(SIMT_PARAMETER Bits p) {
  const int64_t words = bit_words(p.units);
  const int32_t lane = static_cast<int32_t>(simt::thread_x() % 32);
  for (unsigned turn = 0; turn < kTurns; turn++) {
    const int64_t index = thread_of_grid(turn) / 32;
    const int64_t chain = index / words, unit = index % words * 32 + lane;
    const bool exists = chain < p.n_chains;
    const uint32_t word = simt::ballot(exists && unit < p.units && p.values[chain * p.units + unit] != 0);
    if (exists && lane == 0) p.bits[index] = word;
  }
}

struct Unpacked {
  uint8_t* values;
  const uint32_t* bits;
  int32_t n_chains, units;
};

SIMT_KERNEL void unpack_bits_kernel(SIMT_PARAMETER Unpacked p) {
  for (unsigned turn = 0; turn < kTurns; turn++) {
    const int64_t index = thread_of_grid(turn);
    const int64_t chain = index / p.units, unit = index % p.units;
    if (chain < p.n_chains) p.values[index] = p.bits[chain * bit_words(p.units) + unit / 32] >> unit % 32 & 1;
  }
}

}  // namespace

// --- launchers -------------------------------------------------------------------------------------------------------

void pack_bits(uint32_t* bits, const uint8_t* values, int32_t n_chains, int32_t units, void* stream) {
  simt::launch(pack_bits_kernel, size_for(n_chains * bit_words(units), kThreads / 32), stream,
               Bits{bits, values, n_chains, units});
}

void unpack_bits(uint8_t* values, const uint32_t* bits, int32_t n_chains, int32_t units, void* stream) {
  simt::launch(unpack_bits_kernel, size_for(static_cast<int64_t>(n_chains) * units, kThreads), stream,
               Unpacked{values, bits, n_chains, units});
}

}  // namespace bm::cuda
