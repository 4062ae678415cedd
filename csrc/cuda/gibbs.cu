// Block Gibbs updates of a binary layer with binary inputs: product.h makes the fields in registers, and what is drawn
// from them leaves as bits. The drawing needs no exchange between lanes, as layout.h gives each lane four units in a
// row of one chain, which share one call of Philox.
#include "cuda/binary.h"
#include "cuda/product.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

// --- kernels ---------------------------------------------------------------------------------------------------------

SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kProductBlocks) update_binary_kernel(SIMT_PARAMETER BinaryUpdate p) {
  const TilePlace place;
  Fields fields;
  make_fields(p.product, place, fields);

  const int32_t n_chains = p.product.n_chains, units = p.product.units;
  const int64_t words = bit_words(units), column = place.first_unit() / 32;
  const uint32_t sweep = p.sweep + (p.sweeps_before ? *p.sweeps_before : 0);
  uint32_t drawn = 0;  // the word that this lane stores: of row t
  SIMT_UNROLL
  for (int row = 0; row < 4; row++) {
    const int64_t chain = place.chain(row);
    const bool chain_exists = chain < n_chains;
    const bool is_held = p.clamp && chain_exists;
    const uint32_t held = is_held ? p.clamp[chain * words + column] : 0;
    const uint32_t old = is_held ? p.states[chain * words + column] : 0;
    const float beta = p.beta && chain_exists ? p.beta[chain] : 1.f;
    uint32_t word = 0;
    SIMT_UNROLL
    for (int pair = 0; pair < 2; pair++) {
      const int unit = place.unit(2 * pair, 0);
      uint32_t random[4] = {static_cast<uint32_t>(unit) / 4, p.first_chain + static_cast<uint32_t>(chain), sweep,
                            p.layer_and_purpose};
      bm::units::philox(random[0], random[1], random[2], random[3], p.seed);
      SIMT_UNROLL
      for (int j = 0; j < 4; j++) {
        if (!chain_exists || unit + j >= units) continue;
        const float x =
            tempered(fields[row / 2][pair * 2 + j / 2][row % 2 * 2 + j % 2], beta, p.beta, p.base, unit + j);
        const int bit = unit % 32 + j;
        word |= static_cast<uint32_t>(bm::units::decide(x, random[j])) << bit;
        if (p.means)
          p.means[chain * units + unit + j] =
              held >> bit & 1 ? static_cast<float>(old >> bit & 1) : bm::units::logistic(x);
      }
    }
    word |= simt::shuffle_xor(word, 1);
    word |= simt::shuffle_xor(word, 2);
    if (row == place.t()) drawn = (word & ~held) | (old & held);
  }
  simt::sync_warp();  // all lanes of a row have read its old states before one stores the new ones
  const int64_t chain = place.chain(place.t());
  if (p.states && chain < n_chains && place.first_unit() < units) p.states[chain * words + column] = drawn;
}

struct Advance {
  uint32_t* counter;
  uint32_t steps;
};

SIMT_KERNEL void advance_kernel(SIMT_PARAMETER Advance p) {
  if (simt::thread_x() == 0) *p.counter += p.steps;
}

}  // namespace

// --- launchers -------------------------------------------------------------------------------------------------------

void update_binary(const BinaryUpdate& update, void* stream) {
  simt::launch(update_binary_kernel, product_size(update.product), stream, update);
}

void advance(uint32_t* counter, uint32_t steps, void* stream) {
  simt::launch(advance_kernel, {1, 1, 32, 0}, stream, Advance{counter, steps});
}

}  // namespace bm::cuda
