// Lookup kernels for AVX-512 BW: one vpermw returns the sum of four or five weights for 32 chains.
#include "cpu/kernels/bits.h"
#include "cpu/kernels/draw.h"
#include "cpu/kernels/lookup_registers.h"
#include "cpu/kernels/lookup_tables.h"

namespace bm::cpu::BM_ISA {

// --- decisions -------------------------------------------------------------------------------------------------------

BM_UNITS __m512 field(const Decision& what, int unit, int chain) {
  __m512 x = _mm512_set1_ps(what.bias[unit]);
  for (int i = 0; i < what.inputs; i++) {
    const int at = unit * kTile + chain;
    const __m512i sum =
        what.least ? _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(what.high[i] + at)))
                   : _mm512_load_si512(what.sums[i] + at);
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

static void decide(uint64_t (*drawn)[kMaxBlocks], uint64_t (*open)[kMaxBlocks], uint32_t* numbers, float* means,
                   const Decision& what, int n_chains) {
  constexpr int kStreams = kLanes / 16;
  uint32_t on[kUnits][kTile / kLanes] = {}, unsure[kUnits][kTile / kLanes] = {};
  for (int first = 0; first < n_chains; first += kLanes) {
    __m512i random[kUnits][kStreams];
#pragma GCC unroll 2
    for (int s = 0; s < kStreams; s++) {
      random[0][s] = _mm512_set1_epi32(static_cast<int>(what.unit_group));
      random[1][s] =
          _mm512_add_epi32(lane_numbers(), _mm512_set1_epi32(static_cast<int>(what.first_chain) + first + 16 * s));
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
        if (what.least) {
          const uint32_t surely = turns_on(_mm512_mul_ps(e, _mm512_load_ps(what.most + chain)), random[u][s]);
          const uint32_t maybe = turns_on(_mm512_mul_ps(e, _mm512_load_ps(what.least + chain)), random[u][s]);
          on[u][first / kLanes] |= surely << 16 * s;
          unsure[u][first / kLanes] |= (surely ^ maybe) << 16 * s;
          _mm512_store_si512(numbers + u * kTile + chain, random[u][s]);
        } else {
          on[u][first / kLanes] |= static_cast<uint32_t>(turns_on(e, random[u][s])) << 16 * s;
        }
        if (means) {
          const __m512 one = _mm512_set1_ps(1.f);
          _mm512_store_ps(means + u * kTile + chain, _mm512_div_ps(one, _mm512_add_ps(one, e)));
        }
      }
  }
  for (int u = 0; u < kUnits; u++)
    for (int b = 0; b < kMaxBlocks; b++) {
      drawn[u][b] = on[u][2 * b] | static_cast<uint64_t>(on[u][2 * b + 1]) << 32;
      open[u][b] = unsure[u][2 * b] | static_cast<uint64_t>(unsure[u][2 * b + 1]) << 32;
    }
}

static int32_t sum_of_words(const int16_t* words, const int16_t* weights, int n_in) {
  static_assert(kWordUnits < 16);  // bits beyond the last unit are 0
  __m256i sum = _mm256_setzero_si256();
  for (int i = 0; i < n_in; i += kWordUnits, words += kBlock) {
    const __m256i w = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(*words), weights + i);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w, _mm256_set1_epi16(1)));
  }
  return _mm512_reduce_add_epi32(_mm512_zextsi256_si512(sum));
}

static bool decide_exactly(const ExactInput* inputs, int n_inputs, float bias, const float* beta, const float* base,
                           uint32_t random) {
  float x = bias;
  for (const ExactInput* in = inputs; in < inputs + n_inputs; in++)
    x = units::fma(static_cast<float>(sum_of_words(in->words, in->weights, in->n_in)), in->scale, x);
  temper(&x, beta, base, 1);
  return units::decide(x, random);
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

// The same where four terms add up in 32 bits; `term(u, chain)` is that of 16 chains.
template <class Term>
BM_UNITS void add_narrow_terms(int64_t* totals, const uint64_t (*drawn)[kMaxBlocks], int blocks, Term term) {
  for (int chain = 0; chain < blocks * kBlock; chain += 16) {
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int u = 0; u < kUnits; u++) {
      const auto on = static_cast<__mmask16>(drawn[u][chain / kBlock] >> chain % kBlock);
      sum = _mm512_mask_add_epi32(sum, on, sum, term(u, chain));
    }
    const __m256i halves[2] = {_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1)};
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      int64_t* to = totals + chain + half * 8;
      _mm512_store_si512(to, _mm512_add_epi64(_mm512_load_si512(to), _mm512_cvtepi32_epi64(halves[half])));
    }
  }
}

static void add_drawn(int64_t* totals, const int32_t* sums, int64_t most, const uint64_t (*drawn)[kMaxBlocks],
                      int blocks) {
  if (most <= kMostNarrow)
    add_narrow_terms(totals, drawn, blocks, [&](int u, int chain) __attribute__((always_inline)) {
      return _mm512_load_si512(sums + u * kTile + chain);
    });
  else
    add_terms(totals, drawn, blocks, [&](int u, int chain) __attribute__((always_inline)) {
      return _mm512_cvtepi32_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums + u * kTile + chain)));
    });
}

static void add_values(int64_t* totals, const int16_t* words, Layout layout, const int64_t* values, int64_t units) {
  constexpr int kChains = 8, kVectors = kBlock / kChains;
  __m512i sums[kVectors] = {};
  for (int64_t unit = 0; unit < units; words += kBlock)
    for (int i = 0; i < layout.units && unit < units; i++, unit++) {
      const __m128i one = _mm_set1_epi16(static_cast<int16_t>(1 << layout.bit(i)));
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) {
        const __m128i eight = _mm_load_si128(reinterpret_cast<const __m128i*>(words + v * kChains));
        const __mmask8 on = _mm_test_epi16_mask(eight, one);
        sums[v] = _mm512_mask_add_epi64(sums[v], on, sums[v], _mm512_set1_epi64(values[unit]));
      }
    }
  for (int64_t v = 0; v < kVectors; v++, totals += kChains)
    _mm512_store_si512(totals, _mm512_add_epi64(_mm512_load_si512(totals), sums[v]));
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
    transpose_bits(masks);
    for (int c = 0; c < n_chains; c++)
      _mm512_mask_storeu_epi8(states + c * units + first, first_lanes(units - first),
                              _mm512_maskz_set1_epi8(masks[c], 1));
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
const lookup::Kernels lookup_kernels = {build_tables, accumulate_high, accumulate_low, widen,     accumulate_few,
                                        decide,       decide_exactly,  place,          add_drawn, add_values,
                                        pack,         unpack,          pack_masks};

}  // namespace bm::cpu::BM_ISA
