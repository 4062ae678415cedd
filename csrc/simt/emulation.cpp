// The scheduler of the emulated lanes. This unit is never compiled with -fsanitize=thread: ThreadSanitizer must not
// take order from how lanes are switched. With SIMT_THREAD_SANITIZER it is told about fibers and barriers by hand. No
// loop in here may become a call of memcpy or memset, which ThreadSanitizer sees in any unit
// (-fno-tree-loop-distribute-patterns).
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "simt/scheduler.h"
#include "simt/simt.h"

#if defined(SIMT_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace emulation {

uint32_t (*load_word)(const void*) = nullptr;

constexpr unsigned kWarp = 32, kWarpgroup = 128, kMaxCopies = 256;
constexpr size_t kStackBytes = 64 * 1024, kMaxSharedBytes = 227 * 1024;  // the largest block of any GPU so far

struct Block;
struct Group;

struct Lane {
  unsigned thread = 0;
  Block* block = nullptr;
  Group *warp = nullptr, *warpgroup = nullptr;
  uint32_t published[2][6] = {};  // operands of collectives; two sets in turn, so that one meeting is enough
  unsigned turn = 0;
  Copy copies[kMaxCopies];                           // a ring
  unsigned first_copy = 0, end_copy = 0, group = 0;  // `group` is the one being filled
  const char* place = "the start of the kernel";     // where it met others last
  int line = 0;

  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* sanitizer_fiber = nullptr;
};

// Lanes that meet at a barrier or a collective.
struct Group {
  Lane** lanes = nullptr;
  unsigned n = 0, arrived = 0, phase = 0;
  char order[2] = {};  // addresses that carry order for ThreadSanitizer: two in turn, so that a lane that is early for
                       // the next barrier does not come before lanes that still leave this one
};

// Lanes of a block with their groups and shared memory. They outlive the launch's last block: ThreadSanitizer would
// take memory or fibers that are used again for the same lane.
struct Block {
  struct Free {
    void operator()(unsigned char* bytes) const { ::operator delete[](bytes, std::align_val_t{16}); }
  };
  explicit Block(const Size& size)
      : lanes(size.threads),
        pointers(size.threads),
        warps(size.threads / kWarp),
        warpgroups((size.threads + kWarpgroup - 1) / kWarpgroup) {
    shared.reset(static_cast<unsigned char*>(::operator new[](size.shared_bytes, std::align_val_t{16})));
    std::memset(shared.get(), 0xcd, size.shared_bytes);
    all.lanes = pointers.data();
    all.n = size.threads;
    for (unsigned i = 0; i < size.threads; i++) {
      pointers[i] = &lanes[i];
      lanes[i].thread = i;
      lanes[i].block = this;
      lanes[i].warp = &warps[i / kWarp];
      lanes[i].warp->lanes = &pointers[i / kWarp * kWarp];
      lanes[i].warp->n = kWarp;
      lanes[i].warpgroup = &warpgroups[i / kWarpgroup];
      lanes[i].warpgroup->lanes = &pointers[i / kWarpgroup * kWarpgroup];
      lanes[i].warpgroup->n = kWarpgroup;
    }
  }
  unsigned x = 0, y = 0, index = 0;  // index: among the blocks that run together
  std::vector<Lane> lanes;
  std::vector<Lane*> pointers;
  std::vector<Group> warps, warpgroups;
  Group all;
  std::unique_ptr<unsigned char[], Free> shared;
};

namespace {

enum class Order { kFair, kAhead, kRandom };

struct Device {
  Size size;
  std::vector<Block*> blocks;  // that run together
  std::vector<Lane*> lanes;    // of all of them
  Group all;
  void (*lane)(const void*) = nullptr;
  const void* context = nullptr;

  Lane* running = nullptr;  // null: the caller of `run`
  std::unique_ptr<Lane*[]> ready;
  unsigned n_ready = 0, n_alive = 0;
  Order order = Order::kFair;
  uint32_t random = 1;

  ucontext_t caller;
  void* caller_fiber = nullptr;
  const void* caller_stack = nullptr;
  size_t caller_stack_bytes = 0;
  char end = 0;  // carries the order from the ends of all lanes to the caller
};
Device* device = nullptr;

void release([[maybe_unused]] char* order) {
#if defined(SIMT_THREAD_SANITIZER)
  __tsan_release(order);
#endif
}

void acquire([[maybe_unused]] char* order) {
#if defined(SIMT_THREAD_SANITIZER)
  __tsan_acquire(order);
#endif
}

void switch_to(Lane* next, [[maybe_unused]] bool for_good) {
  Lane* from = device->running;
  device->running = next;
#if defined(SIMT_THREAD_SANITIZER)
  __tsan_switch_to_fiber(next ? next->sanitizer_fiber : device->caller_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* saved = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &saved, next ? next->stack.get() : device->caller_stack,
                                 next ? kStackBytes : device->caller_stack_bytes);
#endif
  swapcontext(from ? &from->context : &device->caller, next ? &next->context : &device->caller);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#endif
}

Lane* pick() {
  unsigned at = 0;
  if (device->order == Order::kAhead) at = device->n_ready - 1;
  if (device->order == Order::kRandom) {
    device->random = device->random * 1664525u + 1013904223u;
    at = static_cast<unsigned>(uint64_t{device->random} * device->n_ready >> 32);
  }
  Lane* next = device->ready[at];
  for (unsigned i = at + 1; i < device->n_ready; i++) device->ready[i - 1] = device->ready[i];
  device->n_ready--;
  return next;
}

void make_ready(Lane* lane) { device->ready[device->n_ready++] = lane; }

// Runs another lane; comes back when it is this one's turn again.
void yield(bool for_good) {
  if (device->n_ready == 0 && device->n_alive > 0) {
    for (const Block* block : device->blocks) {
      std::fprintf(stderr, "simt: no lane of block (%u, %u) can go on; they wait at\n", block->x, block->y);
      for (unsigned i = 0; i < device->size.threads; i += 16)
        std::fprintf(stderr, "  thread %u: %s, line %d\n", i, block->lanes[i].place, block->lanes[i].line);
    }
    std::abort();
  }
  Lane* next = device->n_ready == 0 ? nullptr : pick();
  if (next != device->running) switch_to(next, for_good);
}

void meet(Group& group, const char* place, int line, bool ordered) {
  Lane& self = *device->running;
  self.place = place;
  self.line = line;
  char* order = &group.order[group.phase % 2];
  if (ordered) release(order);
  if (++group.arrived == group.n) {
    for (unsigned i = 1; i < group.n; i++) {
      const Lane &a = *group.lanes[0], &b = *group.lanes[i];
      if (a.line == b.line && std::strcmp(a.place, b.place) == 0) continue;
      std::fprintf(stderr, "simt: threads %u and %u meet at different places: %s, line %d and %s, line %d\n", a.thread,
                   b.thread, a.place, a.line, b.place, b.line);
      std::abort();
    }
    group.arrived = 0;
    group.phase++;
    for (unsigned i = 0; i < group.n; i++) make_ready(group.lanes[i]);
  }
  yield(false);
  if (ordered) acquire(order);
}

void lane_main() {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
  if (!device->caller_stack) device->caller_stack = stack, device->caller_stack_bytes = bytes;
#endif
  device->lane(device->context);
  Lane& self = *device->running;
  if (self.first_copy != self.end_copy) fail("the kernel ended with copies that nothing waited for");
  meet(self.block->all, "the end of the kernel", 0, false);
  release(&device->end);
  device->n_alive--;
  yield(true);
}

void start(Lane& lane) {
  lane.stack.reset(new char[kStackBytes]);
  getcontext(&lane.context);
  lane.context.uc_stack.ss_sp = lane.stack.get();
  lane.context.uc_stack.ss_size = kStackBytes;
  lane.context.uc_link = nullptr;
  makecontext(&lane.context, lane_main, 0);
#if defined(SIMT_THREAD_SANITIZER)
  lane.sanitizer_fiber = __tsan_create_fiber(0);
#endif
  make_ready(&lane);
}

void choose_order(Device& d) {
  const char* order = std::getenv("SIMT_ORDER");
  if (!order || std::strcmp(order, "fair") == 0) {
    d.order = Order::kFair;
  } else if (std::strcmp(order, "ahead") == 0) {
    d.order = Order::kAhead;
  } else if (std::strncmp(order, "random:", 7) == 0) {
    d.order = Order::kRandom;
    d.random = static_cast<uint32_t>(std::strtoul(order + 7, nullptr, 10));
  } else {
    throw std::runtime_error(std::string("SIMT_ORDER: expected fair, ahead or random:<seed>, got ") + order);
  }
}

}  // namespace

void push_copy(const Copy& copy) {
  Lane& self = *device->running;
  if (self.end_copy - self.first_copy == kMaxCopies) fail("copy_async16: too many copies in flight");
  Copy& slot = self.copies[self.end_copy++ % kMaxCopies];
  slot = copy;
  slot.group = self.group;
  if (!load_word) return;
  for (int i = 0; i < (copy.bytes + 3) / 4; i++) slot.read[i] = load_word(static_cast<const uint32_t*>(copy.from) + i);
  slot.from = slot.read;
}

bool pop_copy(unsigned open, Copy& copy) {
  Lane& self = *device->running;
  if (self.first_copy == self.end_copy || self.copies[self.first_copy % kMaxCopies].group + open >= self.group)
    return false;
  copy = self.copies[self.first_copy++ % kMaxCopies];
  return true;
}

void fail(const char* what) {
  const Lane& self = *device->running;
  std::fprintf(stderr, "simt: thread %u of block (%u, %u): %s\n", self.thread, self.block->x, self.block->y, what);
  std::abort();
}

void run(void (*lane)(const void*), const void* context, const Size& size, unsigned together) {
  if (size.shared_bytes > kMaxSharedBytes)
    throw std::runtime_error("launch: expected at most 227 KiB of shared memory, got " +
                             std::to_string(size.shared_bytes) + " bytes");
  Device here{};
  here.size = size;
  here.lane = lane;
  here.context = context;
  here.ready.reset(new Lane*[size_t{size.threads} * together]);
  choose_order(here);
  device = &here;
#if defined(SIMT_THREAD_SANITIZER)
  here.caller_fiber = __tsan_get_current_fiber();
#endif
  std::vector<std::unique_ptr<Block>> blocks;
  const unsigned n_turns = size.blocks_x * size.blocks_y / together;
  for (unsigned i = 0; i < n_turns; i++) {
    const unsigned turn = here.order == Order::kAhead ? n_turns - 1 - i : i;
#if !defined(SIMT_THREAD_SANITIZER)
    blocks.clear();
#endif
    here.blocks.clear();
    here.lanes.clear();
    for (unsigned j = 0; j < together; j++) {
      blocks.push_back(std::make_unique<Block>(size));
      Block& block = *blocks.back();
      const unsigned index = turn * together + j;
      block.x = index % size.blocks_x;
      block.y = index / size.blocks_x;
      block.index = j;
      here.blocks.push_back(&block);
      for (Lane& l : block.lanes) {
        here.lanes.push_back(&l);
        start(l);
      }
    }
    here.n_alive = static_cast<unsigned>(here.lanes.size());
    here.all = {};
    here.all.lanes = here.lanes.data();
    here.all.n = here.n_alive;
    yield(false);
  }
  acquire(&here.end);
#if defined(SIMT_THREAD_SANITIZER)
  for (const auto& block : blocks)
    for (Lane& l : block->lanes) __tsan_destroy_fiber(l.sanitizer_fiber);
#endif
  device = nullptr;
}

void run(void (*lane)(const void*), const void* context, const Size& size) { run(lane, context, size, 1); }

Lane* running_lane() { return device->running; }
Lane* lane_of_warp(unsigned lane) { return device->running->warp->lanes[lane]; }
unsigned running_block() { return device->running->block->index; }
unsigned blocks_together() { return static_cast<unsigned>(device->blocks.size()); }
unsigned char* shared_of(unsigned block) { return device->blocks[block]->shared.get(); }
size_t shared_bytes() { return device->size.shared_bytes; }

void meet(Who who, const char* place, int line) {
  Lane& self = *device->running;
  Group* groups[] = {self.warp, self.warpgroup, &self.block->all, &device->all};
  meet(*groups[static_cast<int>(who)], place, line, true);
}

unsigned publish(const uint32_t* words, unsigned n, const char* place, int line) {
  Lane& self = *device->running;
  const unsigned turn = self.turn;
  self.turn ^= 1;
  for (unsigned i = 0; i < n; i++) self.published[turn][i] = words[i];
  meet(*self.warp, place, line, false);
  return turn;
}

const uint32_t* published(unsigned lane, unsigned turn) { return device->running->warp->lanes[lane]->published[turn]; }

void park(std::vector<Lane*>& waiting, const char* place, int line) {
  device->running->place = place;
  device->running->line = line;
  waiting.push_back(device->running);
  yield(false);
}

void wake(std::vector<Lane*>& waiting) {
  for (Lane* lane : waiting) make_ready(lane);
  waiting.clear();
}

}  // namespace emulation

using emulation::device;

unsigned block_x() { return device->running->block->x; }
unsigned block_y() { return device->running->block->y; }
unsigned thread_x() { return device->running->thread; }
unsigned char* dynamic_shared() { return device->running->block->shared.get(); }
void copy_commit() { device->running->group++; }

void sync_block(int line) { emulation::meet(emulation::Who::kBlock, "sync_block", line); }
void sync_warp(int line) { emulation::meet(emulation::Who::kWarp, "sync_warp", line); }

}  // namespace simt
