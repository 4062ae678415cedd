// One GPU emulated on the host, for tests: the back end of simt.h without nvcc.
//
// Blocks run one after another; the lanes of a block are fibers of one thread, so every run with the same order of
// lanes is the same. It is stricter than a device wherever a device may differ from run to run:
//   - Only barriers order memory, and ThreadSanitizer is told exactly that. All that happens to order lanes here
//     (switching fibers, collectives, one block after the other) is hidden from it, so what the barriers do not order
//     is reported as a race. Each block has its own fibers, stacks and shared memory, for the same reason.
//   - An asynchronous copy spoils its target when it is issued and lands when it is waited for: the earliest and the
//     latest moment at which a device may write.
//   - Barriers and collectives know the line they were called from. Lanes of a group that meet at different places, or
//     wait for lanes that will not come, stop the program with a list of who waits where.
//   - SIMT_ORDER in the environment chooses which lane runs next, and SIMT_ORDER=ahead also reverses the blocks: `fair`
//     (default; lanes in step), `ahead` (the one that came last goes on as far as it can), `random:<seed>`.
// It does not model registers, banks, caches, or blocks that run at the same time.
#pragma once

#include <string.h>

#define SIMT_KERNEL static
#define SIMT_DEVICE static inline
#define SIMT_DEVICE_MEMBER
#define SIMT_BOUNDS(threads, blocks)
#define SIMT_PARAMETER const
#define SIMT_UNROLL

namespace simt {

namespace emulation {

// Aligned accesses that may alias: ThreadSanitizer does not see a memset of constant size.
using Word32 __attribute__((may_alias)) = uint32_t;
using Word64 __attribute__((may_alias)) = uint64_t;

struct Copy {
  void* to;
  const void* from;
  int bytes;
  unsigned group;
  uint32_t read[4];  // takes the place of `from` where words are loaded by load_word
};

// How words of memory are loaded where blocks that run at the same time see each other's stores late; null: as they
// are.
extern uint32_t (*load_word)(const void* word);

void push_copy(const Copy& copy);
bool pop_copy(unsigned open, Copy& copy);  // the oldest one that must have landed when at most `open` groups are open
[[noreturn]] void fail(const char* what);

void run(void (*lane)(const void* context), const void* context, const Size& size);

}  // namespace emulation

unsigned block_x();
unsigned block_y();
unsigned thread_x();
unsigned char* dynamic_shared();
void sync_block(int line = __builtin_LINE());
void sync_warp(int line = __builtin_LINE());
uint32_t shuffle_xor(uint32_t value, unsigned mask, int line = __builtin_LINE());
uint32_t ballot(bool flag, int line = __builtin_LINE());
void mma_m16n8k32(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE());
void mma_m16n8k32_signed(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         int line = __builtin_LINE());
void copy_commit();

SIMT_DEVICE void atomic_max(uint32_t* at, uint32_t value) {
  uint32_t old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

SIMT_DEVICE void copy_async16(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulation::fail("copy_async16: an address is no multiple of 16");
  if (bytes < 0 || bytes > 16) emulation::fail("copy_async16: expected 0 to 16 bytes");
  auto* words = static_cast<emulation::Word64*>(to);
  words[0] = words[1] = 0xa5a5a5a5a5a5a5a5u;
  emulation::push_copy({to, from, bytes, 0, {}});
}

template <int kOpen>
SIMT_DEVICE void copy_wait() {
  emulation::Copy copy;
  while (emulation::pop_copy(kOpen, copy)) {
    uint64_t bytes[2] = {};
    for (int i = 0; i < copy.bytes; i++)
      bytes[i / 8] |= uint64_t{static_cast<const unsigned char*>(copy.from)[i]} << i % 8 * 8;
    auto* words = static_cast<emulation::Word64*>(copy.to);
    words[0] = bytes[0];
    words[1] = bytes[1];
  }
}

SIMT_DEVICE uint32_t load4(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 4 != 0) emulation::fail("load4: the address is no multiple of 4");
  return emulation::load_word ? emulation::load_word(from) : *static_cast<const emulation::Word32*>(from);
}

SIMT_DEVICE Words4 load16(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) emulation::fail("load16: the address is no multiple of 16");
  if (emulation::load_word) {
    const auto* words = static_cast<const uint32_t*>(from);
    return {{emulation::load_word(words), emulation::load_word(words + 1), emulation::load_word(words + 2),
             emulation::load_word(words + 3)}};
  }
  const auto* words = static_cast<const emulation::Word64*>(from);
  return {{static_cast<uint32_t>(words[0]), static_cast<uint32_t>(words[0] >> 32), static_cast<uint32_t>(words[1]),
           static_cast<uint32_t>(words[1] >> 32)}};
}

template <class Arguments>
void launch(void (*kernel)(Arguments), const Size& size, void* /* stream */, const Arguments& arguments) {
  check_size(size);
  struct Call {
    void (*kernel)(Arguments);
    const Arguments& arguments;
  } call{kernel, arguments};
  emulation::run(
      [](const void* context) {
        const Call& c = *static_cast<const Call*>(context);
        c.kernel(c.arguments);
      },
      &call, size);
}

}  // namespace simt
