// Lookup kernels for AVX-512 BW: one vpermw returns the sum of four or five weights for 32 chains.
#include "cpu/kernels/avx512.h"
#include "cpu/lookup_kernels.h"

namespace bm::cpu::BM_ISA {

using namespace lookup;

constexpr int kLanes = 32;  // chains per register of int16

BM_UNITS __m512i lanes32() { return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

// --- tables ----------------------------------------------------------------------------------------------------------

BM_UNITS void store_limbs(int16_t* high, int16_t* low, __m512i sums) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(high), _mm512_cvtepi32_epi16(_mm512_srai_epi32(sums, 8)));
  _mm256_store_si256(reinterpret_cast<__m256i*>(low),
                     _mm512_cvtepi32_epi16(_mm512_and_si512(sums, _mm512_set1_epi32(255))));
}

constexpr int kMaxLowWords = 65535 / 255 / kWordGroups;  // low sums are at most 255 a group

struct Extremes {  // of the sums over subsets of some weights
  int64_t positive, negative;
};

BM_UNITS Extremes extremes(const int16_t* weights, int begin, int end) {
  int64_t positive = 0, negative = 0;
  for (int i = begin; i < end; i++) {
    positive += weights[i] > 0 ? weights[i] : 0;
    negative += weights[i] < 0 ? weights[i] : 0;
  }
  return {positive, negative};
}

BM_UNITS Extremes word_extremes(const int16_t* weights, int n_in, int word) {
  return extremes(weights, word * kWordUnits, (word + 1) * kWordUnits < n_in ? (word + 1) * kWordUnits : n_in);
}

// Whether high sums over `words` words with these extremes fit 16 bits; the floors of the high limbs take up to one
// from each group's negative sum.
BM_UNITS bool fits(const Extremes& e, int words) {
  constexpr int64_t kLimit = int64_t{32767} * 256;
  return e.positive < kLimit && e.negative - 256 * kWordGroups * words > -kLimit;
}

// Largest length, up to `fit` words, such that no run of that many words can take a high sum out of 16 bits.
static int words_that_fit(const int16_t* weights, int n_in, int fit) {
  const int words = (n_in + kWordUnits - 1) / kWordUnits;
  if (fits(extremes(weights, 0, n_in), words)) return fit;
  Extremes run = {0, 0};
  for (int start = 0, end = 0; end < words; end++) {
    const Extremes next = word_extremes(weights, n_in, end);
    run.positive += next.positive, run.negative += next.negative;
    while (!fits(run, end - start + 1)) {
      const Extremes first = word_extremes(weights, n_in, start++);
      run.positive -= first.positive, run.negative -= first.negative;
      fit = end - start + 1 < fit ? end - start + 1 : fit;
    }
  }
  return fit;
}

// --- accumulation ----------------------------------------------------------------------------------------------------

// One limb: sums[4][32 kRegs] over `words` words, wrapped to 16 bits (the caller keeps to what fits).
// The accumulators stay in registers. vpermw and vpaddw are one asm pair because GCC otherwise reorders the additions
// and spills, which costs a factor of two.
template <int kRegs>
BM_UNITS void accumulate_limb(__m512i (&sums)[kUnits][kRegs], const int16_t* states, int64_t block_stride,
                              const int16_t* table, int words, const int16_t* ahead, int lines_ahead) {
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) sums[u][r] = _mm512_setzero_si512();
  for (int w = 0; w < words; w++, states += kBlock) {
    for (int line = 0; line < lines_ahead; line++, ahead += kEntries) _mm_prefetch(ahead, _MM_HINT_T1);
    __m512i index[kRegs];
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) index[r] = _mm512_load_si512(states + r / 2 * block_stride + r % 2 * kLanes);
#pragma GCC unroll 3
    for (int g = 0; g < kWordGroups; g++, table += kUnits * kEntries) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnits; u++) {
        const __m512i entries = _mm512_load_si512(table + u * kEntries);
#pragma GCC unroll 6
        for (int r = 0; r < kRegs; r++)
          asm volatile("vpermw %2,%1,%%zmm31\n\tvpaddw %%zmm31,%0,%0"
                       : "+v"(sums[u][r])
                       : "v"(index[r]), "v"(entries)
                       : "zmm31");
      }
      if (g + 1 < kWordGroups) {  // the next five bits; vpermw ignores the bits above
#pragma GCC unroll 6
        for (int r = 0; r < kRegs; r++) index[r] = _mm512_srli_epi16(index[r], kGroup);
      }
    }
  }
}

template <int kRegs>
__attribute__((noinline)) static void accumulate_tile(int32_t* out, bool add, const int16_t* states,
                                                      int64_t block_stride, const int16_t* high_table,
                                                      const int16_t* low_table, int words, const int16_t* high_ahead,
                                                      const int16_t* low_ahead, int lines_ahead) {
  alignas(64) int16_t high[kUnits][kRegs * kLanes];
  __m512i sums[kUnits][kRegs];
  accumulate_limb<kRegs>(sums, states, block_stride, high_table, words, high_ahead, lines_ahead);
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) _mm512_store_si512(&high[u][r * kLanes], sums[u][r]);
  accumulate_limb<kRegs>(sums, states, block_stride, low_table, words, low_ahead, lines_ahead);
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++) {
#pragma GCC unroll 6
    for (int r = 0; r < kRegs; r++) {
      const __m256i low[2] = {_mm512_castsi512_si256(sums[u][r]), _mm512_extracti64x4_epi64(sums[u][r], 1)};
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        const int at = r * kLanes + half * 16;
        const __m512i h = _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(&high[u][at])));
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(h, 8), _mm512_cvtepu16_epi32(low[half]));
        int32_t* to = out + u * kTile + at;
        if (add) sum = _mm512_add_epi32(sum, _mm512_load_si512(to));
        _mm512_store_si512(to, sum);
      }
    }
  }
}

// --- tables in registers ---------------------------------------------------------------------------------------------

// The low limb of a sum is the sum modulo 2^16, the high one the sum divided by 512 and rounded down. Over some groups
// of four inputs, sum = 512 high + rest, where the rest is below 2^16 and the low limb gives it modulo 2^16. With
// weights of at most 32,639, high sums fit 16 bits for 128 groups, and so do rests, which are at most 511 a group.
constexpr int kHighBits = 9;
constexpr int kExactGroups = 128;

// Lane i: 1 in the low half if `bit` of i is set, 1 in the high half if the next bit is.
template <int kBit>
BM_UNITS __m512i pair_subsets() {
  const __m512i one = _mm512_set1_epi32(1), bits = _mm512_srli_epi32(lanes32(), kBit);
  return _mm512_or_si512(_mm512_and_si512(bits, one),
                         _mm512_slli_epi32(_mm512_and_si512(_mm512_srli_epi32(bits, 1), one), 16));
}

// Lane i: the sum of those of two weights that `subsets` selects.
BM_UNITS __m512i pair_sums(const int16_t* weights, __m512i subsets) {
  int32_t two;
  memcpy(&two, weights, sizeof two);
  return _mm512_madd_epi16(_mm512_set1_epi32(two), subsets);
}

// Moves the bits of the high limb to the upper word of 32.
BM_UNITS __m512i high_up(__m512i sums) { return _mm512_slli_epi32(sums, 16 - kHighBits); }

// Lookups in two registers of chains, each added to a sum. In assembly because GCC otherwise reorders the additions and
// spills, which costs a factor of two; permutes and additions that take turns are 15 % slower.
BM_UNITS void look_up(__m512i& a, __m512i& b, __m512i index_a, __m512i index_b, __m512i table) {
  asm volatile("vpermw %4,%2,%%zmm30\n\tvpermw %4,%3,%%zmm31\n\tvpaddw %%zmm30,%0,%0\n\tvpaddw %%zmm31,%1,%1"
               : "+v"(a), "+v"(b)
               : "v"(index_a), "v"(index_b), "v"(table)
               : "zmm30", "zmm31");
}

using Limbs = int16_t[kUnits][2][kBlock];  // sums of low and high limbs, modulo 2^16

// sums = (or +=) what the limbs stand for. Apart from the loops that add up limbs, whose registers it would spill.
__attribute__((noinline)) static void widen(int32_t* sums, bool add, const Limbs& limbs, int n_chains) {
  for (int u = 0; u < kUnits; u++) {
    for (int chain = 0; chain < n_chains; chain += kLanes) {
      const __m512i low = _mm512_load_si512(&limbs[u][0][chain]), high = _mm512_load_si512(&limbs[u][1][chain]);
      const __m512i rest = _mm512_sub_epi16(low, _mm512_slli_epi16(high, kHighBits));
      const __m256i highs[2] = {_mm512_castsi512_si256(high), _mm512_extracti64x4_epi64(high, 1)};
      const __m256i rests[2] = {_mm512_castsi512_si256(rest), _mm512_extracti64x4_epi64(rest, 1)};
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        int32_t* to = sums + u * kTile + chain + half * 16;
        __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(_mm512_cvtepi16_epi32(highs[half]), kHighBits),
                                       _mm512_cvtepu16_epi32(rests[half]));
        if (add) sum = _mm512_add_epi32(sum, _mm512_load_si512(to));
        _mm512_store_si512(to, sum);
      }
    }
  }
}

// The 16 subset sums of four weights are the table, in lanes of 32 bits: the low limb is the lower word of a lane, and
// the high limb the upper word after a shift. So an index is twice the subset, or that plus one.
template <int kRegs>
__attribute__((noinline)) static void accumulate_few_tile(Limbs& limbs, const int16_t* states,
                                                          const int16_t* const* rows, int64_t first, int64_t end) {
  const __m512i subsets01 = pair_subsets<0>(), subsets23 = pair_subsets<2>(), one = _mm512_set1_epi16(1);
  const int16_t* const row[kUnits] = {rows[0], rows[1], rows[2], rows[3]};
  __m512i low[kUnits][kRegs], high[kUnits][kRegs];
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 2
    for (int r = 0; r < kRegs; r++) low[u][r] = high[u][r] = _mm512_setzero_si512();
  for (int64_t i = first * kInRegisters.units; i < end * kInRegisters.units;
       i += kInRegisters.units, states += kBlock) {
    __m512i at_low[kRegs], at_high[kRegs];
#pragma GCC unroll 2
    for (int r = 0; r < kRegs; r++) {
      at_low[r] = _mm512_load_si512(states + r * kLanes);
      at_high[r] = _mm512_or_si512(at_low[r], one);
    }
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; u++) {
      const __m512i table = _mm512_add_epi32(pair_sums(row[u] + i, subsets01), pair_sums(row[u] + i + 2, subsets23));
      if constexpr (kRegs == 2) {
        look_up(low[u][0], low[u][1], at_low[0], at_low[1], table);
        look_up(high[u][0], high[u][1], at_high[0], at_high[1], high_up(table));
      } else {
        low[u][0] = _mm512_add_epi16(low[u][0], _mm512_permutexvar_epi16(at_low[0], table));
        high[u][0] = _mm512_add_epi16(high[u][0], _mm512_permutexvar_epi16(at_high[0], high_up(table)));
      }
    }
  }
#pragma GCC unroll 4
  for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 2
    for (int r = 0; r < kRegs; r++) {
      _mm512_store_si512(&limbs[u][0][r * kLanes], low[u][r]);
      _mm512_store_si512(&limbs[u][1][r * kLanes], high[u][r]);
    }
}

static void accumulate_few(int32_t* sums, const int16_t* states, const int16_t* const* rows, int n_in, int n_chains) {
  const auto tile = n_chains <= kLanes ? accumulate_few_tile<1> : accumulate_few_tile<2>;
  const int64_t groups = kInRegisters.words(n_in);
  alignas(64) Limbs limbs;
  for (int64_t first = 0; first < groups; first += kExactGroups) {
    tile(limbs, states + first * kBlock, rows, first, groups - first < kExactGroups ? groups : first + kExactGroups);
    widen(sums, first > 0, limbs, n_chains);
  }
}

// --- decisions -------------------------------------------------------------------------------------------------------

BM_UNITS __m512 field(const Decision& what, int unit, int chain) {
  __m512 x = _mm512_set1_ps(what.bias[unit]);
  for (int i = 0; i < what.inputs; i++) {
    const __m512i sum = _mm512_load_si512(what.sums[i] + unit * kTile + chain);
    x = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(what.scales[i]), x);
  }
  if (what.beta) {
    const __m512 beta = _mm512_load_ps(what.beta + chain);
    if (what.has_base) {
      const __m512 rest = _mm512_mul_ps(_mm512_sub_ps(_mm512_set1_ps(1.f), beta), _mm512_set1_ps(what.base[unit]));
      x = _mm512_fmadd_ps(beta, x, rest);
    } else {
      x = _mm512_mul_ps(beta, x);
    }
  }
  return x;
}

// --- bits ------------------------------------------------------------------------------------------------------------

// Transposes a 64 x 64 bit matrix in place: bit j of row i becomes bit i of row j.
static void transpose(uint64_t (&rows)[64]) {
  uint64_t mask = 0x00000000FFFFFFFFu;
  for (int step = 32; step; step >>= 1, mask ^= mask << step) {
    for (int k = 0; k < 64; k = (k + step + 1) & ~step) {
      const uint64_t swap = (rows[k] >> step ^ rows[k + step]) & mask;
      rows[k] ^= swap << step;
      rows[k + step] ^= swap;
    }
  }
}

BM_UNITS __mmask64 tail(int64_t n) { return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }

// masks[unit] for 64 units: bit c set where the byte of chain c is not 0.
BM_UNITS void gather_bits(uint64_t (&masks)[64], const uint8_t* bytes, int64_t pitch, int64_t units, int n_chains) {
  for (int c = 0; c < 64; c++) {
    const __m512i x = c < n_chains ? _mm512_maskz_loadu_epi8(tail(units), bytes + c * pitch) : _mm512_setzero_si512();
    masks[c] = _mm512_test_epi8_mask(x, x);
  }
  transpose(masks);
}

BM_UNITS void place_block(int16_t* words, int bit, uint64_t drawn, uint64_t held) {
  const __m512i one = _mm512_set1_epi16(static_cast<int16_t>(1 << bit));
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    const __m512i old = _mm512_load_si512(words + half * kLanes);
    const auto on = static_cast<__mmask32>(drawn >> half * 32), keep = static_cast<__mmask32>(held >> half * 32);
    const __m512i off = _mm512_andnot_si512(one, old);
    const __m512i next = _mm512_mask_add_epi16(off, on, off, one);
    _mm512_store_si512(words + half * kLanes, _mm512_mask_mov_epi16(next, keep, old));
  }
}

// The 32 subset sums of five weights: of the first four in 16 lanes, then the same plus the fifth.
BM_UNITS void build_entries(int16_t* high, int16_t* low, const int16_t* w) {
  __m512i sums = _mm512_maskz_set1_epi32(0xAAAA, w[0]);
  sums = _mm512_mask_add_epi32(sums, 0xCCCC, sums, _mm512_set1_epi32(w[1]));
  sums = _mm512_mask_add_epi32(sums, 0xF0F0, sums, _mm512_set1_epi32(w[2]));
  sums = _mm512_mask_add_epi32(sums, 0xFF00, sums, _mm512_set1_epi32(w[3]));
  store_limbs(high, low, sums);
  store_limbs(high + 16, low + 16, _mm512_add_epi32(sums, _mm512_set1_epi32(w[4])));
}

static int build_tables(int16_t* high, int16_t* low, const int16_t* weights, int64_t pitch, int n_in, int n_out,
                        int words) {
  const int groups = words * kWordGroups, whole = n_in / kGroup;
  int fit = words < kMaxLowWords ? words : kMaxLowWords;
  for (int u = 0; u < kUnits; u++) {
    const int16_t* row = weights + u * pitch;
    for (int g = 0; g < groups; g++) {
      const int64_t at = (static_cast<int64_t>(g) * kUnits + u) * kEntries;
      if (u < n_out && g < whole) {
        build_entries(high + at, low + at, row + g * kGroup);
      } else {
        int16_t w[kGroup] = {};
        if (u < n_out)
          for (int i = g * kGroup; i < n_in && i < (g + 1) * kGroup; i++) w[i - g * kGroup] = row[i];
        build_entries(high + at, low + at, w);
      }
    }
    if (u < n_out) fit = words_that_fit(row, n_in, fit);
  }
  return fit;
}

static void accumulate(int32_t* sums, bool add, const int16_t* states, int64_t block_stride, const int16_t* high,
                       const int16_t* low, int words, int blocks, const int16_t* high_ahead, const int16_t* low_ahead,
                       int lines_ahead) {
  const auto tile = blocks == 1 ? accumulate_tile<2> : blocks == 2 ? accumulate_tile<4> : accumulate_tile<6>;
  tile(sums, add, states, block_stride, high, low, words, high_ahead, low_ahead, lines_ahead);
}

static void decide(uint64_t (*drawn)[kMaxBlocks], float* means, const Decision& what, int n_chains) {
  constexpr int kStreams = kLanes / 16;
  uint32_t on[kUnits][kTile / kLanes] = {};
  for (int first = 0; first < n_chains; first += kLanes) {
    __m512i random[kUnits][kStreams];
#pragma GCC unroll 2
    for (int s = 0; s < kStreams; s++) {
      random[0][s] = _mm512_set1_epi32(static_cast<int>(what.unit_group));
      random[1][s] =
          _mm512_add_epi32(lanes32(), _mm512_set1_epi32(static_cast<int>(what.first_chain) + first + 16 * s));
      random[2][s] = _mm512_set1_epi32(static_cast<int>(what.sweep));
      random[3][s] = _mm512_set1_epi32(static_cast<int>(what.layer));
    }
    philox<kStreams>(random[0], random[1], random[2], random[3], what.key[0], what.key[1]);
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; u++)
#pragma GCC unroll 2
      for (int s = 0; s < kStreams; s++) {
        const int chain = first + 16 * s;
        const __m512 e = exp_minus(field(what, u, chain));
        on[u][first / kLanes] |= static_cast<uint32_t>(turns_on(e, random[u][s])) << 16 * s;
        if (means) {
          const __m512 one = _mm512_set1_ps(1.f);
          _mm512_store_ps(means + u * kTile + chain, _mm512_div_ps(one, _mm512_add_ps(one, e)));
        }
      }
  }
  for (int u = 0; u < kUnits; u++)
    for (int b = 0; b < kMaxBlocks; b++) drawn[u][b] = on[u][2 * b] | static_cast<uint64_t>(on[u][2 * b + 1]) << 32;
}

static void place(int16_t* words, int64_t block_stride, int bit, const uint64_t* drawn, const uint64_t* held,
                  int blocks) {
  for (int b = 0; b < blocks; b++) place_block(words + b * block_stride, bit, drawn[b], held ? held[b] : 0);
}

// totals[64 blocks] += for each chain the terms of the units that it turned on; `term(u, chain)` is that of 8 chains.
template <class Term>
BM_UNITS void add_terms(int64_t* totals, const uint64_t (*drawn)[kMaxBlocks], int blocks, Term term) {
  for (int chain = 0; chain < blocks * kBlock; chain += 8) {
    __m512i total = _mm512_load_si512(totals + chain);
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; u++) {
      const auto on = static_cast<__mmask8>(drawn[u][chain / kBlock] >> chain % kBlock);
      total = _mm512_mask_add_epi64(total, on, total, term(u, chain));
    }
    _mm512_store_si512(totals + chain, total);
  }
}

static void add_drawn(int64_t* totals, const int32_t* sums, const uint64_t (*drawn)[kMaxBlocks], int blocks) {
  add_terms(totals, drawn, blocks, [&](int u, int chain) __attribute__((always_inline)) {
    return _mm512_cvtepi32_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums + u * kTile + chain)));
  });
}

static void add_drawn_values(int64_t* totals, const int64_t* values, const uint64_t (*drawn)[kMaxBlocks], int blocks) {
  add_terms(totals, drawn, blocks,
            [&](int u, int) __attribute__((always_inline)) { return _mm512_set1_epi64(values[u]); });
}

static void pack(int16_t* words, Layout layout, const uint8_t* states, int64_t units, int n_chains) {
  for (int64_t first = 0; first < units; first += 64) {
    uint64_t masks[64];
    gather_bits(masks, states + first, units, units - first, n_chains);
    const int64_t last = units - first < 64 ? units - first : 64;
    for (int64_t u = 0; u < last; u++) {
      const int64_t unit = first + u;
      place_block(words + unit / layout.units * kBlock, layout.bit(unit), masks[u], 0);
    }
  }
}

static void unpack(uint8_t* states, Layout layout, const int16_t* words, int64_t units, int n_chains) {
  for (int64_t first = 0; first < units; first += 64) {
    uint64_t masks[64] = {};
    const int64_t last = units - first < 64 ? units - first : 64;
    for (int64_t u = 0; u < last; u++) {
      const int64_t unit = first + u;
      const int16_t* word = words + unit / layout.units * kBlock;
      const __m512i one = _mm512_set1_epi16(static_cast<int16_t>(1 << layout.bit(unit)));
      masks[u] = _mm512_test_epi16_mask(_mm512_load_si512(word), one) |
                 static_cast<uint64_t>(_mm512_test_epi16_mask(_mm512_load_si512(word + kLanes), one)) << 32;
    }
    transpose(masks);
    for (int c = 0; c < n_chains; c++)
      _mm512_mask_storeu_epi8(states + c * units + first, tail(units - first), _mm512_maskz_set1_epi8(masks[c], 1));
  }
}

static void pack_masks(uint64_t* masks, const uint8_t* bytes, int64_t units, int n_chains) {
  for (int64_t first = 0; first < units; first += 64) {
    uint64_t part[64];
    gather_bits(part, bytes + first, units, units - first, n_chains);
    const int64_t last = units - first < 64 ? units - first : 64;
    for (int64_t u = 0; u < last; u++) masks[first + u] = part[u];
  }
}

extern const lookup::Kernels lookup_kernels;
const lookup::Kernels lookup_kernels = {build_tables, accumulate,       accumulate_few, decide, place,
                                        add_drawn,    add_drawn_values, pack,           unpack, pack_masks};

}  // namespace bm::cpu::BM_ISA
