// out = lower (transposed) times upper over many chains, chains added in order with one fma each.
//
// Both binary: counts by and + popcount, which is what the sums of ones would give. Binary times real: the chains in
// which a lower unit is on are listed, and only their rows of `upper` are added. Adding 0 * m would change no bit.
#include "cpu/kernels/isa.h"

namespace bm::cpu::BM_ISA {

#if defined(__POPCNT__) || defined(__aarch64__)
constexpr bool kHasPopcount = true;
#else
constexpr bool kHasPopcount = false;  // a call of libgcc for each word: adding floats is faster
#endif

constexpr int64_t kExactCounts = 1 << 24;  // beyond, sums of ones in float stop growing

// --- real values -----------------------------------------------------------------------------------------------------

static void load_row(float* __restrict to, const ValuesView& values, int64_t start, int32_t n) {
  if (values.real) {
    memcpy(to, static_cast<const float*>(values.data) + start, n * sizeof(float));
  } else {
    const uint8_t* from = static_cast<const uint8_t*>(values.data) + start;
    for (int32_t u = 0; u < n; u++) to[u] = from[u];
  }
  for (int32_t u = n; u < kPad; u++) to[u] = 0;
}

// sums[kPad] = or, unless they are new, += the rows of a tile [n_chains, kPad] of the upper layer that are listed
static inline void add_listed(float* __restrict sums, bool is_new, const float* __restrict tile,
                              const uint32_t* __restrict chains, int32_t n) {
  constexpr int kVectors = kRegisters == 32 ? 4 : 8;
  static_assert(kPad % (kVectors * kFloatLanes) == 0);
  for (int u = 0; u < kPad; u += kVectors * kFloatLanes) {
    Floats sum[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) sum[v] = is_new ? Floats{} : load<Floats>(sums + u + v * kFloatLanes);
    for (int32_t k = 0; k < n; k++) {
      const float* row = tile + chains[k] * kPad + u;
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) sum[v] += load<Floats>(row + v * kFloatLanes);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) store(sums + u + v * kFloatLanes, sum[v]);
  }
}

// sums[kFactorRows, kPad] = or, unless they are new, += factors (transposed) times a tile [n_chains, kPad] of the upper
// layer
constexpr int kFactorRows = 4;

static inline void add_products(float* __restrict sums, int64_t stride, bool is_new, const float* __restrict tile,
                                const float (*__restrict factors)[kPanelChains], int32_t n_chains) {
  constexpr int kVectors = kRegisters == 32 ? 4 : 2;
  static_assert(kPad % (kVectors * kFloatLanes) == 0 && kPanelRows % kFactorRows == 0);
  for (int u = 0; u < kPad; u += kVectors * kFloatLanes) {
    Floats sum[kFactorRows][kVectors];
#pragma GCC unroll 4
    for (int r = 0; r < kFactorRows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++)
        sum[r][v] = is_new ? Floats{} : load<Floats>(sums + r * stride + u + v * kFloatLanes);
    for (int32_t c = 0; c < n_chains; c++) {
      Floats row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) row[v] = load<Floats>(tile + c * kPad + u + v * kFloatLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kFactorRows; r++) {
        const Floats factor = factors[r][c] - Floats{};
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) sum[r][v] = fma(factor, row[v], sum[r][v]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kFactorRows; r++)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) store(sums + r * stride + u + v * kFloatLanes, sum[r][v]);
  }
}

// bits[n_units] of up to 64 chains: bit c is the state in chain c
static inline void pack(uint64_t* __restrict bits, const uint8_t* __restrict states, int64_t stride, int64_t n_units,
                        int32_t n_chains) {
  for (int64_t u = 0; u < n_units; u++) bits[u] = 0;
  for (int32_t c = 0; c < n_chains; c++)
    for (int64_t u = 0; u < n_units; u++) bits[u] |= static_cast<uint64_t>(states[c * stride + u]) << c;
}

// A tile of lower units in the chains of a panel: the chains in which each is on, or all its values.
static void list_columns(PanelColumns& columns, const ValuesView& lower, int64_t n_lower, int64_t unit, int32_t n_units,
                         int64_t chain, int32_t n_chains) {
  if (lower.real) {
    for (int32_t c = 0; c < n_chains; c++) {
      const float* from = static_cast<const float*>(lower.data) + (chain + c) * n_lower + unit;
      for (int32_t u = 0; u < n_units; u++) columns.factors[u][c] = from[u];
      for (int32_t u = n_units; u % kFactorRows; u++) columns.factors[u][c] = 0;
    }
    return;
  }
  for (int32_t u = 0; u < n_units; u++) columns.n[u] = 0;
  for (int32_t c = 0; c < n_chains; c += 64) {
    uint64_t bits[kPanelRows];
    pack(bits, static_cast<const uint8_t*>(lower.data) + (chain + c) * n_lower + unit, n_lower, n_units,
         n_chains - c < 64 ? n_chains - c : 64);
    for (int32_t u = 0; u < n_units; u++)
      for (uint64_t rest = bits[u]; rest; rest &= rest - 1)
        columns.chains[u][columns.n[u]++] = static_cast<uint32_t>(c + __builtin_ctzll(rest));
  }
}

// Rows of out for up to kPanelRows lower units and one tile of upper units, plus those of the chains of a panel.
static void add_tile(float* __restrict out, int64_t n_upper, bool is_new, int32_t width, const float* tile,
                     const PanelColumns& columns, bool real, int32_t n_units, int32_t n_chains) {
  alignas(64) float partial[kFactorRows * kPad] = {};
  const int32_t step = real ? kFactorRows : 1;
  for (int32_t u = 0; u < n_units; u += step) {
    const int32_t rows = n_units - u < step ? n_units - u : step;
    const bool in_place = width == kPad && rows == step;
    float* sums = in_place ? out + u * n_upper : partial;
    if (!in_place)
      for (int32_t r = 0; r < rows; r++) memcpy(partial + r * kPad, out + (u + r) * n_upper, width * sizeof(float));
    if (real) {
      add_products(sums, in_place ? n_upper : kPad, is_new, tile, columns.factors + u, n_chains);
    } else {
      add_listed(sums, is_new, tile, columns.chains[u], columns.n[u]);
    }
    if (!in_place)
      for (int32_t r = 0; r < rows; r++) memcpy(out + (u + r) * n_upper, partial + r * kPad, width * sizeof(float));
  }
}

static void add_panels(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper,
                       int64_t n_chains, int64_t first, int64_t n, StatisticsScratch scratch) {
  for (int64_t chain = 0; chain < n_chains; chain += kPanelChains) {
    const int32_t block = static_cast<int32_t>(n_chains - chain < kPanelChains ? n_chains - chain : kPanelChains);
    for (int64_t column = 0; column < n_upper; column += kPanelUnits) {
      const int64_t end = n_upper - column < kPanelUnits ? n_upper : column + kPanelUnits;
      float* tile = scratch.panel;
      for (int64_t u = column; u < end; u += kPad)
        for (int32_t c = 0; c < block; c++, tile += kPad)
          load_row(tile, upper, (chain + c) * n_upper + u, static_cast<int32_t>(end - u < kPad ? end - u : kPad));
      for (int64_t unit = first; unit < first + n; unit += kPanelRows) {
        const int32_t n_units = static_cast<int32_t>(first + n - unit < kPanelRows ? first + n - unit : kPanelRows);
        list_columns(*scratch.columns, lower, n_lower, unit, n_units, chain, block);
        tile = scratch.panel;
        for (int64_t u = column; u < end; u += kPad, tile += block * kPad)
          add_tile(out + unit * n_upper + u, n_upper, chain == 0, static_cast<int32_t>(end - u < kPad ? end - u : kPad),
                   tile, *scratch.columns, lower.real, n_units, block);
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
                       int64_t n_chains, int64_t first, int64_t n, StatisticsScratch scratch) {
  for (int64_t chain = 0; chain < n_chains; chain += 64 * kCountWords) {
    int32_t n_words = 0;
    for (int64_t c = chain; c < n_chains && n_words < kCountWords; c += 64, n_words++)
      pack(scratch.bits + n_words * n_upper, upper + c * n_upper, n_upper, n_upper,
           static_cast<int32_t>(n_chains - c < 64 ? n_chains - c : 64));
    for (int64_t unit = first; unit < first + n; unit += kPanelRows) {
      const int32_t n_units = static_cast<int32_t>(first + n - unit < kPanelRows ? first + n - unit : kPanelRows);
      uint64_t rows[kCountWords][kPanelRows];
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
                int64_t first, int64_t n, StatisticsScratch scratch) {
  if (kHasPopcount && !lower.real && !upper.real && n_chains <= kExactCounts) {
    add_counts(out, static_cast<const uint8_t*>(lower.data), n_lower, static_cast<const uint8_t*>(upper.data), n_upper,
               n_chains, first, n, scratch);
  } else {
    add_panels(out, lower, n_lower, upper, n_upper, n_chains, first, n, scratch);
  }
}

}  // namespace bm::cpu::BM_ISA
