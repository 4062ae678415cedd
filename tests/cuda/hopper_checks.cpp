#include "hopper_checks.h"

#include <cstdio>

#include "arrays.h"
#include "simt/cooperative.h"
#include "units.h"

namespace {

// --- products --------------------------------------------------------------------------------------------------------

struct Products {
  const uint32_t* a;  // [64][32] bytes
  const uint32_t* b;  // B transposed [64][32] bytes
  int32_t* c;         // [64][64]
};

constexpr int kColumns = 64, kCellsBytes = kColumns * 32;

SIMT_KERNEL void SIMT_BOUNDS(128, 1) products_kernel(SIMT_PARAMETER Products p) {
  const unsigned thread = simt::thread_x(), row = thread / 32 * 16 + thread % 32 / 4, t = thread % 4;
  unsigned char* shared = simt::dynamic_shared();
  auto* barrier = reinterpret_cast<simt::Barrier*>(shared + kCellsBytes);
  if (thread == 0) {
    simt::barrier_init(barrier, 1);
    simt::barriers_ready();
  }
  simt::sync_cluster();
  if (thread == 0) {  // a cell of 8 columns and 16 inputs at a time, as rows of 16 bytes
    simt::barrier_expect(barrier, kCellsBytes);
    for (int column = 0; column < kColumns; column++)
      for (int half = 0; half < 2; half++)
        simt::copy_bulk(shared + column / 8 * 256 + half * 128 + column % 8 * 16, p.b + column * 8 + half * 4, 16,
                        barrier);
  }
  simt::barrier_wait(barrier, 0);
  const uint32_t a[4] = {p.a[row * 8 + t], p.a[(row + 8) * 8 + t], p.a[row * 8 + 4 + t], p.a[(row + 8) * 8 + 4 + t]};
  int32_t c[kColumns / 2] = {}, narrow[3][kColumns / 2] = {};
  const uint64_t b = simt::operand(shared, 128, 256);
  simt::multiply_begin();
  simt::multiply<kColumns>(c, a, b, false);
  simt::multiply<kColumns>(c, a, b, true);
  simt::multiply<16>(narrow[0], a, b, false);
  simt::multiply<32>(narrow[1], a, b, false);
  simt::multiply<48>(narrow[2], a, b, false);
  simt::multiply_commit();
  simt::multiply_wait<0>();
  simt::settle(c);
  for (int i = 0; i < 3; i++) {
    simt::settle(narrow[i]);
    for (int j = 0; j < kColumns / 2; j++) c[j] += narrow[i][j];
  }
  for (unsigned i = 0; i < kColumns / 2; i++) p.c[(row + i / 2 % 2 * 8) * kColumns + i / 4 * 8 + 2 * t + i % 2] = c[i];
}

// --- blocks that run at the same time --------------------------------------------------------------------------------

constexpr int kBlocks = 7, kThreads = 64, kRounds = 5;

struct Together {
  uint8_t* rows;  // [2][kBlocks][kThreads], for rounds in turn
  uint8_t* out;   // [kBlocks][kThreads]
  uint32_t* counter;
};

BM_UNITS uint8_t next_byte(uint8_t mine, uint8_t other) { return static_cast<uint8_t>(mine * 5 + other + 1); }

// In each round every block stores a row for its neighbour and reads that of the other one.
SIMT_KERNEL void together_kernel(SIMT_PARAMETER Together p) {
  const unsigned block = simt::block_x(), thread = simt::thread_x();
  auto byte = static_cast<uint8_t>(block * 31 + thread);
  for (uint32_t round = 0; round < kRounds; round++) {
    uint8_t* rows = p.rows + round % 2 * kBlocks * kThreads;
    simt::store1(rows + block * kThreads + thread, byte);
    simt::sync_block();  // the row is whole
    if (thread == 0) {
      simt::publish();
      simt::count(p.counter);
      while (simt::load_now(p.counter) < (round + 1) * kBlocks) simt::pause();
      simt::refresh();
    }
    simt::sync_block();  // all rows are
    const uint8_t* from = rows + (block + 1) % kBlocks * kThreads + thread / 16 * 16;
    unsigned char* to = simt::dynamic_shared() + 16 * thread;
    simt::copy_async16(to, from, 16);
    simt::copy_commit();
    simt::copy_wait<0>();
    byte = next_byte(byte, to[thread % 16]);
  }
  p.out[block * kThreads + thread] = byte;
}

}  // namespace

int products() {
  std::vector<uint32_t> a(64 * 8), b(kColumns * 8);
  uint32_t word = 1;
  for (auto* operand : {&a, &b})
    for (uint32_t& value : *operand) value = word = word * 1664525u + 1013904223u;
  Buffer<uint32_t> a_there(a), b_there(b);
  Buffer<int32_t> c_there(64 * kColumns);
  simt::launch_cluster(products_kernel, {1, 1, 128, kCellsBytes + 16}, 1, nullptr,
                       Products{a_there.data(), b_there.data(), c_there.data()});
  const std::vector<int32_t> c = c_there.read();
  int differences = 0;
  for (int i = 0; i < 64; i++)
    for (int j = 0; j < kColumns; j++) {
      int32_t sum = 0;
      for (int k = 0; k < 32; k++)
        sum += static_cast<uint8_t>(a[i * 8 + k / 4] >> k % 4 * 8) * static_cast<int8_t>(b[j * 8 + k / 4] >> k % 4 * 8);
      differences += (5 - j / 16) * sum != c[i * kColumns + j];  // a column of all products, or of fewer
    }
  std::printf("products: %d differences\n", differences);
  return differences != 0;
}

int together() {
  Buffer<uint8_t> rows(2 * kBlocks * kThreads), out(kBlocks * kThreads);
  Buffer<uint32_t> counter(1);
  const int room = simt::blocks_together(together_kernel, kThreads, 16 * kThreads);
  if (room < kBlocks) throw std::runtime_error("room for " + std::to_string(room) + " blocks at the same time");
  simt::launch_together(together_kernel, {kBlocks, 1, kThreads, 16 * kThreads}, nullptr,
                        Together{rows.data(), out.data(), counter.data()});
  std::vector<uint8_t> now(kBlocks * kThreads);
  for (size_t i = 0; i < now.size(); i++) now[i] = static_cast<uint8_t>(i / kThreads * 31 + i % kThreads);
  for (int round = 0; round < kRounds; round++) {
    const std::vector<uint8_t> before = now;
    for (size_t i = 0; i < now.size(); i++) now[i] = next_byte(before[i], before[(i + kThreads) % now.size()]);
  }
  const std::vector<uint8_t> got = out.read();
  int differences = 0;
  for (size_t i = 0; i < now.size(); i++) differences += got[i] != now[i];
  std::printf("together: %d differences\n", differences);
  return differences != 0;
}
