// out = lower (transposed) times upper over many chains, chains added in order with one fma each.
//
// Both binary: counts by and + popcount, which is what the sums of ones would give. Binary times real: the chains in
// which a lower unit is on are listed, and only their rows of `upper` are added. Adding 0 * m would change no bit.
// What bounds that is one load of a vector for each addition, so all chains of a panel share the first-level cache, and
// four units with lists of about the same length go together: their sums hide the latency of the additions.
#include "cpu/kernels/chain_lists.h"
#include "cpu/kernels/isa.h"

namespace bm::cpu::BM_ISA {

#if defined(__POPCNT__) || defined(__aarch64__)
constexpr bool kHasPopcount = true;
#else
constexpr bool kHasPopcount = false;  // a call of libgcc for each word: adding floats is faster
#endif

constexpr int64_t kExactCounts = 1 << 24;  // beyond, sums of ones in float stop growing

// --- a panel of chains ----------------------------------------------------------------------------------------------

template <class T>
static inline void load_row(float* __restrict to, const T* __restrict from, const float* __restrict offsets,
                            float factor, int32_t n) {
  if (offsets) {
    for (int32_t u = 0; u < n; u++) to[u] = (static_cast<float>(from[u]) - offsets[u]) * factor;
  } else {
    for (int32_t u = 0; u < n; u++) to[u] = static_cast<float>(from[u]) * factor;
  }
}

template <class T>
static void load_rows(float* tile, int32_t width, const T* from, int64_t stride, int32_t n_units, int32_t n_chains,
                      const float* offsets, const float* factors) {
  for (int32_t c = 0; c < n_chains; c++, tile += width, from += stride) {
    const float factor = factors ? factors[c] : 1.f;
    if (n_units == kListTile) {  // the compiler knows the length
      load_row(tile, from, offsets, factor, kListTile);
    } else {
      load_row(tile, from, offsets, factor, n_units);
      for (int32_t u = n_units; u < width; u++) tile[u] = 0;
    }
  }
  for (int32_t u = 0; u < width; u++) tile[u] = 0;
}

// tile[n_chains + 1, width] = values of some units from `unit` on, less the offsets, times the factor of each chain;
// the last row is zero
static void load_tile(float* tile, int32_t width, const ValuesView& values, int64_t stride, int64_t unit,
                      int32_t n_units, int64_t chain, int32_t n_chains, const WeightingView& weighting) {
  const int64_t start = chain * stride + unit;
  const float* offsets = weighting.upper_offsets ? weighting.upper_offsets + unit : nullptr;
  const float* factors = weighting.factors ? weighting.factors + chain : nullptr;
  if (values.real) {
    load_rows(tile, width, static_cast<const float*>(values.data) + start, stride, n_units, n_chains, offsets, factors);
  } else {
    load_rows(tile, width, static_cast<const uint8_t*>(values.data) + start, stride, n_units, n_chains, offsets,
              factors);
  }
}

// What sums of four rows of a tile begin with: minus the product of a number for each row and one for each column.
struct Start {
  float rows[4];
  alignas(64) float columns[kListTile];
};

static inline Floats begin(const Start* start, const float* sums, int row, int column) {
  if (!start) return load<Floats>(sums + column);
  return Floats{} - start->rows[row] * load<Floats>(start->columns + column);
}

// sums[kListed][kListTile] = their start, or where there is none += the listed rows of a tile
static inline void add_listed(float* const* sums, const Start* start, const float* __restrict tile,
                              const uint16_t* __restrict rows, int32_t n) {
  constexpr int kVectors = 2;
  static_assert(kListed == 4 && kListTile % (kVectors * kFloatLanes) == 0);
  for (int u = 0; u < kListTile; u += kVectors * kFloatLanes) {
    Floats sum[kListed][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kListed; i++)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) sum[i][v] = begin(start, sums[i], i, u + v * kFloatLanes);
    for (int32_t k = 0; k < n; k++) {
      uint64_t four;
      memcpy(&four, rows + k * kListed, sizeof four);
#pragma GCC unroll 4
      for (int i = 0; i < kListed; i++) {
        const float* row = tile + (four >> 16 * i & 0xffff) + u;
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; v++) sum[i][v] += load<Floats>(row + v * kFloatLanes);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kListed; i++)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) store(sums[i] + u + v * kFloatLanes, sum[i][v]);
  }
}

// sums[kFactors][kListTile] = their start, or where there is none += factors (transposed) times a tile [n_chains,
// kListTile]
static inline void add_products(float* const* sums, const Start* start, const float* __restrict tile,
                                const float* __restrict factors, int32_t n_chains) {
  constexpr int kVectors = 2;
  static_assert(kFactors == 4 && kListTile % (kVectors * kFloatLanes) == 0);
  for (int u = 0; u < kListTile; u += kVectors * kFloatLanes) {
    Floats sum[kFactors][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kFactors; i++)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) sum[i][v] = begin(start, sums[i], i, u + v * kFloatLanes);
    for (int32_t c = 0; c < n_chains; c++) {
      Floats row[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) row[v] = load<Floats>(tile + c * kListTile + u + v * kFloatLanes);
#pragma GCC unroll 4
      for (int i = 0; i < kFactors; i++) {
        const Floats factor = factors[c * kFactors + i] - Floats{};
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; v++) sum[i][v] = fma(factor, row[v], sum[i][v]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kFactors; i++)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; v++) store(sums[i] + u + v * kFloatLanes, sum[i][v]);
  }
}

// Up to four rows of out, each from one place in the row on: in place where a whole tile of all four is there, else by
// a copy.
template <class Add>
static void add_to_rows(float* const* rows, int32_t n_rows, int32_t n_units, int32_t width, bool is_new, Add add) {
  constexpr int32_t kRows = 4;
  if (n_rows == kRows && n_units == width) return add(rows);
  alignas(64) float copies[kRows][kListTile] = {};
  float* to[kRows];
  for (int32_t i = 0; i < kRows; i++) {
    to[i] = copies[i];
    if (!is_new && i < n_rows) memcpy(copies[i], rows[i], n_units * sizeof(float));
  }
  add(to);
  for (int32_t i = 0; i < n_rows; i++) memcpy(rows[i], copies[i], n_units * sizeof(float));
}

static void add_panels(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper,
                       int64_t n_chains, int64_t first, int64_t n, const WeightingView& weighting,
                       StatisticsScratch& scratch) {
  constexpr int32_t width = kListTile;
  const int64_t unit_tiles = (n + kListUnits - 1) / kListUnits, panels = (n_chains + kPanelChains - 1) / kPanelChains;
  for (int64_t i = 0; i < unit_tiles; i++) {
    const int64_t unit = first + n * i / unit_tiles;
    const auto n_units = static_cast<int32_t>(first + n * (i + 1) / unit_tiles - unit);
    for (int64_t group = 0; group < panels; group += kPanels) {
      const int64_t end = group + kPanels < panels ? group + kPanels : panels;
      for (int64_t p = group; p < end; p++) {
        const int64_t chain = n_chains * p / panels;
        const auto block = static_cast<int32_t>(n_chains * (p + 1) / panels - chain);
        const int64_t start = chain * n_lower + unit;
        if (lower.real) {
          gather_factors(scratch.factors[p - group], scratch.lists[p - group],
                         static_cast<const float*>(lower.data) + start, n_lower, n_units, block);
        } else {
          list_chains(scratch.lists[p - group], static_cast<const uint8_t*>(lower.data) + start, n_lower, n_units,
                      block);
        }
      }
      for (int64_t column = 0; column < n_upper; column += width) {  // whose sums stay in the second-level cache
        const auto columns = static_cast<int32_t>(n_upper - column < width ? n_upper - column : width);
        Start start = {};
        if (weighting.upper_differences)
          memcpy(start.columns, weighting.upper_differences + column, columns * sizeof(float));
        for (int64_t p = group; p < end; p++) {
          const int64_t chain = n_chains * p / panels;
          const auto block = static_cast<int32_t>(n_chains * (p + 1) / panels - chain);
          load_tile(scratch.tile, width, upper, n_upper, column, columns, chain, block, weighting);
          const PanelLists& lists = scratch.lists[p - group];
          const uint16_t* list = lists.rows;
          for (int32_t u = 0; u < n_units; u += kListed) {
            const int32_t n_rows = n_units - u < kListed ? n_units - u : kListed;
            float* rows[kListed];
            for (int32_t j = 0; j < n_rows; j++) {
              const int64_t row = unit + (lower.real ? u + j : lists.order[u + j]);
              rows[j] = out + row * n_upper + column;
              if (weighting.lower_offsets) start.rows[j] = weighting.lower_offsets[row];
            }
            add_to_rows(rows, n_rows, columns, width, p == 0, [&](float* const* sums) {
              const Start* begin_with = p ? nullptr : &start;
              if (lower.real && lists.first) {
                add_products(sums, begin_with, scratch.tile, scratch.factors[p - group] + u * lists.first, lists.first);
                begin_with = nullptr;
              }
              const int32_t length = lists.lengths[u / kListed];
              if (length || begin_with) add_listed(sums, begin_with, scratch.tile, list, length);
            });
            list += lists.lengths[u / kListed] * kListed;
          }
        }
      }
    }
  }
}

// --- counts ----------------------------------------------------------------------------------------------------------

// counts[n] = ones that the columns of bits[n_words, n] share with the masks; two words at a time
static inline void count(int32_t* __restrict counts, const uint64_t* __restrict masks, const uint64_t* __restrict bits,
                         int64_t stride, int32_t n_words, int32_t n) {
  for (int32_t i = 0; i < n; i++) counts[i] = 0;
  int32_t w = 0;
  for (; w + 1 < n_words; w += 2) {
    const uint64_t *first = bits + w * stride, *second = first + stride;
    for (int32_t i = 0; i < n; i++)
      counts[i] += static_cast<int32_t>(__builtin_popcountll(masks[w] & first[i]) +
                                        __builtin_popcountll(masks[w + 1] & second[i]));
  }
  if (w < n_words)
    for (int32_t i = 0; i < n; i++)
      counts[i] += static_cast<int32_t>(__builtin_popcountll(masks[w] & bits[w * stride + i]));
}

static void add_counts(float* out, const uint8_t* lower, int64_t n_lower, const uint8_t* upper, int64_t n_upper,
                       int64_t n_chains, int64_t first, int64_t n, StatisticsScratch& scratch) {
  for (int64_t chain = 0; chain < n_chains; chain += 64 * kCountWords) {
    int32_t n_words = 0;
    for (int64_t c = chain; c < n_chains && n_words < kCountWords; c += 64, n_words++)
      pack(scratch.bits + n_words * n_upper, upper + c * n_upper, n_upper, n_upper,
           static_cast<int32_t>(n_chains - c < 64 ? n_chains - c : 64));
    for (int64_t unit = first; unit < first + n; unit += kCountUnits) {
      const int32_t n_units = static_cast<int32_t>(first + n - unit < kCountUnits ? first + n - unit : kCountUnits);
      uint64_t rows[kCountWords][kCountUnits];
      for (int32_t w = 0; w < n_words; w++) {
        const int64_t c = chain + 64 * w;
        pack(rows[w], lower + c * n_lower + unit, n_lower, n_units,
             static_cast<int32_t>(n_chains - c < 64 ? n_chains - c : 64));
      }
      for (int32_t u = 0; u < n_units; u++) {
        uint64_t masks[kCountWords];
        for (int32_t w = 0; w < n_words; w++) masks[w] = rows[w][u];
        for (int64_t j = 0; j < n_upper; j += kPad) {
          const int32_t width = static_cast<int32_t>(n_upper - j < kPad ? n_upper - j : kPad);
          int32_t counts[kPad];
          count(counts, masks, scratch.bits + j, n_upper, n_words, width);
          float* __restrict row = out + (unit + u) * n_upper + j;
          for (int32_t i = 0; i < width; i++) row[i] = (chain ? row[i] : 0.f) + static_cast<float>(counts[i]);
        }
      }
    }
  }
}

void statistics(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper, int64_t n_chains,
                int64_t first, int64_t n, const WeightingView& weighting, StatisticsScratch& scratch) {
  if (kHasPopcount && !lower.real && !upper.real && !weighting.factors && n_chains <= kExactCounts) {
    add_counts(out, static_cast<const uint8_t*>(lower.data), n_lower, static_cast<const uint8_t*>(upper.data), n_upper,
               n_chains, first, n, scratch);
  } else {
    add_panels(out, lower, n_lower, upper, n_upper, n_chains, first, n, weighting, scratch);
  }
}

}  // namespace bm::cpu::BM_ISA
