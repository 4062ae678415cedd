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

// In units of 64, rounded down, and one more for each input: 48 of at most 511, and 48, fit 16 bits.
SumBounds sum_bounds(WeightsView strip) {
  constexpr int kUnit = 6;
  static_assert(kRunInputs << (15 - kUnit) < 1 << 16);
  const int32_t n = strip.outputs;
  int32_t above[kStripUnits] = {}, below[kStripUnits] = {}, most = 0, most_of_run = 0;
  for (int32_t first = 0; first < strip.inputs; first += kRunInputs) {
    const int32_t end = strip.inputs - first < kRunInputs ? strip.inputs : first + kRunInputs;
    uint16_t positive[kStripUnits] = {}, negative[kStripUnits] = {};
    for (int32_t i = first; i < end; i++) {
      const int16_t* __restrict w = strip.rows + i * static_cast<int64_t>(strip.stride);
      for (int32_t u = 0; u < n; u++) {
        positive[u] = static_cast<uint16_t>(positive[u] + ((w[u] > 0 ? w[u] : 0) >> kUnit));
        negative[u] = static_cast<uint16_t>(negative[u] + ((w[u] < 0 ? ~w[u] : 0) >> kUnit));  // -1 - w
      }
    }
    for (int32_t u = 0; u < n; u++) {
      const int32_t up = positive[u] + end - first, down = negative[u] + end - first;
      above[u] += up;
      below[u] += down;
      most_of_run = up > most_of_run ? up : most_of_run;
      most_of_run = down > most_of_run ? down : most_of_run;
    }
  }
  for (int32_t u = 0; u < n; u++) {
    most = above[u] > most ? above[u] : most;
    most = below[u] > most ? below[u] : most;
  }
  return {static_cast<int64_t>(most_of_run) << kUnit, static_cast<int64_t>(most) << kUnit};
}

uint8_t largest_byte(const uint8_t* bytes, int64_t n) {
  uint8_t largest = 0;
  for (int64_t i = 0; i < n; i++) largest = bytes[i] > largest ? bytes[i] : largest;
  return largest;
}

}  // namespace bm::cpu::BM_ISA
