// Updates of layers that have real inputs, or are real themselves: draws, means, mean field. real_product.h makes the
// fields in registers. In mean field the means leave twice: as numbers, and as operands of the next products, whose 16
// bytes of a lane are the four units of its two chains and two groups, so that nothing is exchanged.
#include <math.h>

#include "cuda/real.h"
#include "cuda/real_product.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr unsigned kPackThreads = 256, kSettleThreads = 128;

// --- real values as whole numbers ------------------------------------------------------------------------------------

// Four values of at most 8,355,711 in size as three words: the bytes from the highest to the lowest.
SIMT_DEVICE void split(const int32_t (&whole)[4], uint32_t (&words)[3]) {
  words[0] = words[1] = words[2] = 0;
  SIMT_UNROLL
  for (int i = 0; i < 4; i++) {
    const int32_t low = ((whole[i] + 128) & 255) - 128, rest = (whole[i] - low) / 256;
    const int32_t middle = ((rest + 128) & 255) - 128, top = (rest - middle) / 256;
    words[0] |= static_cast<uint32_t>(top & 255) << i * 8;
    words[1] |= static_cast<uint32_t>(middle & 255) << i * 8;
    words[2] |= static_cast<uint32_t>(low & 255) << i * 8;
  }
}

// Where the 16 bytes of a lane are, of the highest bytes; the lower ones follow 32 lanes later each.
SIMT_DEVICE int64_t fragment(int64_t chain_tile, int64_t units, int64_t group_of_32, int lane) {
  return (chain_tile * stages(units) * kStepsOfStage + group_of_32) * kLimbs * 32 + lane;
}

// The power of two that a chain's values are counted in, given the largest of them; NaN where one is not finite.
SIMT_DEVICE float quantum_of(uint32_t largest) {
  if (largest >= 0x7f800000u) return units::float_of(0x7fc00000u);
  constexpr uint32_t kLargestMantissa = 8355711 * 2 - 0x800000;  // of 8,355,711 as a float
  const int32_t exponent = static_cast<int32_t>(largest >> 23) - 22 + ((largest & 0x7fffffu) > kLargestMantissa);
  return units::float_of(static_cast<uint32_t>(exponent > 1 ? exponent : 1) << 23);
}

SIMT_DEVICE int32_t whole_number(float x, float per_quantum) { return static_cast<int32_t>(rintf(x * per_quantum)); }

struct Packed {
  simt::Words4* values;
  float* quanta;  // or null: kMeanQuantum
  const float* numbers;
  int32_t n_chains, units;
};

// A block takes a tile of chains: first each warp finds the largest values of two of them, then each lane makes
// fragments.
SIMT_KERNEL void pack_values_kernel(SIMT_PARAMETER Packed p) {
  const int64_t tile = simt::block_x();
  const int thread = static_cast<int>(simt::thread_x()), lane = thread % 32, warp = thread / 32;
  auto* quanta = reinterpret_cast<float*>(simt::dynamic_shared());
  for (int i = warp; p.quanta && i < kFragmentChains; i += static_cast<int>(kPackThreads / 32)) {
    const int64_t chain = tile * kFragmentChains + i;
    uint32_t largest = 0;
    for (int64_t unit = lane; chain < p.n_chains && unit < p.units; unit += 32) {
      const uint32_t size = units::bits_of(p.numbers[chain * p.units + unit]) & 0x7fffffffu;
      largest = size > largest ? size : largest;
    }
    for (unsigned mask = 16; mask > 0; mask /= 2) {
      const uint32_t other = simt::shuffle_xor(largest, mask);
      largest = other > largest ? other : largest;
    }
    if (lane == 0) quanta[i] = quantum_of(largest);
    if (lane == 0 && chain < p.n_chains) p.quanta[chain] = quanta[i];
  }
  simt::sync_block();  // all quanta of the tile are known
  for (int64_t group = warp; group < stages(p.units) * kStepsOfStage; group += kPackThreads / 32) {
    simt::Words4 limbs[kLimbs] = {};
    SIMT_UNROLL
    for (int row = 0; row < 2; row++) {
      const int64_t chain = tile * kFragmentChains + row * 8 + lane / 4;
      const float quantum = p.quanta ? quanta[row * 8 + lane / 4] : kMeanQuantum;
      SIMT_UNROLL
      for (int half = 0; half < 2; half++) {
        int32_t whole[4] = {};
        SIMT_UNROLL
        for (int i = 0; i < 4; i++) {
          const int64_t unit = group * 32 + half * 16 + lane % 4 * 4 + i;
          if (chain < p.n_chains && unit < p.units && quantum == quantum)
            whole[i] = whole_number(p.numbers[chain * p.units + unit], 1.f / quantum);
        }
        uint32_t words[kLimbs];
        split(whole, words);
        SIMT_UNROLL
        for (int limb = 0; limb < kLimbs; limb++) limbs[limb].word[half * 2 + row] = words[limb];
      }
    }
    simt::Words4* to = p.values + fragment(tile, p.units, group, lane);
    SIMT_UNROLL
    for (int limb = 0; limb < kLimbs; limb++) to[limb * 32] = limbs[limb];
  }
}

// --- draws -----------------------------------------------------------------------------------------------------------

// Precision of a Gaussian unit: beta scales it too, unless a base distribution shares it.
SIMT_DEVICE float precision_of(const RealProduct& p, const float* precisions, int64_t chain, int unit) {
  return p.beta && !p.base ? p.beta[chain] * precisions[unit] : precisions[unit];
}

SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kRealBlocks) update_real_kernel(SIMT_PARAMETER RealUpdate p) {
  const RealPlace place;
  RealFields fields;
  make_fields(p.product, place, fields);

  const int32_t n_chains = p.product.n_chains, units = p.product.units;
  const int64_t words = bit_words(units), column = place.first_unit() / 32;
  const uint32_t sweep = p.sweep + (p.sweeps_before ? *p.sweeps_before : 0);
  uint32_t drawn = 0;  // the word that lanes 0 and 1 of four store: of row t
  SIMT_UNROLL
  for (int row = 0; row < 2; row++) {
    const int64_t chain = place.chain(row);
    const bool chain_exists = chain < n_chains;
    const uint32_t held = p.clamp && chain_exists ? p.clamp[chain * words + column] : 0;
    const uint32_t old = held != 0 && !p.precisions ? p.states[chain * words + column] : 0;
    uint32_t word = 0;
    SIMT_UNROLL
    for (int pair = 0; pair < 2; pair++) {
      const int unit = place.unit(2 * pair, 0);
      uint32_t random[4] = {static_cast<uint32_t>(unit) / 4, p.first_chain + static_cast<uint32_t>(chain), sweep,
                            p.layer_and_purpose};
      bm::units::philox(random[0], random[1], random[2], random[3], p.seed);
      float noise[4] = {};
      if (p.precisions) {
        bm::units::normals(random[0], random[1], noise[0], noise[1]);
        bm::units::normals(random[2], random[3], noise[2], noise[3]);
      }
      SIMT_UNROLL
      for (int j = 0; j < 4; j++) {
        if (!chain_exists || unit + j >= units) continue;
        const float x = fields[pair * 2 + j / 2][row * 2 + j % 2];
        const int bit = unit % 32 + j;
        const bool is_held = held >> bit & 1;
        const int64_t at = chain * units + unit + j;
        float mean;
        if (p.precisions) {
          const float precision = precision_of(p.product, p.precisions, chain, unit + j);
          mean = x / precision;
          if (is_held)
            mean = p.numbers[at];
          else if (p.numbers)
            p.numbers[at] = mean + noise[j] / sqrtf(precision);
        } else {
          word |= static_cast<uint32_t>(bm::units::decide(x, random[j])) << bit;
          mean = is_held ? static_cast<float>(old >> bit & 1) : bm::units::logistic(x);
        }
        if (p.means) p.means[at] = mean;
      }
    }
    word |= simt::shuffle_xor(word, 1);
    word |= simt::shuffle_xor(word, 2);
    if (row == place.t()) drawn = (word & ~held) | (old & held);
  }
  if (!p.states) return;
  simt::sync_warp();  // all lanes of a row have read its old states before one stores the new ones
  const int64_t chain = place.chain(place.t());
  if (place.t() < 2 && chain < n_chains && place.first_unit() < units) p.states[chain * words + column] = drawn;
}

// --- mean field ------------------------------------------------------------------------------------------------------

SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kRealBlocks) update_means_kernel(SIMT_PARAMETER MeanUpdate p) {
  if (all_settled(p.settled, p.product.n_chains)) return;
  const RealPlace place;
  RealFields fields;
  make_fields(p.product, place, fields);

  const int32_t n_chains = p.product.n_chains, units = p.product.units;
  const int64_t words = bit_words(units), column = place.first_unit() / 32;
  simt::Words4 limbs[kLimbs] = {};
  SIMT_UNROLL
  for (int row = 0; row < 2; row++) {
    const int64_t chain = place.chain(row);
    const bool chain_exists = chain < n_chains;
    const uint32_t held = p.clamp && chain_exists ? p.clamp[chain * words + column] : 0;
    const bool is_settled = p.settled && chain_exists && p.settled[chain] != 0;
    uint32_t largest = 0;
    SIMT_UNROLL
    for (int pair = 0; pair < 2; pair++) {
      const int unit = place.unit(2 * pair, 0);
      int32_t whole[4] = {};
      SIMT_UNROLL
      for (int j = 0; j < 4; j++) {
        if (!chain_exists || unit + j >= units) continue;
        const float x = fields[pair * 2 + j / 2][row * 2 + j % 2];
        float& mean = p.means[chain * units + unit + j];
        const float old = mean;
        float next = p.precisions ? x / precision_of(p.product, p.precisions, chain, unit + j) : units::logistic(x);
        next = units::fma(p.damping, old - next, next);
        if (is_settled || (held >> (unit % 32 + j) & 1)) next = old;
        const uint32_t change = units::bits_of(next - old) & 0x7fffffffu;
        largest = change > largest ? change : largest;
        mean = next;
        if (p.values) whole[j] = whole_number(next, 1.f / kMeanQuantum);
      }
      uint32_t split_words[kLimbs];
      split(whole, split_words);
      SIMT_UNROLL
      for (int limb = 0; limb < kLimbs; limb++) limbs[limb].word[pair * 2 + row] = split_words[limb];
    }
    for (unsigned mask = 1; mask < 4; mask *= 2) {
      const uint32_t other = simt::shuffle_xor(largest, mask);
      largest = other > largest ? other : largest;
    }
    if (place.t() == 0 && chain_exists) simt::atomic_max(reinterpret_cast<uint32_t*>(p.changes + chain), largest);
  }
  if (!p.values || place.first_unit() >= units || place.chain_tile() >= chain_tiles(n_chains)) return;
  simt::Words4* to = static_cast<simt::Words4*>(p.values) + fragment(place.chain_tile(), units, column, place.lane());
  SIMT_UNROLL
  for (int limb = 0; limb < kLimbs; limb++) to[limb * 32] = limbs[limb];
}

SIMT_KERNEL void settle_kernel(SIMT_PARAMETER Settling p) {
  const int64_t chain = static_cast<int64_t>(simt::block_x()) * kSettleThreads + simt::thread_x();
  if (chain >= p.n_chains) return;
  const float change = p.changes[chain];
  p.changes[chain] = 0.f;
  if (p.settled[chain] != 0) return;
  p.last_changes[chain] = change;
  p.sweeps[chain]++;
  if (change <= p.tolerance) p.settled[chain] = 1;
}

// --- launchers -------------------------------------------------------------------------------------------------------

void pack(const Packed& p, void* stream) {
  simt::launch(pack_values_kernel,
               {static_cast<unsigned>(chain_tiles(p.n_chains)), 1, kPackThreads, kFragmentChains * sizeof(float)},
               stream, p);
}

}  // namespace

void pack_values(void* values, float* quanta, const float* numbers, int32_t n_chains, int32_t units, void* stream) {
  pack({static_cast<simt::Words4*>(values), quanta, numbers, n_chains, units}, stream);
}

void pack_means(void* values, const float* numbers, int32_t n_chains, int32_t units, void* stream) {
  pack({static_cast<simt::Words4*>(values), nullptr, numbers, n_chains, units}, stream);
}

void update_real(const RealUpdate& update, void* stream) {
  simt::launch(update_real_kernel, product_size(update.product), stream, update);
}

void update_means(const MeanUpdate& update, void* stream) {
  simt::launch(update_means_kernel, product_size(update.product), stream, update);
}

void settle(const Settling& settling, void* stream) {
  simt::launch(settle_kernel,
               {(static_cast<unsigned>(settling.n_chains) + kSettleThreads - 1) / kSettleThreads, 1, kSettleThreads, 0},
               stream, settling);
}

}  // namespace bm::cuda
