// Blocks that run at the same time, with memory that is as late as it may be, on the scheduler of emulation.cpp.
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "simt/cooperative.h"
#include "simt/scheduler.h"

namespace simt {
namespace emulation {
namespace {

struct Byte {
  uint8_t* to;
  uint8_t value;
};

// What lies between a block and memory.
struct Between {
  std::vector<Byte> stored;                          // and not published yet
  std::unordered_map<const void*, uint32_t> loaded;  // since the block refreshed
};
std::vector<Between> between;  // of all blocks of the launch
std::vector<Lane*> paused;

uint32_t load(const void* word) {
  const auto* at = static_cast<const unsigned char*>(word);
  const unsigned char* shared = shared_of(running_block());
  if (at >= shared && at < shared + shared_bytes()) return *static_cast<const Word32*>(word);
  const auto [found, is_new] = between[running_block()].loaded.try_emplace(word);
  if (is_new) found->second = *static_cast<const Word32*>(word);
  return found->second;
}

Between& mine() {
  if (!load_word) fail("expected a launch whose blocks run at the same time");
  return between[running_block()];
}

void store(Between& block) {
  for (const Byte& byte : block.stored) *byte.to = byte.value;
  block.stored.clear();
}

}  // namespace

int room_together() {
  const char* chosen = std::getenv("SIMT_COOPERATIVE");
  return chosen && std::strcmp(chosen, "0") == 0 ? 0 : multiprocessors();
}

void run_together(void (*lane)(const void*), const void* context, const Size& size) {
  const unsigned n = size.blocks_x * size.blocks_y, room = static_cast<unsigned>(room_together());
  if (n > room)
    throw std::runtime_error("launch: expected at most " + std::to_string(room) +
                             " blocks that run at the same time, got " + std::to_string(n));
  between.assign(n, {});
  load_word = load;
  run_cluster(lane, context, size, 1, n);
  load_word = nullptr;
  for (Between& block : between) store(block);
}

}  // namespace emulation

void store1(uint8_t* to, uint8_t value) { emulation::mine().stored.push_back({to, value}); }
void publish() { emulation::store(emulation::mine()); }
void refresh() { emulation::mine().loaded.clear(); }

void count(uint32_t* counter) {
  ++*counter;
  emulation::wake(emulation::paused);
}

uint32_t load_now(const uint32_t* counter) { return *counter; }
void pause(int line) { emulation::park(emulation::paused, "pause", line); }

}  // namespace simt
