// Sweeps of a program whose weights fit into the shared memory of a device, though not into that of one cluster: blocks
// keep them for any number of sweeps, and only bits move, through the L2 cache.
//
// A team of blocks holds all weights once: every block has some octets of each layer that is updated, and all weights
// that lead to them. A small program leaves room for several teams, which have chains of their own and never wait for
// each other. A team takes its chains in groups of 64. Where it has one group, both warpgroups of a block share the
// units of it; where it has more, they take groups in turns, and one waits or draws while the other one multiplies.
//
// A phase is a block of the program in a sweep. For each group a word in memory counts how many blocks have finished
// how many phases with it: a phase begins once all blocks of the team have finished the phase before, which means that
// its inputs are there, and also that nobody reads what it overwrites. That never waits for ever, as all blocks are
// there at the same time and take groups in the same order.
#include "cuda/hopper.h"
#include "cuda/hopper_product.h"
#include "cuda/product.h"
#include "simt/cooperative.h"

namespace bm::cuda::hopper {
namespace {

constexpr int kThreads = 2 * kWarpgroup;
constexpr int kStageStateBytes = kGroupChains * kStageInputs / 8;  // of a group
constexpr int kMostGroups = 8;                                     // of a team, see persistent_room
constexpr int kArrivalWords = 32;                                  // a line of the cache for each group

// Octets of a layer in each block of a team: a run of them, shorter or none in the last blocks.
BM_UNITS int32_t octets_of_team_block(int32_t units, int32_t blocks) { return (octets(units) + blocks - 1) / blocks; }

// Where things are in the shared memory of a block, in bytes.
struct Places {
  int32_t weights[kMostSources];  // of each input: [steps][high, low limbs][octets_of_team_block][kOctetBytes]
  int32_t states[kMostSources];   // of each input, after `group_states`: [stages][64 chains][16 bytes]
  int32_t biases[kMostUpdates];
  int32_t group_states[2];  // of each warpgroup
  int32_t loaded;           // the barrier
};

struct Persistent {
  PersistentSweeps sweeps;
  Places places;
  int32_t blocks, teams, groups;  // blocks of a team; groups of all teams
};
static_assert(sizeof(Persistent) <= 4096, "the parameters of a kernel that every driver takes");

// --- kernels ---------------------------------------------------------------------------------------------------------

// The threads of a block that work on the same groups, a warpgroup or both.
struct Crew {
  int number, threads;
  int share, shares;  // of the units
  const unsigned char* states;

  SIMT_DEVICE_MEMBER void meet() const { simt::sync_threads_of(1 + number, threads); }
  SIMT_DEVICE_MEMBER bool is_first_thread() const {
    return simt::thread_x() == static_cast<unsigned>(number * kWarpgroup);
  }
};

SIMT_DEVICE int rank_in_team(const Persistent& p) { return static_cast<int>(simt::block_x()) % p.blocks; }

// The run of a layer's octets that this block has.
struct Run {
  int first, n, of_block;  // of_block: n, but in the last blocks
};

SIMT_DEVICE Run run_of(const Persistent& p, int32_t units) {
  const int of_block = octets_of_team_block(units, p.blocks), first = rank_in_team(p) * of_block;
  const int left = octets(units) - first;
  return {first, left < 0 ? 0 : left < of_block ? left : of_block, of_block};
}

// Copies this block's weights, tile by tile as they lie in memory.
SIMT_DEVICE void load_weights(const Persistent& p, simt::Barrier* loaded) {
  for (int update = 0; update < p.sweeps.n_updates; update++) {
    const PersistentUpdate& layer = p.sweeps.updates[update];
    const Run run = run_of(p, layer.units);
    for (int input = layer.first_input; input < layer.end_input; input++) {
      const BinaryInput& from = p.sweeps.inputs[input];
      const auto* weights = static_cast<const unsigned char*>(from.weights);
      const int64_t limbs_of_tile = stages(from.units) * kStepsOfStage * 2;
      unsigned char* to = simt::dynamic_shared() + p.places.weights[input];
      for (int limb = static_cast<int>(simt::thread_x()); limb < 2 * steps(from.units); limb += kThreads) {
        for (int octet = 0; octet < run.n;) {
          const int tile = (run.first + octet) / kTileOctets, first = (run.first + octet) % kTileOctets;
          const int n = kTileOctets - first < run.n - octet ? kTileOctets - first : run.n - octet;
          simt::copy_bulk(to + (limb * run.of_block + octet) * kOctetBytes,
                          weights + ((tile * limbs_of_tile + limb) * kTileOctets + first) * kOctetBytes,
                          n * kOctetBytes, loaded);
          octet += n;
        }
      }
    }
  }
}

SIMT_DEVICE int weight_bytes_of_block(const Persistent& p) {
  int bytes = 0;
  for (int update = 0; update < p.sweeps.n_updates; update++) {
    const PersistentUpdate& layer = p.sweeps.updates[update];
    const int n = run_of(p, layer.units).n;
    for (int input = layer.first_input; input < layer.end_input; input++)
      bytes += 2 * steps(p.sweeps.inputs[input].units) * n * kOctetBytes;
  }
  return bytes;
}

SIMT_DEVICE float* biases_of(const Persistent& p, int update) {
  return reinterpret_cast<float*>(simt::dynamic_shared() + p.places.biases[update]);
}

// Waiting for other blocks empties the cache, so biases are kept in shared memory.
SIMT_DEVICE void load_biases(const Persistent& p) {
  for (int update = 0; update < p.sweeps.n_updates; update++) {
    const PersistentUpdate& layer = p.sweeps.updates[update];
    const Run run = run_of(p, layer.units);
    for (int i = static_cast<int>(simt::thread_x()); i < 8 * run.n; i += kThreads) {
      const int unit = 8 * run.first + i;
      biases_of(p, update)[i] = unit < layer.units ? layer.biases[unit] : 0.f;
    }
  }
}

// Until all blocks of the team have arrived so often.
SIMT_DEVICE void wait_for_team(const uint32_t* arrivals, uint32_t n, const Crew& crew) {
  if (crew.is_first_thread()) {
    while (static_cast<int32_t>(simt::load_now(arrivals) - n) < 0) simt::pause();
    simt::refresh();
  }
  crew.meet();  // with the first thread, which knows
}

SIMT_DEVICE void tell_team(uint32_t* arrivals, const Crew& crew) {
  crew.meet();  // everyone has read and stored
  if (crew.is_first_thread()) {
    simt::publish();
    simt::count(arrivals);
  }
}

// Brings the bits of a group for all inputs of a phase; each warp those of its own 16 chains.
SIMT_DEVICE void load_states(const Persistent& p, int first_input, int end_input, int group, unsigned char* states) {
  const int row = static_cast<int>(simt::thread_x()) % kWarpgroup / 32 * 16 + lane() % 16;
  const int64_t chain = int64_t{group} * kGroupChains + row;
  const bool exists = chain < p.sweeps.n_chains;
  for (int input = first_input; input < end_input; input++) {
    const BinaryInput& from = p.sweeps.inputs[input];
    const int n_stages = static_cast<int>(stages(from.units));
    for (int stage = lane() / 16; stage < n_stages; stage += 2)
      simt::copy_async16(states + p.places.states[input] + (stage * kGroupChains + row) * 16,
                         from.bits + (exists ? (chain * n_stages + stage) * 4 : 0), exists ? 16 : 0);
  }
  simt::copy_commit();
  simt::copy_wait<0>();
  simt::sync_warp();
}

// Draws this block's share of a layer for a group.
SIMT_DEVICE void update_layer(const Persistent& p, int update, int group, uint32_t sweep, bool is_last,
                              const Crew& crew) {
  const PersistentUpdate& layer = p.sweeps.updates[update];
  const Run run = run_of(p, layer.units);
  const int of_share = (run.n + crew.shares - 1) / crew.shares, begin = crew.share * of_share;
  const int end = begin + of_share < run.n ? begin + of_share : run.n;
  const int64_t chain = int64_t{group} * kGroupChains + row_of_draws(), row_bytes = bit_words(layer.units) * 4;
  auto* bytes = reinterpret_cast<uint8_t*>(layer.bits) + chain * row_bytes;
  const auto* clamp = layer.clamp ? reinterpret_cast<const uint8_t*>(layer.clamp) + chain * row_bytes : nullptr;
  Drawing drawing = drawing_of(p.sweeps, layer, chain, sweep, is_last);
  for (int first = begin; first < end; first += kMostOctets) {
    const int n = end - first < kMostOctets ? end - first : kMostOctets, first_octet = run.first + first;
    OctetFields fields;
    SIMT_UNROLL
    for (int i = 0; i < 4 * kMostOctets; i++)
      fields[i] = i / 4 < n ? biases_of(p, update)[8 * (first + i / 4) + lane() % 4 * 2 + i % 2] : 0.f;
    for (int input = layer.first_input; input < layer.end_input; input++) {
      const BinaryInput& from = p.sweeps.inputs[input];
      const unsigned char* states = crew.states + p.places.states[input] + row_of_bits() * 16;
      const float scale = sum_scale(from);  // on its way while the products run
      Sums high, low;
      multiply_octets(
          n,
          [&](uint32_t& word, uint32_t& word8, int step) {
            const unsigned char* at = states + step / kStepsOfStage * kStageStateBytes + step % kStepsOfStage * 4;
            word = simt::load4(at);
            word8 = simt::load4(at + 8 * 16);
          },
          simt::dynamic_shared() + p.places.weights[input] + first * kOctetBytes, steps(from.units), run.of_block, high,
          low);
      add_input(fields, high, low, scale);
    }
    drawing.units = 8 * (first_octet + n) < layer.units ? 8 * (first_octet + n) : layer.units;
    const uint32_t drawn = draw_octets(drawing, first_octet, fields, [&](int quad) {
      Held held{0, 0};
      for (int i = 0; i < 4; i++) {
        if (!clamp || !drawing.chain_exists || 4 * quad + i >= n) break;
        held.held |= static_cast<uint32_t>(clamp[first_octet + 4 * quad + i]) << 8 * i;
        held.old |= static_cast<uint32_t>(bytes[first_octet + 4 * quad + i]) << 8 * i;
      }
      return held;
    });
    const int mine = lane() % 4 / 2 * 4;
    for (int i = mine; i < mine + 4 && i < n; i++)
      if (drawing.chain_exists) simt::store1(bytes + first_octet + i, static_cast<uint8_t>(drawn >> (i - mine) * 8));
  }
}

SIMT_KERNEL void SIMT_BOUNDS(kThreads, 1) persistent_kernel(SIMT_PARAMETER Persistent p) {
  const PersistentSweeps& s = p.sweeps;
  unsigned char* shared = simt::dynamic_shared();
  auto* loaded = reinterpret_cast<simt::Barrier*>(shared + p.places.loaded);
  if (simt::thread_x() == 0) {
    simt::barrier_init(loaded, 1);
    simt::barriers_ready();
    simt::barrier_expect(loaded, weight_bytes_of_block(p));
  }
  load_biases(p);
  simt::sync_block();
  load_weights(p, loaded);
  simt::barrier_wait(loaded, 0);

  const int warpgroup = static_cast<int>(simt::thread_x()) / kWarpgroup;
  const int team = static_cast<int>(simt::block_x()) / p.blocks;
  unsigned char* states = shared + p.places.group_states[warpgroup];
  const bool shared_group = p.groups <= p.teams;
  const Crew crew = shared_group ? Crew{0, kThreads, warpgroup, 2, states} : Crew{warpgroup, kWarpgroup, 0, 1, states};
  const int first_group = team + crew.number * p.teams, next_group = p.teams * (3 - crew.shares);
  const uint32_t first_sweep = s.first_sweep + (s.sweeps_before ? *s.sweeps_before : 0);
  uint32_t arrivals = 0;  // of all blocks of a team, before the phase
  for (uint32_t sweep = 0; sweep < s.n_sweeps; sweep++) {
    for (int first = 0, end; first < s.n_updates; first = end) {
      for (end = first + 1; !s.updates[end - 1].ends_block;) end++;
      for (int group = first_group; group < p.groups; group += next_group) {
        uint32_t* arrived = s.arrivals + int64_t{group} * kArrivalWords;
        wait_for_team(arrived, arrivals, crew);
        load_states(p, s.updates[first].first_input, s.updates[end - 1].end_input, group, states);
        for (int update = first; update < end; update++)
          update_layer(p, update, group, first_sweep + sweep, sweep + 1 == s.n_sweeps, crew);
        tell_team(arrived, crew);
      }
      arrivals += static_cast<uint32_t>(p.blocks);
    }
  }
}

struct Clear {
  uint32_t* words;
  int32_t n;
};

SIMT_KERNEL void clear_kernel(SIMT_PARAMETER Clear p) {
  for (auto i = static_cast<int32_t>(simt::thread_x()); i < p.n; i += kThreads) p.words[i] = 0;
}

// --- launchers -------------------------------------------------------------------------------------------------------

int32_t groups_of(int32_t n_chains) { return (n_chains + kGroupChains - 1) / kGroupChains; }

// Bytes of shared memory of a block where a team has so many; sets `places` where that is not too much.
int64_t shared_bytes(const PersistentSweeps& sweeps, int32_t blocks, Places* places) {
  Places p{};
  int64_t weights = 0, states = 0, most_states = 0, biases = 0;
  for (int i = 0; i < sweeps.n_updates; i++) {
    const PersistentUpdate& layer = sweeps.updates[i];
    const int64_t n_octets = octets_of_team_block(layer.units, blocks);
    for (int input = layer.first_input; input < layer.end_input; input++) {
      p.weights[input] = static_cast<int32_t>(weights);
      p.states[input] = static_cast<int32_t>(states);
      weights += 2 * steps(sweeps.inputs[input].units) * n_octets * kOctetBytes;
      states += stages(sweeps.inputs[input].units) * kStageStateBytes;
      if (weights + states > kMaxSharedBytes) return weights + states;
    }
    p.biases[i] = static_cast<int32_t>(biases);
    biases += 8 * n_octets * static_cast<int64_t>(sizeof(float));
    most_states = states > most_states ? states : most_states;
    if (layer.ends_block) states = 0;
  }
  const int64_t first_states = weights, first_bias = first_states + 2 * most_states, loaded = first_bias + biases;
  const int64_t end = loaded + static_cast<int64_t>(sizeof(simt::Barrier));
  if (end > kMaxSharedBytes || !places) return end;
  for (int i = 0; i < sweeps.n_updates; i++) p.biases[i] += static_cast<int32_t>(first_bias);
  for (int i = 0; i < 2; i++) p.group_states[i] = static_cast<int32_t>(first_states + i * most_states);
  p.loaded = static_cast<int32_t>(loaded);
  *places = p;
  return end;
}

int32_t blocks_of_device() {
  return simt::compute_capability() == 90 ? simt::blocks_together(persistent_kernel, kThreads, kMaxSharedBytes) : 0;
}

// The smallest team that holds the weights; 0 where the device has not so many blocks.
int32_t least_blocks(const PersistentSweeps& sweeps, int32_t room) {
  for (int32_t blocks = 1; blocks <= room; blocks++)
    if (shared_bytes(sweeps, blocks, nullptr) <= kMaxSharedBytes) return blocks;
  return 0;
}

}  // namespace

int64_t arrival_words(int32_t n_chains) { return int64_t{groups_of(n_chains)} * kArrivalWords; }

// With more chains launches for each update are as quick: they fill the device then, while a block with few octets of
// each layer turns many bits into operands for few products.
int32_t persistent_room(const PersistentSweeps& sweeps) {
  const int32_t room = blocks_of_device(), least = least_blocks(sweeps, room);
  return least == 0 ? 0 : room / least * kMostGroups * kGroupChains;
}

void sweep_persistent(const PersistentSweeps& sweeps, void* stream) {
  if (sweeps.n_updates == 0 || sweeps.n_chains == 0 || sweeps.n_sweeps == 0) return;
  const int32_t room = blocks_of_device(), least = least_blocks(sweeps, room);
  if (least == 0)
    throw std::invalid_argument("sweep_persistent: expected a program whose weights fit into " + std::to_string(room) +
                                " blocks that run at the same time");
  // as many teams as there is room for, with equal numbers of groups, and then as many blocks as there are for each
  const int32_t groups = groups_of(sweeps.n_chains);
  const int32_t most_teams = groups < room / least ? groups : room / least;
  const int32_t groups_of_team = (groups + most_teams - 1) / most_teams;
  const int32_t teams = (groups + groups_of_team - 1) / groups_of_team;
  int32_t blocks = 1;
  for (int i = 0; i < sweeps.n_updates; i++) {
    const int32_t useful = octets(sweeps.updates[i].units);
    blocks = useful > blocks ? useful : blocks;
  }
  blocks = blocks < room / teams ? blocks : room / teams;
  Persistent persistent{sweeps, {}, blocks, teams, groups};
  const int64_t bytes = shared_bytes(sweeps, blocks, &persistent.places);
  simt::launch(clear_kernel, {1, 1, kThreads, 0}, stream,
               Clear{sweeps.arrivals, static_cast<int32_t>(arrival_words(sweeps.n_chains))});
  simt::launch_together(persistent_kernel,
                        {static_cast<unsigned>(teams * blocks), 1, kThreads, static_cast<size_t>(bytes)}, stream,
                        persistent);
}

}  // namespace bm::cuda::hopper
