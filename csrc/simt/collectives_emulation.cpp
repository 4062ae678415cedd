// Collectives of a warp, on the scheduler of emulation.cpp: as that, never compiled with -fsanitize=thread.
#include "simt/scheduler.h"
#include "simt/simt.h"

namespace simt {
namespace {

using emulation::publish, emulation::published;

constexpr unsigned kWarp = 32;

int32_t byte_of(uint32_t word, unsigned shift, bool is_signed) {
  return is_signed ? static_cast<int8_t>(word >> shift) : static_cast<uint8_t>(word >> shift);
}

void multiply(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool is_signed, const char* place,
              int line) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const unsigned turn = publish(words, 6, place, line);
  const unsigned g = thread_x() % kWarp / 4, t = thread_x() % 4;
  for (unsigned i = 0; i < 4; i++) {
    const unsigned lower = i / 2, column = 2 * t + i % 2;
    uint32_t sum = static_cast<uint32_t>(acc[i]);
    for (unsigned from = 0; from < 4; from++) {
      const uint32_t *row_words = published(g * 4 + from, turn), *column_words = published(column * 4 + from, turn);
      for (unsigned upper = 0; upper < 2; upper++) {
        const uint32_t left = row_words[upper * 2 + lower], right = column_words[4 + upper];
        for (unsigned shift = 0; shift < 32; shift += 8)
          sum += static_cast<uint32_t>(byte_of(left, shift, is_signed) * byte_of(right, shift, true));
      }
    }
    acc[i] = static_cast<int32_t>(sum);
  }
}

}  // namespace

uint32_t shuffle_xor(uint32_t value, unsigned mask, int line) {
  const unsigned turn = publish(&value, 1, "shuffle_xor", line);
  return published(thread_x() % kWarp ^ mask, turn)[0];
}

uint32_t ballot(bool flag, int line) {
  const uint32_t value = flag;
  const unsigned turn = publish(&value, 1, "ballot", line);
  uint32_t bits = 0;
  for (unsigned lane = 0; lane < kWarp; lane++) bits |= published(lane, turn)[0] << lane;
  return bits;
}

void mma_m16n8k32(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  multiply(acc, a, b0, b1, false, "mma_m16n8k32", line);
}

void mma_m16n8k32_signed(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  multiply(acc, a, b0, b1, true, "mma_m16n8k32_signed", line);
}

}  // namespace simt
