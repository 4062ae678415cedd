// Fields of a layer for a block of chains: bias, then one fma per input in program order.
//
// Binary inputs: states are sparse, so the rows of W_q that belong to units that are on are listed once and added,
// lanes being output units; where a chain keeps its sums, rows of units that have flipped since are added to them or
// taken away. What is added up is held as two 16-bit accumulators, the sum modulo 2^16 and the sum of the high bytes,
// which together give it exactly for up to 255 rows of either sign and take three instructions per vector of 16-bit
// weights where widening to 32 bits takes four. Real inputs: a tile of chains times units in float, one fma per input
// in order.
#pragma once

#include "cpu/kernels.h"
#include "cpu/kernels/rounded.h"
#include "cpu/kernels/vector.h"
#if defined(__AVX512BW__)
#include "cpu/kernels/avx512.h"
#endif

namespace bm::cpu::BM_ISA {

constexpr int kMaxVectors = kRegisters == 32 ? 8 : 5;  // of 16-bit weights; a tile takes two accumulators for each

// Rows to add to the sums of a chain, and rows to take away.
struct RowLists {
  const uint16_t *added, *removed;
  int32_t n_added, n_removed;
  bool from_zero;  // in place of the sums that there are
};

template <int kVectors>
static inline void add_rows(int32_t* __restrict sums, const int16_t* __restrict rows, int64_t stride, RowLists lists) {
  constexpr int kUnits = kVectors * kShortLanes, kMaxRows = 255;
  const int32_t n_rows = lists.n_added + lists.n_removed;
  for (int32_t begin = 0; begin < n_rows; begin += kMaxRows) {
    const int32_t end = n_rows < begin + kMaxRows ? n_rows : begin + kMaxRows;
    const int32_t added_end = end < lists.n_added ? end : lists.n_added;
    const int32_t removed_begin = begin < lists.n_added ? 0 : begin - lists.n_added;
    Words low[kVectors];
    Shorts high[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) low[v] = Words{}, high[v] = Shorts{};
    for (int32_t k = begin; k < added_end; k++) {
      const int16_t* row = rows + lists.added[k] * stride;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) {
        Shorts w = load<Shorts>(row + v * kShortLanes);
        hold(w);
        low[v] += reinterpret_cast<Words>(w);
        high[v] += w >> 8;
      }
    }
    for (int32_t k = removed_begin; k < end - lists.n_added; k++) {
      const int16_t* row = rows + lists.removed[k] * stride;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) {
        Shorts w = load<Shorts>(row + v * kShortLanes);
        hold(w);
        low[v] -= reinterpret_cast<Words>(w);
        high[v] -= w >> 8;
      }
    }
    // sum = 256 high + low bytes; these are at least -255 for each row taken away, at most 255 for each row added
    const int32_t n_removed = end - lists.n_added > removed_begin ? end - lists.n_added - removed_begin : 0;
    const int32_t least = -255 * n_removed;
    alignas(64) uint16_t lows[kUnits];
    alignas(64) int16_t highs[kUnits];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      store(lows + v * kShortLanes, low[v]);
      store(highs + v * kShortLanes, high[v]);
    }
    for (int u = 0; u < kUnits; u++) {
      const int32_t upper = static_cast<int32_t>(highs[u]) * 256 + least;
      sums[u] += upper + static_cast<uint16_t>(lows[u] - static_cast<uint16_t>(upper));
    }
  }
}

static inline void add_rows(int32_t* sums, const int16_t* rows, int64_t stride, int32_t n_vectors, RowLists lists) {
  switch (n_vectors) {
    case 1:
      return add_rows<1>(sums, rows, stride, lists);
    case 2:
      return add_rows<2>(sums, rows, stride, lists);
    case 3:
      return add_rows<3>(sums, rows, stride, lists);
    case 4:
      return add_rows<4>(sums, rows, stride, lists);
    case 5:
      return add_rows<5>(sums, rows, stride, lists);
    case 6:
      return add_rows<6>(sums, rows, stride, lists);
    case 7:
      return add_rows<7>(sums, rows, stride, lists);
    default:
      return add_rows<8>(sums, rows, stride, lists);
  }
}

// The outputs of weights in tiles of at most kMaxVectors vectors.
struct Tiles {
  explicit Tiles(const WeightsView& weights)
      : n_vectors((weights.outputs + kShortLanes - 1) / kShortLanes), n((n_vectors + kMaxVectors - 1) / kMaxVectors) {}
  int32_t begin(int32_t tile) const { return n_vectors * tile / n; }  // in vectors
  int32_t n_vectors, n;
};

static inline void update_sums(int32_t* sums, const WeightsView& weights, RowLists lists) {
  const Tiles tiles(weights);
  if (lists.from_zero) memset(sums, 0, weights.stride * sizeof(int32_t));
  for (int32_t tile = 0; tile < tiles.n; tile++) {
    const int32_t begin = tiles.begin(tile), unit = begin * kShortLanes;
    add_rows(sums + unit, weights.rows + unit, weights.stride, tiles.begin(tile + 1) - begin, lists);
  }
}

#if defined(__AVX512BW__)
// Appends the lanes of `indices` whose bits are set to a list with room for all of them; how many those are.
static inline int32_t append(uint16_t* list, uint64_t bits, __m512i indices) {
  const auto set = static_cast<__mmask16>(bits);
  const __m256i listed = _mm512_maskz_cvtepi32_epi16(0xffff, _mm512_maskz_compress_epi32(set, indices));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(list), listed);
  return __builtin_popcount(set);
}
#endif

// Units that are on; the list has room for whole tiles of units.
static inline int32_t list_on(uint16_t* __restrict list, const uint8_t* __restrict state, int32_t units) {
  int32_t n = 0;
#if defined(__AVX512BW__)
  __m512i indices = lane_numbers();
  for (int32_t u = 0; u < units; u += 64) {
    const __m512i bytes = load_bytes(state + u, units - u);
    const uint64_t on = _mm512_test_epi8_mask(bytes, bytes);
    for (int i = 0; i < 64; i += 16, indices = _mm512_add_epi32(indices, _mm512_set1_epi32(16)))
      n += append(list + n, on >> i, indices);
  }
#else
  for (int32_t u = 0; u < units; u++) {
    list[n] = static_cast<uint16_t>(u);
    n += state[u] != 0;
  }
#endif
  return n;
}

// Units that have turned on and units that have turned off since `old`, which is then brought up to date. Either list
// has room for whole tiles of units. n_on: of the units that are on.
static inline RowLists list_changes(uint16_t* __restrict turned_on, uint16_t* __restrict turned_off,
                                    uint8_t* __restrict old, const uint8_t* __restrict state, int32_t units,
                                    int32_t& n_on) {
  RowLists lists = {turned_on, turned_off, 0, 0, false};
  n_on = 0;
#if defined(__AVX512BW__)
  __m512i indices = lane_numbers();
  for (int32_t u = 0; u < units; u += 64) {
    const __m512i bytes = load_bytes(state + u, units - u), before = _mm512_load_si512(old + u);
    const uint64_t on = _mm512_test_epi8_mask(bytes, bytes), was_on = _mm512_test_epi8_mask(before, before);
    _mm512_store_si512(old + u, bytes);
    n_on += __builtin_popcountll(on);
    for (int i = 0; i < 64; i += 16, indices = _mm512_add_epi32(indices, _mm512_set1_epi32(16))) {
      lists.n_added += append(turned_on + lists.n_added, (on & ~was_on) >> i, indices);
      lists.n_removed += append(turned_off + lists.n_removed, (was_on & ~on) >> i, indices);
    }
  }
#else
  for (int32_t u = 0; u < units; u++) {
    n_on += state[u];
    if (state[u] > old[u]) turned_on[lists.n_added++] = static_cast<uint16_t>(u);
    if (state[u] < old[u]) turned_off[lists.n_removed++] = static_cast<uint16_t>(u);
    old[u] = state[u];
  }
#endif
  return lists;
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

// from: the same as fields, or not overlapping them
static inline void add_scaled(float* fields, const float* from, const int32_t* __restrict sums, float scale,
                              int32_t n) {
#pragma omp simd
  for (int32_t u = 0; u < n; u++) fields[u] = units::fma(static_cast<float>(sums[u]), scale, from[u]);
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

// What brings the sums of a chain up to date: the changes where they are kept, unless the units that are on are fewer.
// lists: [2, padded inputs]
static inline RowLists list_rows(uint16_t* lists, const InputView& input, const uint8_t* state, int64_t chain,
                                 const KeptView& kept) {
  const int32_t units = input.weights.inputs;
  if (kept.slots) {
    int32_t n_on;
    const RowLists changes = list_changes(lists, lists + padded(units), kept.states(input, chain), state, units, n_on);
    if (changes.n_added + changes.n_removed <= n_on) return changes;
  }
  return {lists, nullptr, list_on(lists, state, units), 0, true};
}

// Whether one chain takes milliseconds.
static inline bool is_slow(const WeightsView& weights) {
  return static_cast<int64_t>(weights.inputs) * weights.stride > 1 << 22;
}

// fields[n, stride of the weights] = from + scale * sums, for n <= kBlockChains chains from `first` on, whose states
// come first in `states`; false if asked to stop. from: [padded] for all chains, or the fields themselves. exact: [n,
// stride], for the sums themselves; or null
static inline bool add_binary_input(float* fields, const float* from, int32_t* exact, const InputView& input,
                                    const uint8_t* states, int64_t first, int32_t n, Scratch scratch, StopView stop) {
  const WeightsView& weights = input.weights;
  const KeptView& kept = scratch.kept;
  const Tiles tiles(weights);
  const int64_t size = padded(weights.inputs);
  RowLists lists[kBlockChains];
  for (int32_t c = 0; c < n; c++)
    lists[c] = list_rows(scratch.rows + 2 * c * size, input, states + c * static_cast<int64_t>(weights.inputs),
                         first + c, kept);
  const bool slow = is_slow(weights);
  alignas(64) int32_t own[kMaxVectors * kShortLanes];
  for (int32_t tile = 0; tile < tiles.n; tile++) {
    const int32_t begin = tiles.begin(tile), n_vectors = tiles.begin(tile + 1) - begin;
    const int32_t unit = begin * kShortLanes, width = n_vectors * kShortLanes;
    if (stop.requested()) return false;
    for (int32_t c = 0; c < n; c++) {
      if (slow && stop.requested()) return false;
      int32_t* sums = kept.slots ? kept.sums(input, first + c) + unit : own;
      if (lists[c].from_zero) memset(sums, 0, width * sizeof(int32_t));
      add_rows(sums, weights.rows + unit, weights.stride, n_vectors, lists[c]);
      const int64_t place = c * static_cast<int64_t>(weights.stride) + unit;
      if (exact) memcpy(exact + place, sums, width * sizeof(int32_t));
      add_scaled(fields + place, from == fields ? fields + place : from + unit, sums, input.scale, width);
    }
  }
  const int32_t end = tiles.n_vectors * kShortLanes;  // from where on all weights are zero
  for (int32_t c = 0; c < n && from != fields; c++)
    memcpy(fields + c * static_cast<int64_t>(weights.stride) + end, from + end, (weights.stride - end) * sizeof(float));
  return true;
}

static inline void copy_biases(float* fields, const LayerView& layer, int32_t n) {
  for (int32_t c = 0; c < n; c++)
    memcpy(fields + c * static_cast<int64_t>(layer.padded), layer.biases, layer.padded * sizeof(float));
}

// scratch.fields[n, padded units of the updated layer] for chains first .. first + n, at most kBlockChains; false if
// asked to stop.
// reach: [n], grows by what rounding of sums may change fields by; null where they must be exact
// exact: as in Scratch, of inputs that are settled; null where they are not wanted
static inline bool block_fields(MachineView machine, const UpdateView& update, const ValuesView* values, int64_t first,
                                int32_t n, Scratch scratch, float* reach, int32_t* exact, StopView stop) {
  const LayerView& layer = machine.layers[update.layer];
  if (stop.requested()) return false;
  float* const fields = scratch.fields;
  const float* from = layer.biases;
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    const ValuesView& source = values[input.layer];
    const int64_t start = first * input.weights.inputs;
    const auto* states = static_cast<const uint8_t*>(source.data);
    const auto* reals = static_cast<const float*>(source.data);
    const bool rounded = reach && input.rounded;
    int32_t* const sums =
        exact && input.settled ? exact + static_cast<int64_t>(i) * kBlockChains * layer.padded : nullptr;
    bool goes_on;
    if (!source.real && !input.dense && !rounded) {
      goes_on = add_binary_input(fields, from, sums, input, states + start, first, n, scratch, stop);
    } else {
      if (from != fields) copy_biases(fields, layer, n);
      goes_on = source.real ? add_real_input(fields, input, reals + start, n, stop)
                : rounded   ? add_rounded_input(fields, reach, input, states + start, n, scratch.rows, stop)
                            : add_dense_input(fields, sums, input, states + start, n, scratch.rows, stop);
    }
    if (!goes_on) return false;
    from = fields;
  }
  if (from != fields) copy_biases(fields, layer, n);
  return true;
}

static inline bool never(void*) { return false; }

}  // namespace bm::cpu::BM_ISA
