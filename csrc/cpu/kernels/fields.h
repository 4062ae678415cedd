// Fields of a layer for a block of chains: bias, then one fma per input in program order.
//
// Binary inputs: states are sparse, so the rows of W_q that belong to units that are on are listed once and added,
// lanes being output units. A sum is held as two 16-bit accumulators, the sum modulo 2^16 and the sum of the high
// bytes, which together give it exactly for up to 255 rows and take three instructions per vector of 16-bit weights
// where widening to 32 bits takes four. Real inputs: a tile of chains times units in float, one fma per input in order.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/dense.h"
#include "cpu/kernels/vector.h"

namespace bm::cpu::BM_ISA {

constexpr int kMaxVectors = kRegisters == 32 ? 8 : 5;  // of 16-bit weights; a tile takes two accumulators for each

template <int kVectors>
static inline void add_rows(int32_t* __restrict sums, const int16_t* __restrict rows, int64_t stride,
                            const uint32_t* __restrict active, int32_t n_active) {
  constexpr int kUnits = kVectors * kShortLanes, kMaxRows = 255;
  for (int u = 0; u < kUnits; u++) sums[u] = 0;
  for (int32_t begin = 0; begin < n_active; begin += kMaxRows) {
    const int32_t end = n_active < begin + kMaxRows ? n_active : begin + kMaxRows;
    Words low[kVectors];
    Shorts high[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) low[v] = Words{}, high[v] = Shorts{};
    for (int32_t k = begin; k < end; k++) {
      const int16_t* row = rows + active[k] * stride;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) {
        Shorts w = load<Shorts>(row + v * kShortLanes);
        hold(w);
        low[v] += reinterpret_cast<Words>(w);
        high[v] += w >> 8;
      }
    }
    // sum = 256 high + (sum of low bytes), and the latter is below 2^16
    alignas(64) uint16_t lows[kUnits];
    alignas(64) int16_t highs[kUnits];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      store(lows + v * kShortLanes, low[v]);
      store(highs + v * kShortLanes, high[v]);
    }
    for (int u = 0; u < kUnits; u++) {
      const int32_t upper = static_cast<int32_t>(highs[u]) * 256;
      sums[u] += upper + static_cast<uint16_t>(lows[u] - static_cast<uint16_t>(upper));
    }
  }
}

// sums[padded] = sum of the active rows
static inline void sum_rows(int32_t* sums, const WeightsView& weights, const uint32_t* active, int32_t n_active) {
  const int32_t n_vectors = (weights.outputs + kShortLanes - 1) / kShortLanes;
  const int32_t n_tiles = (n_vectors + kMaxVectors - 1) / kMaxVectors;
  for (int32_t tile = 0; tile < n_tiles; tile++) {
    const int32_t begin = n_vectors * tile / n_tiles, end = n_vectors * (tile + 1) / n_tiles;
    int32_t* to = sums + begin * kShortLanes;
    const int16_t* rows = weights.rows + begin * kShortLanes;
    switch (end - begin) {
      case 1:
        add_rows<1>(to, rows, weights.stride, active, n_active);
        break;
      case 2:
        add_rows<2>(to, rows, weights.stride, active, n_active);
        break;
      case 3:
        add_rows<3>(to, rows, weights.stride, active, n_active);
        break;
      case 4:
        add_rows<4>(to, rows, weights.stride, active, n_active);
        break;
      case 5:
        add_rows<5>(to, rows, weights.stride, active, n_active);
        break;
      case 6:
        add_rows<6>(to, rows, weights.stride, active, n_active);
        break;
      case 7:
        add_rows<7>(to, rows, weights.stride, active, n_active);
        break;
      default:
        add_rows<8>(to, rows, weights.stride, active, n_active);
    }
  }
  for (int32_t u = n_vectors * kShortLanes; u < weights.stride; u++) sums[u] = 0;
}

static inline int32_t list_active(uint32_t* __restrict active, const uint8_t* __restrict state, int32_t units) {
  int32_t n = 0, u = 0;
#if defined(__AVX512BW__)
  __m512i indices = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (; u + 16 <= units; u += 16, indices = _mm512_add_epi32(indices, _mm512_set1_epi32(16))) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + u));
    const __mmask16 on = _mm_test_epi8_mask(bytes, bytes);
    _mm512_storeu_si512(active + n, _mm512_maskz_compress_epi32(on, indices));  // n + 16 <= units: inside the list
    n += __builtin_popcount(on);
  }
#endif
  for (; u < units; u++) {
    active[n] = u;
    n += state[u] != 0;
  }
  return n;
}

// to[kChains, kRealUnits] = products of real inputs with a tile of weights
constexpr int kRealChains = 4, kRealVectors = kRegisters == 32 ? 4 : 2, kRealUnits = kRealVectors * kFloatLanes;
static_assert(kPad % kRealUnits == 0);

template <int kChains>
static inline void real_tile(float* __restrict to, const float* __restrict values, const WeightsView& weights,
                             int32_t unit) {
  Floats sum[kChains][kRealVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kChains; c++)
#pragma GCC unroll 4
    for (int v = 0; v < kRealVectors; v++) sum[c][v] = Floats{};
  const int16_t* row = weights.rows + unit;
  for (int64_t k = 0; k < weights.inputs; k++, row += weights.stride) {
    Floats w[kRealVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kRealVectors; v++) w[v] = floats_of_shorts(row + v * kFloatLanes);
#pragma GCC unroll 4
    for (int c = 0; c < kChains; c++) {
      const Floats value = values[c * weights.inputs + k] - Floats{};
#pragma GCC unroll 4
      for (int v = 0; v < kRealVectors; v++) sum[c][v] = fma(value, w[v], sum[c][v]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kChains; c++)
#pragma GCC unroll 4
    for (int v = 0; v < kRealVectors; v++) store(to + c * kRealUnits + v * kFloatLanes, sum[c][v]);
}

static inline void add_scaled(float* __restrict fields, const float* __restrict sums, float scale, int32_t n) {
  for (int32_t u = 0; u < n; u++) fields[u] = units::fma(sums[u], scale, fields[u]);
}

static inline void add_scaled(float* __restrict fields, const int32_t* __restrict sums, float scale, int32_t n) {
  for (int32_t u = 0; u < n; u++) fields[u] = units::fma(static_cast<float>(sums[u]), scale, fields[u]);
}

// fields[n, stride of the weights] += scale * products, for n chains from `values` on
static inline bool add_real_input(float* fields, const InputView& input, const float* values, int32_t n,
                                  StopView stop) {
  const WeightsView& weights = input.weights;
  alignas(64) float sums[kRealChains * kRealUnits];
  for (int32_t c = 0; c < n;) {
    const int32_t chains = n - c >= kRealChains ? kRealChains : 1;
    for (int32_t u = 0; u < weights.stride; u += kRealUnits) {
      if (stop.requested()) return false;
      if (chains == kRealChains) {
        real_tile<kRealChains>(sums, values + c * static_cast<int64_t>(weights.inputs), weights, u);
      } else {
        real_tile<1>(sums, values + c * static_cast<int64_t>(weights.inputs), weights, u);
      }
      for (int32_t i = 0; i < chains; i++)
        add_scaled(fields + (c + i) * static_cast<int64_t>(weights.stride) + u, sums + i * kRealUnits, input.scale,
                   kRealUnits);
    }
    c += chains;
  }
  return true;
}

// scratch.fields[n, padded units of the updated layer] for chains first .. first + n, at most
// kDenseChains; false if asked to stop.
static inline bool block_fields(MachineView machine, const UpdateView& update, const ValuesView* values, int64_t first,
                                int32_t n, Scratch scratch, StopView stop) {
  const LayerView& layer = machine.layers[update.layer];
  if (stop.requested()) return false;
  for (int32_t c = 0; c < n; c++)
    memcpy(scratch.fields + c * static_cast<int64_t>(layer.padded), layer.biases, layer.padded * sizeof(float));
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    const WeightsView& weights = input.weights;
    const ValuesView& source = values[input.layer];
    const int64_t start = first * weights.inputs;
    if (source.real) {
      if (!add_real_input(scratch.fields, input, static_cast<const float*>(source.data) + start, n, stop)) return false;
      continue;
    }
    const uint8_t* states = static_cast<const uint8_t*>(source.data) + start;
    if (input.dense) {
      if (!add_dense_input(scratch.fields, input, states, n, scratch.indices, stop)) return false;
      continue;
    }
    const bool slow = static_cast<int64_t>(weights.inputs) * weights.stride > 1 << 22;  // milliseconds for each chain
    for (int32_t c = 0; c < n; c++) {
      if (slow && stop.requested()) return false;
      const int32_t n_active =
          list_active(scratch.active, states + c * static_cast<int64_t>(weights.inputs), weights.inputs);
      sum_rows(scratch.sums, weights, scratch.active, n_active);
      add_scaled(scratch.fields + c * static_cast<int64_t>(layer.padded), scratch.sums, input.scale, layer.padded);
    }
  }
  return true;
}

static inline bool never(void*) { return false; }

}  // namespace bm::cpu::BM_ISA
