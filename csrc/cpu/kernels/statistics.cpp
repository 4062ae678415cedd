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

constexpr int64_t kExactCounts = 1 << 24;               // beyond, sums of ones in float stop growing
constexpr int kRowVectors = kRegisters == 32 ? 16 : 8;  // float accumulators of a tile of a row

// --- real values -----------------------------------------------------------------------------------------------------

static void load_row(float* __restrict to, const ValuesView& values, int64_t start, int32_t n) {
  if (values.real) {
    memcpy(to, static_cast<const float*>(values.data) + start, n * sizeof(float));
  } else {
    const uint8_t* from = static_cast<const uint8_t*>(values.data) + start;
    for (int32_t u = 0; u < n; u++) to[u] = from[u];
  }
}

// Adds the panel rows of the listed chains to a tile of a row of out; where the lower layer is real, all chains, each
// times its factor.
template <int kVectors, bool kReal>
static void add_chains(float* __restrict row, const float* __restrict panel, int64_t stride,
                       const uint32_t* __restrict chains, const float* __restrict factors, int32_t n) {
  Floats sum[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; v++) sum[v] = load<Floats>(row + v * kFloatLanes);
  for (int32_t k = 0; k < n; k++) {
    const float* from = panel + (kReal ? k : chains[k]) * stride;
    const Floats factor = kReal ? factors[k] - Floats{} : Floats{};
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; v++) {
      const Floats m = load<Floats>(from + v * kFloatLanes);
      sum[v] = kReal ? fma(factor, m, sum[v]) : sum[v] + m;
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; v++) store(row + v * kFloatLanes, sum[v]);
}

template <bool kReal>
static void add_to_row(float* __restrict out, int32_t width, const float* panel, int64_t stride, const uint32_t* chains,
                       const float* factors, int32_t n) {
  for (int32_t u = 0; u < width; u += kRowVectors * kFloatLanes) {
    const int32_t rest = width - u, tile = rest < kRowVectors * kFloatLanes ? rest : kRowVectors * kFloatLanes;
    alignas(64) float row[kRowVectors * kFloatLanes];
    memset(row, 0, sizeof row);
    memcpy(row, out + u, tile * sizeof(float));
    const int32_t vectors = (tile + kFloatLanes - 1) / kFloatLanes;
    if (vectors > kRowVectors / 2) {
      add_chains<kRowVectors, kReal>(row, panel + u, stride, chains, factors, n);
    } else if (vectors > kRowVectors / 4) {
      add_chains<kRowVectors / 2, kReal>(row, panel + u, stride, chains, factors, n);
    } else {
      add_chains<kRowVectors / 4, kReal>(row, panel + u, stride, chains, factors, n);
    }
    memcpy(out + u, row, tile * sizeof(float));
  }
}

// A tile of lower units in the chains of a panel: the chains in which each is on, or all its values.
static void list_columns(PanelColumns& columns, const ValuesView& lower, int64_t n_lower, int64_t unit, int32_t n_units,
                         int64_t chain, int32_t n_chains) {
  if (lower.real) {
    for (int32_t c = 0; c < n_chains; c++) {
      const float* from = static_cast<const float*>(lower.data) + (chain + c) * n_lower + unit;
      for (int32_t u = 0; u < n_units; u++) columns.factors[u][c] = from[u];
    }
    for (int32_t u = 0; u < n_units; u++) columns.n[u] = n_chains;
    return;
  }
  for (int32_t u = 0; u < n_units; u++) columns.n[u] = 0;
  for (int32_t c = 0; c < n_chains; c++) {
    const uint8_t* from = static_cast<const uint8_t*>(lower.data) + (chain + c) * n_lower + unit;
    for (int32_t u = 0; u < n_units; u++) {
      columns.chains[u][columns.n[u]] = static_cast<uint32_t>(c);
      columns.n[u] += from[u] != 0;
    }
  }
}

static void add_products(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper,
                         int64_t n_chains, int64_t first, int64_t n, StatisticsScratch scratch) {
  for (int64_t chain = 0; chain < n_chains; chain += kPanelChains) {
    const int32_t block = static_cast<int32_t>(n_chains - chain < kPanelChains ? n_chains - chain : kPanelChains);
    for (int64_t column = 0; column < n_upper; column += kPanelUnits) {
      const int32_t width = static_cast<int32_t>(n_upper - column < kPanelUnits ? n_upper - column : kPanelUnits);
      const int64_t stride = panel_stride(n_upper);
      for (int32_t c = 0; c < block; c++) {
        float* row = scratch.panel + c * stride;
        load_row(row, upper, (chain + c) * n_upper + column, width);
        for (int64_t u = width; u < stride; u++) row[u] = 0;
      }
      for (int64_t unit = first; unit < first + n; unit += kPanelRows) {
        const int32_t n_units = static_cast<int32_t>(first + n - unit < kPanelRows ? first + n - unit : kPanelRows);
        list_columns(*scratch.columns, lower, n_lower, unit, n_units, chain, block);
        for (int32_t u = 0; u < n_units; u++) {
          float* to = out + (unit + u) * n_upper + column;
          const int32_t listed = scratch.columns->n[u];
          if (lower.real) {
            add_to_row<true>(to, width, scratch.panel, stride, nullptr, scratch.columns->factors[u], listed);
          } else {
            add_to_row<false>(to, width, scratch.panel, stride, scratch.columns->chains[u], nullptr, listed);
          }
        }
      }
    }
  }
}

// --- counts ----------------------------------------------------------------------------------------------------------

// bits[n_units] of up to 64 chains: bit c is the state in chain c
static void pack(uint64_t* __restrict bits, const uint8_t* __restrict states, int64_t stride, int64_t n_units,
                 int32_t n_chains) {
  for (int64_t u = 0; u < n_units; u++) bits[u] = 0;
  for (int32_t c = 0; c < n_chains; c++)
    for (int64_t u = 0; u < n_units; u++) bits[u] |= static_cast<uint64_t>(states[c * stride + u]) << c;
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
        float* __restrict row = out + (unit + u) * n_upper;
        for (int32_t w = 0; w < n_words; w++) {
          const uint64_t mask = rows[w][u];
          const uint64_t* __restrict bits = scratch.bits + w * n_upper;
          for (int64_t j = 0; j < n_upper; j++)
            row[j] += static_cast<float>(static_cast<int32_t>(__builtin_popcountll(mask & bits[j])));
        }
      }
    }
  }
}

void statistics(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper, int64_t n_chains,
                int64_t first, int64_t n, StatisticsScratch scratch) {
  memset(out + first * n_upper, 0, n * n_upper * sizeof(float));
  if (kHasPopcount && !lower.real && !upper.real && n_chains <= kExactCounts) {
    add_counts(out, static_cast<const uint8_t*>(lower.data), n_lower, static_cast<const uint8_t*>(upper.data), n_upper,
               n_chains, first, n, scratch);
  } else {
    add_products(out, lower, n_lower, upper, n_upper, n_chains, first, n, scratch);
  }
}

}  // namespace bm::cpu::BM_ISA
