// The other direction of 16-bit weights, in tiles of 32 x 32: a cache line at a time at both ends.
#include "cpu/kernels/isa.h"

namespace bm::cpu::BM_ISA {

#if defined(__AVX512BW__)

// Three rounds, each of which interleaves rows i and i + 4, in each quarter of eight registers: register i then
// holds columns i, 8 + i, 16 + i and 24 + i of the eight rows.
BM_UNITS void turn(__m512i (&rows)[8]) {
#pragma GCC unroll 3
  for (int round = 0; round < 3; round++) {
    __m512i turned[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      turned[2 * i] = _mm512_unpacklo_epi16(rows[i], rows[i + 4]);
      turned[2 * i + 1] = _mm512_unpackhi_epi16(rows[i], rows[i + 4]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) rows[i] = turned[i];
  }
}

static inline void transpose_tile(int16_t* to, int64_t to_stride, int64_t n_columns, const int16_t* from,
                                  int64_t from_stride, int64_t n_rows) {
  __m512i rows[4][8];
#pragma GCC unroll 4
  for (int eight = 0; eight < 4; eight++) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
      rows[eight][i] =
          8 * eight + i < n_rows ? _mm512_load_si512(from + (8 * eight + i) * from_stride) : _mm512_setzero_si512();
    turn(rows[eight]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    // of registers i, quarter k is column 8 k + i of eight rows
    const __m512i first = _mm512_shuffle_i32x4(rows[0][i], rows[1][i], 0x44),
                  last = _mm512_shuffle_i32x4(rows[0][i], rows[1][i], 0xEE),
                  lower_first = _mm512_shuffle_i32x4(rows[2][i], rows[3][i], 0x44),
                  lower_last = _mm512_shuffle_i32x4(rows[2][i], rows[3][i], 0xEE);
    const __m512i columns[4] = {
        _mm512_shuffle_i32x4(first, lower_first, 0x88), _mm512_shuffle_i32x4(first, lower_first, 0xDD),
        _mm512_shuffle_i32x4(last, lower_last, 0x88), _mm512_shuffle_i32x4(last, lower_last, 0xDD)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
      if (8 * k + i < n_columns) _mm512_store_si512(to + (8 * k + i) * to_stride, columns[k]);
  }
}

#else

typedef int16_t Eight __attribute__((vector_size(16)));

// Transposes 8 x 8 values in registers, in three rounds, each of which interleaves rows i and i + 4.
static inline void transpose_eight(int16_t* to, const int16_t* from) {
  Eight a[8], b[8];
  for (int i = 0; i < 8; i++) memcpy(&a[i], from + i * kLineWeights, sizeof a[i]);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 4; i++) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i++) a[i] = b[i];
  }
  for (int i = 0; i < 8; i++) memcpy(to + i * kLineWeights, &a[i], sizeof a[i]);
}

// In between, rows and columns lie close together: at the strides of rows, which may be powers of two, few lines would
// stay in the first-level cache.
static inline void transpose_tile(int16_t* to, int64_t to_stride, int64_t n_columns, const int16_t* from,
                                  int64_t from_stride, int64_t n_rows) {
  constexpr int64_t n = kLineWeights;
  alignas(64) int16_t rows[n * n] = {}, columns[n * n];
  for (int64_t i = 0; i < n_rows; i++) memcpy(rows + i * n, from + i * from_stride, n * sizeof *rows);
  for (int64_t i = 0; i < n; i += 8)
    for (int64_t j = 0; j < n; j += 8) transpose_eight(columns + j * n + i, rows + i * n + j);
  for (int64_t j = 0; j < n && j < n_columns; j++) memcpy(to + j * to_stride, columns + j * n, n * sizeof *columns);
}

#endif

void transpose(int16_t* to, int64_t to_stride, const int16_t* from, int64_t from_stride, int64_t n_rows,
               int64_t n_columns) {
  for (int64_t j = 0; j < n_columns; j += kLineWeights)
    transpose_tile(to + j * to_stride, to_stride, n_columns - j, from + j, from_stride, n_rows);
}

}  // namespace bm::cpu::BM_ISA
