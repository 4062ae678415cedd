// Sweeps of two coupled layers whose weights stay where they are multiplied: both directions of the coupling are spread
// over the shared memory of a cluster of eight blocks, and only bits move. A launch makes any number of sweeps.
//
// A cluster takes 64 or 128 chains. Every block holds the states of all units for them, multiplies them with its own
// eighth of the weights and stores the bits that it draws into all eight blocks, where one barrier in shared memory for
// each group of 64 chains and layer says that they have come. No second barrier is needed before the same states are
// written again: whoever writes them has waited for the next layer, which its readers sent after they had read.
//
// With 128 chains the two warpgroups of a block have 64 each and take turns: one draws while the other one's products
// run. With 64 chains they share the units instead: less overlap, but half the time for few chains.
#include "cuda/hopper.h"
#include "cuda/hopper_product.h"

namespace bm::cuda::hopper {
namespace {

constexpr int kThreads = 2 * kWarpgroup, kBarrierBytes = 64;
constexpr int kOctetBiasBytes = 8 * sizeof(float);

struct Resident {
  ResidentSweeps sweeps;
  int32_t groups;  // of 64 chains for a cluster: 1 or 2
};

// Where things are in the shared memory of a block, in bytes.
struct Places {
  int32_t weights_up, states, states_up, group_bytes, biases, biases_up, barriers, end;
  // Of the weights that lead to a layer, and of its states. No array, which would have to be in memory to be indexed.
  SIMT_DEVICE_MEMBER int32_t weights_of(int layer) const { return layer == 0 ? 0 : weights_up; }
  SIMT_DEVICE_MEMBER int32_t states_of(int layer) const { return layer == 0 ? states : states_up; }
  SIMT_DEVICE_MEMBER int32_t biases_of(int layer) const { return layer == 0 ? biases : biases_up; }
};

BM_UNITS Places places_of(int32_t lower, int32_t upper, int32_t groups) {
  Places p{};
  p.weights_up = resident_bytes(upper, lower);
  p.states = p.weights_up + resident_bytes(lower, upper);
  p.states_up = p.states + steps(lower) * kGroupChains * 4;
  p.group_bytes = (steps(lower) + steps(upper)) * kGroupChains * 4;
  p.biases = p.states + groups * p.group_bytes;
  p.biases_up = p.biases + octets_of_block(lower) * kOctetBiasBytes;
  p.barriers = p.biases_up + octets_of_block(upper) * kOctetBiasBytes;
  p.end = p.barriers + kBarrierBytes;
  return p;
}

// --- kernels ---------------------------------------------------------------------------------------------------------

// What a warpgroup works on, the same for all of its phases.
struct Worker {
  unsigned char* shared;
  Places places;
  int group, share, shares;
  int64_t first_chain;  // of the group

  SIMT_DEVICE_MEMBER uint32_t* states(int layer) const {
    return reinterpret_cast<uint32_t*>(shared + places.states_of(layer) + group * places.group_bytes);
  }
  // Of the octets of this block. Waiting for states empties the cache, so they are kept here.
  SIMT_DEVICE_MEMBER float* biases(int layer) const {
    return reinterpret_cast<float*>(shared + places.biases_of(layer));
  }
  SIMT_DEVICE_MEMBER simt::Barrier* loaded() const {
    return reinterpret_cast<simt::Barrier*>(shared + places.barriers);
  }
  SIMT_DEVICE_MEMBER simt::Barrier* arrived(int at_group, int layer) const {
    return loaded() + 1 + at_group * 2 + layer;
  }
  SIMT_DEVICE_MEMBER int64_t chain() const { return first_chain + row_of_draws(); }
};

// One lane's word, or part of it, into the states of all blocks; lanes t and t ^ 2 have the same and send to half each.
template <class Part>
SIMT_DEVICE void send(uint32_t* word, int byte, Part value) {
  auto* to = reinterpret_cast<Part*>(reinterpret_cast<unsigned char*>(word) + byte);
  SIMT_UNROLL
  for (int i = 0; i < kClusterBlocks / 2; i++)
    simt::store_remote(to, static_cast<unsigned>(lane() / 2 % 2 * (kClusterBlocks / 2) + i), value);
}

// Draws octets `first` to `end` of the block's share of a layer from their sums.
SIMT_DEVICE void draw_share(const ResidentLayer& layer, const Drawing& drawing, const Worker& w, uint32_t* states,
                            const float* biases, float scale, int first, int end, const Sums& high, const Sums& low) {
  const int block = static_cast<int>(simt::cluster_rank()), t = lane() % 4, row = row_of_draws();
  const int whole = octets_of_block(layer.units) / 4 * 4, n_octets = octets(layer.units);
  uint32_t word = 0;
  SIMT_UNROLL
  for (int n = 0; n < kMostOctets; n++) {
    simt::keep_order();  // one octet after the other: together they would need too many registers
    const int octet = octet_of_layer(layer.units, block, first + n);
    const bool exists = first + n < end && octet < n_octets;
    float fields[4];
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
      const float bias = exists ? biases[8 * (first + n) + 2 * t + i % 2] : 0.f;
      fields[i] = units::fma(static_cast<float>(joined(high[4 * n + i], low[4 * n + i])), scale, bias);
    }
    exchange(fields);
    const int shift = t / 2 * 4;
    if (exists) {
      uint32_t held = 0, old = 0;
      if (layer.clamp && drawing.chain_exists) {
        held = layer.clamp[w.chain() * bit_words(layer.units) + octet / 4] >> octet % 4 * 8 >> shift & 15;
        old = reinterpret_cast<const uint8_t*>(states + octet / 4 * kGroupChains + row)[octet % 4] >> shift & 15u;
      }
      word |= draw(drawing, 8 * octet + t / 2 * 4, fields, held, old) << n % 4 * 8 << shift;
    }
    if (n % 4 != 3) continue;
    // the word is complete: its lanes have read what it held, and put their halves of its bytes together
    word |= simt::shuffle_xor(word, 2);
    simt::sync_warp();
    const int first_of_word = first + n / 4 * 4;
    if (first_of_word < whole) {
      const int at = octet_of_layer(layer.units, block, first_of_word) / 4;
      if (first_of_word < end && at < steps(layer.units)) send(states + at * kGroupChains + row, 0, word);
    } else {
      SIMT_UNROLL
      for (int i = 0; i <= n % 4; i++) {
        const int single = octet_of_layer(layer.units, block, first_of_word + i);
        if (first_of_word + i < end && single < n_octets)
          send(states + single / 4 * kGroupChains + row, single % 4, static_cast<uint8_t>(word >> i * 8));
      }
    }
    word = 0;
  }
}

// The two warpgroups multiply in turns where each has chains of its own.
SIMT_DEVICE void begin_turn(const Worker& w) {
  if (w.shares == 1) simt::sync_threads_of(1 + w.group, kThreads);
}
SIMT_DEVICE void end_turn(const Worker& w, bool last) {
  if (w.shares == 1 && !(last && w.group == 1)) simt::arrive_threads_of(2 - w.group, kThreads);
}

SIMT_DEVICE void update_layer(const Resident& p, int index, uint32_t sweep, bool last_sweep, const Worker& w,
                              bool last) {
  const ResidentSweeps& s = p.sweeps;
  const ResidentLayer& layer = s.layers[index];
  const int n_steps = steps(s.layers[1 - index].units);
  const Drawing drawing = drawing_of(s, layer, w.chain(), sweep, last_sweep);
  const float scale = static_cast<float>(layer.scale * static_cast<double>(*s.grid));
  // whole words for each share, and nearly equal parts of them that fit the registers
  const int of_block = octets_of_block(layer.units);
  const int of_share = w.shares == 1 ? of_block : (of_block + 7) / 8 * 4;
  const int end_of_share = w.share == 0 ? (of_share < of_block ? of_share : of_block) : of_block;
  const int n_parts = (of_share + kMostOctets - 1) / kMostOctets;
  const int of_part = ((of_share + n_parts - 1) / n_parts + 3) / 4 * 4;
  for (int first = w.share * of_share; first < end_of_share; first += of_part) {
    const int end = first + of_part < end_of_share ? first + of_part : end_of_share;
    Sums high, low;
    const uint32_t* inputs = w.states(1 - index) + row_of_bits();
    const unsigned char* weights = w.shared + w.places.weights_of(index) + first * kOctetBytes;
    begin_turn(w);
    multiply_octets(
        end - first,
        [&](uint32_t& word, uint32_t& word8, int step) {
          word = simt::load4(inputs + step * kGroupChains);
          word8 = simt::load4(inputs + step * kGroupChains + 8);
        },
        weights, n_steps, of_block, high, low);
    end_turn(w, last && end == end_of_share);
    draw_share(layer, drawing, w, w.states(index), w.biases(index), scale, first, end, high, low);
  }
  // this warp has read its inputs and sent what it has drawn
  simt::sync_warp();
  if (lane() < kClusterBlocks)
    simt::barrier_arrive_after_stores(w.arrived(w.group, index), static_cast<unsigned>(lane()));
}

SIMT_KERNEL void SIMT_BOUNDS(kThreads, 1) resident_kernel(SIMT_PARAMETER Resident p) {
  const ResidentSweeps& s = p.sweeps;
  const int warpgroup = static_cast<int>(simt::thread_x()) / kWarpgroup;
  const int block = static_cast<int>(simt::cluster_rank());
  const Places places = places_of(s.layers[0].units, s.layers[1].units, p.groups);
  const int group = p.groups == 2 ? warpgroup : 0, shares = 3 - p.groups;
  const int64_t cluster = simt::block_x() / kClusterBlocks;
  const Worker w{simt::dynamic_shared(),        places, group,
                 p.groups == 2 ? 0 : warpgroup, shares, (cluster * p.groups + group) * kGroupChains};

  if (simt::thread_x() == 0) {
    simt::barrier_init(w.loaded(), 1);
    for (int g = 0; g < p.groups; g++)
      for (int layer = 0; layer < 2; layer++)
        simt::barrier_init(w.arrived(g, layer), kClusterBlocks * shares * (kWarpgroup / 32));
    simt::barriers_ready();
    simt::barrier_expect(w.loaded(), places.states);
    for (int layer = 0; layer < 2; layer++) {
      const int bytes = resident_bytes(s.layers[1 - layer].units, s.layers[layer].units);
      simt::copy_bulk(w.shared + places.weights_of(layer),
                      static_cast<const unsigned char*>(s.layers[layer].weights) + int64_t{block} * bytes, bytes,
                      w.loaded());
    }
  }
  const int thread = static_cast<int>(simt::thread_x()) % (kWarpgroup * shares);
  for (int layer = 0; layer < 2; layer++) {
    const int32_t units = s.layers[layer].units;
    for (int i = thread; i < steps(units) * kGroupChains; i += kWarpgroup * shares) {
      const int64_t chain = w.first_chain + i % kGroupChains;
      w.states(layer)[i] = chain < s.n_chains ? s.layers[layer].bits[chain * bit_words(units) + i / kGroupChains] : 0;
    }
    for (int i = static_cast<int>(simt::thread_x()); i < 8 * octets_of_block(units); i += kThreads) {
      const int unit = 8 * octet_of_layer(units, block, i / 8) + i % 8;
      w.biases(layer)[i] = unit < units ? s.layers[layer].biases[unit] : 0.f;
    }
  }
  const uint32_t first_sweep = s.first_sweep + (s.sweeps_before ? *s.sweeps_before : 0);
  simt::sync_cluster();  // all blocks have their barriers and states before one sends new ones
  simt::barrier_wait(w.loaded(), 0);
  if (w.shares == 1 && w.group == 1) simt::arrive_threads_of(1, kThreads);  // the first turn is that of group 0

  for (uint32_t sweep = 0; sweep < s.n_sweeps; sweep++) {
    const bool last = sweep + 1 == s.n_sweeps;
    for (int half = 0; half < 2; half++) {
      const int layer = half == 0 ? s.first : 1 - s.first;
      update_layer(p, layer, first_sweep + sweep, last, w, last && half == 1);
      simt::barrier_wait_for_stores(w.arrived(w.group, layer), sweep & 1);
    }
  }

  for (int layer = 0; layer < 2; layer++) {  // each block stores every eighth word
    const int32_t units = s.layers[layer].units;
    const int n = (steps(units) - block + kClusterBlocks - 1) / kClusterBlocks * kGroupChains;
    for (int i = thread; i < n; i += kWarpgroup * shares) {
      const int64_t chain = w.first_chain + i % kGroupChains;
      const int word = i / kGroupChains * kClusterBlocks + block;
      if (chain < s.n_chains)
        s.layers[layer].bits[chain * bit_words(units) + word] = w.states(layer)[word * kGroupChains + i % kGroupChains];
    }
  }
  simt::sync_cluster();  // no block ends while others may store into it
}

}  // namespace

// --- launchers -------------------------------------------------------------------------------------------------------

bool fits_cluster(int32_t lower, int32_t upper) {
  // sizes first, as sums of bytes are 32-bit
  return lower <= 65536 && upper <= 65536 && int64_t{lower} * upper <= int64_t{1} << 20 &&
         places_of(lower, upper, 1).end <= kMaxSharedBytes;
}

void sweep_resident(const ResidentSweeps& sweeps, void* stream) {
  const int32_t lower = sweeps.layers[0].units, upper = sweeps.layers[1].units;
  if (!fits_cluster(lower, upper))
    throw std::invalid_argument("sweep_resident: expected layers whose weights fit into a cluster, got " +
                                std::to_string(lower) + " and " + std::to_string(upper) + " units");
  // two groups of chains for each cluster, once all clusters of the device have one
  const int64_t at_a_time = int64_t{simt::multiprocessors()} / kClusterBlocks * kGroupChains;
  const bool two = sweeps.n_chains > at_a_time && places_of(lower, upper, 2).end <= kMaxSharedBytes;
  const int32_t groups = two ? 2 : 1;
  const int64_t clusters = (int64_t{sweeps.n_chains} + groups * kGroupChains - 1) / (groups * kGroupChains);
  simt::launch_cluster(resident_kernel,
                       {static_cast<unsigned>(clusters * kClusterBlocks), 1, kThreads,
                        static_cast<size_t>(places_of(lower, upper, groups).end)},
                       kClusterBlocks, stream, Resident{sweeps, groups});
}

}  // namespace bm::cuda::hopper
