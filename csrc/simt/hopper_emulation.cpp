// Clusters, barriers in shared memory, bulk copies and products of warpgroups, on the scheduler of emulation.cpp.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>

#include "simt/hopper.h"
#include "simt/scheduler.h"

namespace simt {
namespace emulation {
namespace {

constexpr uint32_t kFirstAddress = 1024;  // of a block's shared memory; what lies before it is the device's own
constexpr uint32_t kScrambled = 0x5a5a5a5au;

struct BulkCopy {
  void* to;
  const void* from;
  int bytes;
};

struct Phases {
  int count = 0, missing = 0;  // arrivals of each phase, and those that the running one still waits for
  int64_t bytes = 0;           // announced and not copied yet; negative where copies came before the announcement
  unsigned phase = 0;
  std::deque<BulkCopy> copies;
  std::vector<Lane*> waiting;
};

struct Named {
  int arrived = 0;
  std::vector<Lane*> waiting;
};

struct Product {
  int32_t* acc;
  const uint32_t* a;
  uint32_t a_then[4];
  uint64_t b;
  unsigned columns, group, number;
  bool add;
};

constexpr unsigned kRemembered = 64;  // products whose registers other lanes can still ask for

struct LaneProducts {
  std::deque<Product> open;
  unsigned group = 0, number = 0;
  uint32_t a[kRemembered][4] = {};
  bool may_begin = false;
};

struct Cluster {
  std::map<const void*, Phases> barriers;
  std::map<std::pair<unsigned, int>, Named> named;
  std::map<const Lane*, LaneProducts> products;
};
std::unique_ptr<Cluster> cluster;
unsigned blocks_of_cluster = 1;

Phases& phases_of(const Barrier* barrier) {
  const auto found = cluster->barriers.find(barrier);
  if (found == cluster->barriers.end()) fail("a barrier that was never initialised");
  return found->second;
}

void end_phase_if_done(Phases& p) {
  if (p.missing > 0 || p.bytes != 0) return;
  p.missing = p.count;
  p.phase++;
  wake(p.waiting);
}

void land(Phases& p) {
  while (!p.copies.empty()) {
    const BulkCopy copy = p.copies.front();
    p.copies.pop_front();
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    p.bytes -= copy.bytes;
  }
}

void arrive(Phases& p) {
  if (p.missing == 0) fail("more arrivals at a barrier than it counts");
  p.missing--;
  if (p.missing == 0 && !p.waiting.empty()) land(p);
  end_phase_if_done(p);
}

// Byte `input` of column `column` of operand B.
int8_t byte_of(uint64_t b, unsigned column, unsigned input) {
  const uint32_t start = static_cast<uint32_t>(b & 0x3fff) << 4;
  const uint32_t next_inputs = static_cast<uint32_t>(b >> 16 & 0x3fff) << 4;
  const uint32_t next_columns = static_cast<uint32_t>(b >> 32 & 0x3fff) << 4;
  if (b >> 62 != 0) fail("multiply: expected an operand without swizzling");
  const uint32_t at =
      start + column / 8 * next_columns + input / 16 * next_inputs + column % 8 * 16 + input % 16 - kFirstAddress;
  if (at >= shared_bytes()) fail("multiply: an operand lies outside of the shared memory");
  return static_cast<int8_t>(shared_of(running_block())[at]);
}

void finish(const Product& p) {
  if (std::memcmp(p.a, p.a_then, sizeof p.a_then) != 0) fail("multiply: registers of an operand changed too early");
  const unsigned t = thread_x() % 4;
  const uint32_t* quad[4];
  for (unsigned from = 0; from < 4; from++)
    quad[from] = cluster->products[lane_of_warp(thread_x() % 32 - t + from)].a[p.number % kRemembered];
  for (unsigned n = 0; n < p.columns / 8; n++) {
    for (unsigned i = 0; i < 4; i++) {
      uint32_t sum = p.add ? static_cast<uint32_t>(p.acc[4 * n + i]) ^ kScrambled : 0;
      for (unsigned k = 0; k < 32; k++) {
        const uint32_t left = quad[k % 16 / 4][k / 16 * 2 + i / 2] >> k % 4 * 8 & 0xff;
        sum += left * static_cast<uint32_t>(byte_of(p.b, 8 * n + 2 * t + i % 2, k));
      }
      p.acc[4 * n + i] = static_cast<int32_t>(sum ^ kScrambled);
    }
  }
}

}  // namespace

void* in_block(void* here, unsigned rank) {
  const auto offset = static_cast<size_t>(static_cast<unsigned char*>(here) - shared_of(running_block()));
  if (offset >= shared_bytes()) fail("an address outside of the block's shared memory");
  if (rank >= blocks_of_cluster) fail("a block outside of the cluster");
  return shared_of(running_block() / blocks_of_cluster * blocks_of_cluster + rank) + offset;
}

void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier, bool to_all) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("copy_bulk: an address is no multiple of 16");
  if (bytes <= 0 || bytes % 16 != 0) fail("copy_bulk: expected a multiple of 16 bytes");
  for (unsigned rank = 0; rank < blocks_of_cluster; rank++) {
    if (!to_all && rank != cluster_rank()) continue;
    auto* there = static_cast<unsigned char*>(in_block(to, rank));
    in_block(static_cast<unsigned char*>(to) + bytes - 1, rank);
    std::memset(there, 0xa5, static_cast<size_t>(bytes));
    Phases& p = phases_of(static_cast<Barrier*>(in_block(barrier, rank)));
    p.copies.push_back({there, from, bytes});
    if (p.missing > 0 || p.waiting.empty()) continue;
    land(p);
    end_phase_if_done(p);
  }
}

void begin_multiply(int32_t* acc, const uint32_t* a, uint64_t b, unsigned columns, bool add, int line) {
  LaneProducts& mine = cluster->products[running_lane()];
  if (!mine.may_begin) fail("multiply: expected multiply_begin after registers of operands were written");
  meet(Who::kWarpgroup, "multiply", line);
  Product p{acc, a, {}, b, columns, mine.group, mine.number++, add};
  bool running = false;
  for (const Product& other : mine.open) running |= other.acc == acc;
  if (!running)
    for (unsigned i = 0; i < columns / 2; i++)
      acc[i] = static_cast<int32_t>(static_cast<uint32_t>(acc[i]) ^ kScrambled);
  for (unsigned i = 0; i < 4; i++) mine.a[p.number % kRemembered][i] = p.a_then[i] = a[i];
  mine.open.push_back(p);
}

void wait_multiply(unsigned open, int line) {
  meet(Who::kWarp, "multiply_wait", line);
  LaneProducts& mine = cluster->products[running_lane()];
  while (!mine.open.empty() && mine.open.front().group + open < mine.group) {
    const Product p = mine.open.front();
    mine.open.pop_front();
    finish(p);
    bool running = false;
    for (const Product& other : mine.open) running |= other.acc == p.acc;
    if (!running)
      for (unsigned i = 0; i < p.columns / 2; i++)
        p.acc[i] = static_cast<int32_t>(static_cast<uint32_t>(p.acc[i]) ^ kScrambled);
  }
  mine.may_begin = false;
  meet(Who::kWarp, "multiply_wait", line);  // the products of a whole warp are done, not of a lane
}

void run_cluster(void (*lane)(const void*), const void* context, const Size& size, unsigned blocks, unsigned together) {
  if (blocks == 0 || size.blocks_x % blocks != 0)
    throw std::runtime_error("launch: expected whole clusters of " + std::to_string(blocks) + " blocks, got " +
                             std::to_string(size.blocks_x));
  cluster = std::make_unique<Cluster>();
  blocks_of_cluster = blocks;
  run(lane, context, size, together);
  for (const auto& [barrier, p] : cluster->barriers)
    if (!p.copies.empty()) {
      std::fprintf(stderr, "simt: the kernel ended with copies that nothing waited for\n");
      std::abort();
    }
  for (const auto& [l, products] : cluster->products)
    if (!products.open.empty()) {
      std::fprintf(stderr, "simt: the kernel ended with products that nothing waited for\n");
      std::abort();
    }
  cluster.reset();
}

}  // namespace emulation

using emulation::cluster;

unsigned cluster_rank() { return emulation::running_block() % emulation::blocks_of_cluster; }
void sync_cluster(int line) {
  using emulation::Who;
  emulation::meet(emulation::blocks_of_cluster == 1 ? Who::kBlock : Who::kAll, "sync_cluster", line);
}

void arrive_threads_of(int id, int n) {
  emulation::Named& named = cluster->named[{emulation::running_block(), id}];
  if (++named.arrived < n) return;
  named.arrived = 0;
  emulation::wake(named.waiting);
}

void sync_threads_of(int id, int n, int line) {
  emulation::Named& named = cluster->named[{emulation::running_block(), id}];
  if (named.arrived + 1 == n) return arrive_threads_of(id, n);
  named.arrived++;
  emulation::park(named.waiting, "sync_threads_of", line);
}

void barrier_init(Barrier* barrier, int count) {
  emulation::in_block(barrier, cluster_rank());
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0) emulation::fail("barrier_init: the address is no multiple of 8");
  emulation::Phases& p = cluster->barriers[barrier];
  p = {};
  p.count = p.missing = count;
}

void barriers_ready() {}

void barrier_arrive(Barrier* barrier, unsigned rank) {
  emulation::arrive(emulation::phases_of(static_cast<Barrier*>(emulation::in_block(barrier, rank))));
}

void barrier_expect(Barrier* barrier, int bytes) {
  emulation::Phases& p = emulation::phases_of(barrier);
  p.bytes += bytes;
  emulation::arrive(p);
}

void barrier_wait(Barrier* barrier, unsigned parity, int line) {
  emulation::Phases& p = emulation::phases_of(barrier);
  while (p.phase % 2 == (parity & 1)) {
    if (p.missing == 0 && !p.copies.empty()) {
      emulation::land(p);
      emulation::end_phase_if_done(p);
    } else {
      emulation::park(p.waiting, "barrier_wait", line);
    }
  }
}

uint64_t operand(const void* cells, int next_inputs, int next_columns) {
  const auto offset = static_cast<const unsigned char*>(cells) - emulation::shared_of(emulation::running_block());
  if (offset % 16 != 0 || next_inputs % 16 != 0 || next_columns % 16 != 0)
    emulation::fail("operand: expected multiples of 16 bytes");
  return operand_of(static_cast<uint32_t>(offset) + emulation::kFirstAddress, static_cast<uint32_t>(next_inputs),
                    static_cast<uint32_t>(next_columns));
}

void multiply_begin(int line) {
  emulation::meet(emulation::Who::kWarp, "multiply_begin", line);
  cluster->products[emulation::running_lane()].may_begin = true;
}

void multiply_commit(int line) {
  emulation::meet(emulation::Who::kWarp, "multiply_commit", line);
  cluster->products[emulation::running_lane()].group++;
}

namespace {

int chosen_or(const char* variable, int otherwise) {
  const char* chosen = std::getenv(variable);
  return chosen ? static_cast<int>(std::strtol(chosen, nullptr, 10)) : otherwise;
}

}  // namespace

int multiprocessors() { return chosen_or("SIMT_MULTIPROCESSORS", 8); }
int compute_capability() { return chosen_or("SIMT_COMPUTE_CAPABILITY", 90); }

}  // namespace simt
