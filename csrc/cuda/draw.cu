// Each thread draws the four units that share one call of Philox.
#include "cuda/draw.h"
#include "simt/simt.h"
#include "units.h"

namespace bm::cuda {
namespace {

constexpr unsigned kThreads = 128;

struct Draw {
  uint8_t* out;
  const float* probabilities;
  const int64_t* rows;
  int64_t n, units;
  uint64_t seed;
  uint32_t sweep, layer_and_purpose;
};

SIMT_KERNEL void bernoulli_kernel(SIMT_PARAMETER Draw p) {
  const int64_t index = static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x();
  const int64_t groups = (p.units + 3) / 4, row = index / groups, group = index % groups;
  if (row >= p.n) return;
  uint32_t random[4] = {static_cast<uint32_t>(group), static_cast<uint32_t>(p.rows[row]), p.sweep, p.layer_and_purpose};
  units::philox(random[0], random[1], random[2], random[3], p.seed);
  SIMT_UNROLL
  for (int i = 0; i < 4; i++) {
    const int64_t unit = group * 4 + i, at = row * p.units + unit;
    if (unit < p.units) p.out[at] = units::uniform(random[i]) <= p.probabilities[at];
  }
}

}  // namespace

void bernoulli(uint8_t* out, const float* probabilities, const int64_t* rows, int64_t n, int64_t units, uint64_t seed,
               uint32_t sweep, uint32_t layer_and_purpose, void* stream) {
  const int64_t blocks = (n * ((units + 3) / 4) + kThreads - 1) / kThreads;
  simt::launch(bernoulli_kernel, {static_cast<unsigned>(blocks), 1, kThreads, 0}, stream,
               Draw{out, probabilities, rows, n, units, seed, sweep, layer_and_purpose});
}

}  // namespace bm::cuda
