// Single passes over arrays: drawing binary data, range checks, rounding to the integer grid.
#include "cpu/kernels/isa.h"

namespace bm::cpu::BM_ISA {

void bernoulli(uint8_t* out, const float* probabilities, const int64_t* rows, int64_t units, uint64_t seed,
               uint32_t sweep, uint32_t layer_and_purpose, int64_t first, int64_t n) {
  for (int64_t row = first; row < first + n; row++) {
    for (int64_t unit = 0; unit < units; unit += kPad) {
      const int64_t tile = units - unit < kPad ? units - unit : kPad;
      alignas(64) uint32_t words[kPad];
      alignas(64) float p[kPad] = {};
      alignas(64) uint8_t drawn[kPad];
      tile_words(words, static_cast<int32_t>(unit), static_cast<uint32_t>(rows[row]), sweep, layer_and_purpose, seed);
      memcpy(p, probabilities + row * units + unit, tile * sizeof(float));
      for (int u = 0; u < kPad; u++) drawn[u] = units::uniform(words[u]) <= p[u];
      memcpy(out + row * units + unit, drawn, tile);
    }
  }
}

// Sizes of floats order like their bits, with infinity and NaN on top.
uint32_t largest_magnitude(const float* values, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const int32_t bits = static_cast<int32_t>(units::bits_of(values[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  return static_cast<uint32_t>(largest);
}

void quantise(int16_t* __restrict out, const float* __restrict values, int64_t n, float scale) {
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, halves to even
  for (int64_t i = 0; i < n; i++) out[i] = static_cast<int16_t>(units::bits_of(values[i] * scale + kMagic));
}

// In units of 64. Weights are rounded down to them, so that positive ones count one more.
SumBounds sum_bounds(WeightsView weights) {
  constexpr int kUnit = 6, kVectors = kPad / kShortLanes;
  static_assert(kRunInputs << (15 - kUnit) < 1 << 15);
  int32_t most = 0, most_of_run = 0;
  for (int32_t unit = 0; unit < weights.outputs; unit += kPad) {
    int32_t above[kPad] = {}, below[kPad] = {};
    for (int32_t first = 0; first < weights.inputs; first += kRunInputs) {
      const int32_t end = weights.inputs - first < kRunInputs ? weights.inputs : first + kRunInputs;
      Shorts positive[kVectors] = {}, all[kVectors] = {};
      for (int32_t i = first; i < end; i++) {
        const int16_t* row = weights.rows + i * static_cast<int64_t>(weights.stride) + unit;
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; v++) {
          const Shorts w = load<Shorts>(row + v * kShortLanes) >> kUnit;
          positive[v] += w > 0 ? w : Shorts{};
          all[v] += w;
        }
      }
      alignas(64) int16_t ups[kPad], sums[kPad];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) {
        store(ups + v * kShortLanes, positive[v]);
        store(sums + v * kShortLanes, all[v]);
      }
      for (int u = 0; u < kPad; u++) {
        const int32_t up = ups[u] + end - first, down = ups[u] - sums[u];
        above[u] += up;
        below[u] += down;
        most_of_run = up > most_of_run ? up : most_of_run;
        most_of_run = down > most_of_run ? down : most_of_run;
      }
    }
    for (int u = 0; u < kPad; u++) {
      most = above[u] > most ? above[u] : most;
      most = below[u] > most ? below[u] : most;
    }
  }
  return {static_cast<int64_t>(most_of_run) << kUnit, static_cast<int64_t>(most) << kUnit};
}

uint8_t largest_byte(const uint8_t* bytes, int64_t n) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < n; i++) largest = bytes[i] > largest ? bytes[i] : largest;
  return largest;
}

}  // namespace bm::cpu::BM_ISA
