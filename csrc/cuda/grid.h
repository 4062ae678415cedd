// Weights on the integer grid as the kernels that arrange them take them; for kernels alone.
#pragma once

#include "simt/simt.h"
#include "units.h"

namespace bm::cuda {

constexpr float kMaxWeight = 32639.f;  // of |W_q|: 127 * 256 + 127

struct Integers {
  const int16_t* weights;
  SIMT_DEVICE_MEMBER int32_t at(int64_t i) const { return weights[i]; }
};

// round(weight 2^f), halves to even; weights that were refused become finite.
struct Reals {
  const float *weights, *grid;
  SIMT_DEVICE_MEMBER int32_t at(int64_t i) const {
    constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
    float scaled = weights[i] * (1.f / *grid);
    scaled = scaled <= kMaxWeight ? scaled : kMaxWeight;
    scaled = scaled >= -kMaxWeight ? scaled : -kMaxWeight;
    return static_cast<int16_t>(units::bits_of(scaled + kMagic));
  }
};

// Limbs of W_q = 256 high + low.
SIMT_DEVICE uint32_t low_byte(int32_t weight) { return static_cast<uint32_t>(weight & 255); }
SIMT_DEVICE uint32_t high_byte(int32_t weight) { return static_cast<uint32_t>((weight + 128) >> 8 & 255); }

}  // namespace bm::cuda
