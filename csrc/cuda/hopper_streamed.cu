// Updates of layers of any size: weights stream through shared memory while states stay in registers.
//
// A cluster of two blocks makes tiles of 256 chains and 64 units, one after the other. Each block has two warpgroups
// with 64 chains each, which multiply, and one thread that copies: half of each stage of weights, into both blocks, so
// that a weight is read once for 256 chains. Twelve stages of 16 KiB go round. A barrier in shared memory says of each
// that it is there, another one that all warps of both blocks are done with it.
//
// The ring is deep so that the two warpgroups of a block can be half of it apart: while one draws, which takes as long
// as the products of about six stages, the other one multiplies what the first has had before. The second one starts
// six stages late, as both would draw at the same time otherwise. Not the obvious way, tiles in turns: then each
// warpgroup would need weights of its own, and the L2 cache could not deliver them.
#include "cuda/hopper.h"
#include "cuda/hopper_product.h"
#include "cuda/product.h"

namespace bm::cuda::hopper {
namespace {

constexpr int kClusterOfTwo = 2, kWorkers = 2, kThreads = (kWorkers + 1) * kWarpgroup;
constexpr int kWorkerRegisters = 232, kProducerRegisters = 40;
constexpr int kRing = 12, kAhead = 6;
constexpr int kRingBytes = kRing * kStreamStageBytes, kSharedBytes = kRingBytes + (2 * kRing + 1) * 8;
constexpr int kChainsOfTile = kClusterOfTwo * kWorkers * kGroupChains;

struct Streamed {
  BinaryUpdate update;
  int32_t chain_tiles, n_tiles, n_clusters;
};

// --- kernels ---------------------------------------------------------------------------------------------------------

// A place in the ring, which producer and workers go round alike.
struct Place {
  int slot = 0;
  unsigned round = 0;
  SIMT_DEVICE_MEMBER void advance() {
    slot++;
    if (slot == kRing) slot = 0, round++;
  }
};

SIMT_DEVICE simt::Barrier* barriers() { return reinterpret_cast<simt::Barrier*>(simt::dynamic_shared() + kRingBytes); }
SIMT_DEVICE simt::Barrier* filled(int slot) { return barriers() + slot; }
SIMT_DEVICE simt::Barrier* freed(int slot) { return barriers() + kRing + slot; }
SIMT_DEVICE simt::Barrier* ahead() { return barriers() + 2 * kRing; }

SIMT_DEVICE int cluster_of_grid() { return static_cast<int>(simt::block_x()) / kClusterOfTwo; }

// One thread copies this block's half of every stage that its cluster needs.
SIMT_DEVICE void produce(const Streamed& p) {
  constexpr int kHalf = kStreamStageBytes / kClusterOfTwo;
  const int half = static_cast<int>(simt::cluster_rank()) * kHalf;
  Place place;
  for (int tile = cluster_of_grid(); tile < p.n_tiles; tile += p.n_clusters) {
    for (int input = 0; input < p.update.product.n_inputs; input++) {
      const BinaryInput& from = p.update.product.inputs[input];
      const int n_stages = static_cast<int>(stages(from.units));
      const unsigned char* weights = static_cast<const unsigned char*>(from.weights) +
                                     static_cast<int64_t>(tile / p.chain_tiles) * n_stages * kStreamStageBytes + half;
      for (int stage = 0; stage < n_stages; stage++) {
        if (place.round > 0) simt::barrier_wait(freed(place.slot), (place.round - 1) & 1);
        simt::barrier_expect(filled(place.slot), kStreamStageBytes);
        simt::copy_bulk_to_all(simt::dynamic_shared() + place.slot * kStreamStageBytes + half,
                               weights + static_cast<int64_t>(stage) * kStreamStageBytes, kHalf, filled(place.slot));
        place.advance();
      }
    }
  }
}

// This warp is done with a stage; both producers have to know.
SIMT_DEVICE void release(int slot) {
  if (lane() < kClusterOfTwo) simt::barrier_arrive(freed(slot), static_cast<unsigned>(lane()));
}

struct Words {
  simt::Words4 of[2];  // of a lane's two chains
};

SIMT_DEVICE Words load_words(const BinaryInput& input, int64_t chain, int32_t n_chains, int stage) {
  Words words{};
  const int64_t n = bit_words(input.units);
  if (chain < n_chains) words.of[0] = simt::load16(input.bits + chain * n + stage * 4);
  if (chain + 8 < n_chains) words.of[1] = simt::load16(input.bits + (chain + 8) * n + stage * 4);
  return words;
}

// The sums of one input, stage by stage as they come.
SIMT_DEVICE void multiply_input(const BinaryInput& input, int64_t chain, int32_t n_chains, Place& place, int& n_done,
                                Sums& high, Sums& low) {
  const int n_stages = static_cast<int>(stages(input.units));
  uint32_t a[2][4];
  Words next = load_words(input, chain, n_chains, 0);
  int before = 0;
  for (int stage = 0; stage < n_stages; stage++) {
    const Words words = next;
    if (stage + 1 < n_stages) next = load_words(input, chain, n_chains, stage + 1);
    simt::barrier_wait(filled(place.slot), place.round & 1);
    const unsigned char* weights = simt::dynamic_shared() + place.slot * kStreamStageBytes;
    SIMT_UNROLL
    for (int step = 0; step < kStepsOfStage; step++) {
      spread(a[step % 2], words.of[0].word[step], words.of[1].word[step]);
      const unsigned char* of_step = weights + step * 2 * kTileOctets * kOctetBytes;
      const bool add = stage > 0 || step > 0;
      simt::multiply_begin();
      simt::multiply<kTileUnits>(high, a[step % 2], simt::operand(of_step, kCellBytes, kOctetBytes), add);
      simt::multiply<kTileUnits>(low, a[step % 2],
                                 simt::operand(of_step + kTileOctets * kOctetBytes, kCellBytes, kOctetBytes), add);
      simt::multiply_commit();
      simt::multiply_wait<1>();
      if (step == 0 && stage > 0) release(before);  // the last products of the stage before are done
    }
    before = place.slot;
    place.advance();
    n_done++;
    if (n_done == kAhead && simt::thread_x() / kWarpgroup == 0 && lane() == 0)
      simt::barrier_arrive(ahead(), simt::cluster_rank());
  }
  simt::multiply_wait<0>();
  simt::settle(high);
  simt::settle(low);
  release(before);
}

SIMT_DEVICE void draw_tile(const BinaryUpdate& p, int first_octet, int64_t first_chain, uint32_t sweep,
                           const OctetFields& fields) {
  const int32_t n_chains = p.product.n_chains, n_units = p.product.units;
  const int64_t chain = first_chain + row_of_draws(), n_words = bit_words(n_units);
  const bool exists = chain < n_chains;
  const Drawing drawing{p.seed,
                        p.first_chain + static_cast<uint32_t>(chain),
                        sweep,
                        p.layer_and_purpose,
                        exists,
                        p.beta != nullptr,
                        p.beta && exists ? p.beta[chain] : 1.f,
                        p.base,
                        p.means ? p.means + chain * n_units : nullptr,
                        n_units};
  const int64_t first_word = chain * n_words + first_octet / 4;
  const uint32_t drawn = draw_octets(drawing, first_octet, fields, [&](int quad) {
    return p.clamp && exists ? Held{p.clamp[first_word + quad], p.states[first_word + quad]} : Held{0, 0};
  });
  if (p.states && exists) p.states[first_word + lane() % 4 / 2] = drawn;
}

SIMT_DEVICE void work(const Streamed& p) {
  const BinaryProduct& product = p.update.product;
  const int worker = static_cast<int>(simt::thread_x()) / kWarpgroup, t = lane() % 4;
  const int first_row = (static_cast<int>(simt::cluster_rank()) * kWorkers + worker) * kGroupChains;
  const uint32_t sweep = p.update.sweep + (p.update.sweeps_before ? *p.update.sweeps_before : 0);
  Place place;
  int n_done = 0;
  if (worker == 1) simt::barrier_wait(ahead(), 0);
  for (int tile = cluster_of_grid(); tile < p.n_tiles; tile += p.n_clusters) {
    const int64_t first_chain = static_cast<int64_t>(tile % p.chain_tiles) * kChainsOfTile + first_row;
    const int first_octet = tile / p.chain_tiles * kTileOctets;
    OctetFields fields;
    SIMT_UNROLL
    for (int i = 0; i < 4 * kMostOctets; i++) {
      const int unit = (first_octet + i / 4) * 8 + 2 * t + i % 2;
      fields[i] = unit < product.units ? product.biases[unit] : 0.f;
    }
    for (int input = 0; input < product.n_inputs; input++) {
      Sums high, low;
      multiply_input(product.inputs[input], first_chain + row_of_bits(), product.n_chains, place, n_done, high, low);
      add_input(fields, high, low, sum_scale(product.inputs[input]));
    }
    draw_tile(p.update, first_octet, first_chain, sweep, fields);
  }
  if (worker == 0 && n_done < kAhead && lane() == 0) simt::barrier_arrive(ahead(), simt::cluster_rank());
}

SIMT_KERNEL void SIMT_BOUNDS(kThreads, 1) streamed_kernel(SIMT_PARAMETER Streamed p) {
  if (simt::thread_x() == 0) {
    for (int slot = 0; slot < kRing; slot++) {
      simt::barrier_init(filled(slot), 1);
      simt::barrier_init(freed(slot), kClusterOfTwo * kWorkers * kWarpgroup / 32);
    }
    simt::barrier_init(ahead(), kWarpgroup / 32);
    simt::barriers_ready();
  }
  simt::sync_cluster();
  // registers go in whole warpgroups from the one that copies to those that multiply
  if (simt::thread_x() < kWorkers * kWarpgroup) {
    simt::take_registers<kWorkerRegisters>();
    work(p);
  } else {
    simt::give_registers<kProducerRegisters>();
    if (simt::thread_x() == kWorkers * kWarpgroup) produce(p);
  }
  simt::sync_warp();
  simt::sync_cluster();  // no block ends while the other one may copy into it
}

}  // namespace

// --- launchers -------------------------------------------------------------------------------------------------------

Kernel choose(const Task& task) {
  if (simt::compute_capability() != 90) return Kernel::kPortable;
  if (task.other > 0 && fits_cluster(task.units, task.other)) return Kernel::kResident;
  if (task.n_chains <= task.room) return Kernel::kPersistent;
  return task.n_chains >= kChainsOfTile && task.units >= kTileUnits ? Kernel::kStreamed : Kernel::kPortable;
}

void update_streamed(const BinaryUpdate& update, void* stream) {
  product_size(update.product);  // checks it
  const int64_t chain_tiles = (int64_t{update.product.n_chains} + kChainsOfTile - 1) / kChainsOfTile;
  const int64_t n_tiles = chain_tiles * unit_tiles(update.product.units);
  if (n_tiles > 0x7fffffff)
    throw std::invalid_argument("update_streamed: expected at most 2^31 - 1 tiles, got " + std::to_string(n_tiles));
  const int64_t at_a_time = simt::multiprocessors() / kClusterOfTwo;
  const int64_t n_clusters = n_tiles < at_a_time ? n_tiles : at_a_time;
  simt::launch_cluster(
      streamed_kernel,
      {static_cast<unsigned>(n_clusters * kClusterOfTwo), 1, kThreads, static_cast<size_t>(kSharedBytes)},
      kClusterOfTwo, stream,
      Streamed{update, static_cast<int32_t>(chain_tiles), static_cast<int32_t>(n_tiles),
               static_cast<int32_t>(n_clusters)});
}

}  // namespace bm::cuda::hopper
