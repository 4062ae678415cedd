// Block Gibbs updates of a binary layer with binary inputs, on the integer matrix units of compute capability 8.0 and
// newer.
//
// A block makes a tile of 64 chains times 64 units with four warps, two by two, of 32 times 32 each. Sums of W_q are
// exact in int32, one for each limb; at the end of each input they are added to the float field as docs/numbers.md
// says, so that nothing here can change a bit. Stages of 128 inputs go round through shared memory by asynchronous
// copies: one is multiplied while the others are on their way. There is one barrier for each: it says that everyone's
// copies of the stage have landed, and also that everyone is done with the stage before, which is filled next.
//
// States are bits, in memory and in shared memory, and become bytes in registers: 4 instructions for 4 inputs of a row,
// which feed 8 products. The drawing needs no exchange between lanes, as layout.h gives each lane four units in a row
// of one chain. Not the obvious way, one product with 16-bit weights: the matrix units have none, and bfloat16 would
// neither be exact nor faster than two limbs.
#include <stdexcept>
#include <string>

#include "cuda/gibbs.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr int kTileChains = 64, kThreads = 128, kStages = 3;
constexpr int kStageBytes = kStageWeightBytes + kTileChains * kStageInputs / 8;

// --- kernels ---------------------------------------------------------------------------------------------------------

struct Cursor {  // the stage of an input that is loaded next
  int input, stage;
};

SIMT_DEVICE void load_next(const BinaryUpdate& p, Cursor& cursor, unsigned char* to) {
  if (cursor.input < p.n_inputs) {
    const BinaryInput& input = p.inputs[cursor.input];
    const int thread = static_cast<int>(simt::thread_x());
    const int n_stages = static_cast<int>(stages(input.units));
    const unsigned char* weights =
        static_cast<const unsigned char*>(input.weights) +
        (static_cast<int64_t>(simt::block_y()) * n_stages + cursor.stage) * kStageWeightBytes;
    SIMT_UNROLL
    for (int i = 0; i < kStageWeightBytes / 16 / kThreads; i++)
      simt::copy_async16(to + 16 * (thread + i * kThreads), weights + 16 * (thread + i * kThreads), 16);
    if (thread < kTileChains) {
      const int64_t chain = static_cast<int64_t>(simt::block_x()) * kTileChains + thread;
      const bool exists = chain < p.n_chains;
      simt::copy_async16(to + kStageWeightBytes + 16 * thread,
                         input.bits + (exists ? (chain * n_stages + cursor.stage) * 4 : 0), exists ? 16 : 0);
    }
    if (++cursor.stage == n_stages) cursor = {cursor.input + 1, 0};
  }
  simt::copy_commit();  // empty after the last stage, so that the number of open groups stays the same
}

// Four bits as four bytes 0 or 1.
SIMT_DEVICE uint32_t spread(uint32_t bits) { return (bits & 15) * 0x00204081u & 0x01010101u; }

// Sums of [2 x 16 chains][4 x 8 units][fragment of a lane]
using Sums = int32_t[2][4][4];

SIMT_DEVICE void multiply(const unsigned char* stage, Sums& high, Sums& low) {
  const int thread = static_cast<int>(simt::thread_x()), lane = thread % 32, warp = thread / 32;
  const int g = lane / 4, t = lane % 4;
  simt::Words4 bits[2][2];  // of chains g and g + 8 of each 16
  SIMT_UNROLL
  for (int row = 0; row < 4; row++)
    bits[row / 2][row % 2] = simt::load16(stage + kStageWeightBytes + 16 * (warp / 2 * 32 + row * 8 + g));
  const unsigned char* weights = stage + warp % 2 * 4 * kStepsOfStage * 512 + lane * 16;
  SIMT_UNROLL
  for (int step = 0; step < kStepsOfStage; step++) {
    uint32_t a[2][4];
    SIMT_UNROLL
    for (int m = 0; m < 2; m++) SIMT_UNROLL
    for (int i = 0; i < 4; i++) a[m][i] = spread(bits[m][i % 2].word[step] >> (i / 2 * 16 + t * 4));
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      const simt::Words4 w = simt::load16(weights + (n * kStepsOfStage + step) * 512);
      SIMT_UNROLL
      for (int m = 0; m < 2; m++) {
        simt::mma_m16n8k32(high[m][n], a[m], w.word[0], w.word[1]);
        simt::mma_m16n8k32(low[m][n], a[m], w.word[2], w.word[3]);
      }
    }
  }
}

SIMT_KERNEL void update_binary_kernel(SIMT_PARAMETER BinaryUpdate p) {
  unsigned char* shared = simt::dynamic_shared();
  const int thread = static_cast<int>(simt::thread_x()), lane = thread % 32, warp = thread / 32;
  const int g = lane / 4, t = lane % 4;
  const int first_unit = static_cast<int>(simt::block_y()) * kTileUnits + warp % 2 * 32;  // of the warp

  float fields[2][4][4];
  SIMT_UNROLL
  for (int n = 0; n < 4; n++) SIMT_UNROLL
  for (int i = 0; i < 4; i++) {
    const int unit = first_unit + unit_of_column(n, 2 * t + i % 2);
    fields[0][n][i] = fields[1][n][i] = unit < p.units ? p.biases[unit] : 0.f;
  }

  Cursor next{0, 0};
  for (int stage = 0; stage < kStages - 1; stage++) load_next(p, next, shared + stage * kStageBytes);
  int stage = 0;
  for (int input = 0; input < p.n_inputs; input++) {
    Sums high = {}, low = {};
    const int n_stages = static_cast<int>(stages(p.inputs[input].units));
    for (int i = 0; i < n_stages; i++) {
      simt::copy_wait<kStages - 2>();
      simt::sync_block();  // this stage has landed, and the one before it is read no more
      load_next(p, next, shared + (stage + kStages - 1) % kStages * kStageBytes);
      multiply(shared + stage * kStageBytes, high, low);
      stage = (stage + 1) % kStages;
    }
    SIMT_UNROLL
    for (int m = 0; m < 2; m++) SIMT_UNROLL
    for (int n = 0; n < 4; n++) SIMT_UNROLL
    for (int j = 0; j < 4; j++)
      fields[m][n][j] =
          units::fma(static_cast<float>(high[m][n][j] * 256 + low[m][n][j]), p.inputs[input].scale, fields[m][n][j]);
  }
  simt::copy_wait<0>();

  const int64_t words = bit_words(p.units);
  uint32_t drawn = 0;  // the word that this lane stores: of row t
  SIMT_UNROLL
  for (int row = 0; row < 4; row++) {
    const int64_t chain = static_cast<int64_t>(simt::block_x()) * kTileChains + warp / 2 * 32 + row * 8 + g;
    const bool chain_exists = chain < p.n_chains;
    const bool is_held = p.clamp && chain_exists;
    const uint32_t held = is_held ? p.clamp[chain * words + first_unit / 32] : 0;
    const uint32_t old = is_held ? p.states[chain * words + first_unit / 32] : 0;
    const float beta = p.beta && chain_exists ? p.beta[chain] : 1.f;
    uint32_t word = 0;
    SIMT_UNROLL
    for (int pair = 0; pair < 2; pair++) {
      const int unit = first_unit + pair * 16 + t * 4;
      uint32_t random[4] = {static_cast<uint32_t>(unit) / 4, p.first_chain + static_cast<uint32_t>(chain), p.sweep,
                            p.layer_and_purpose};
      units::philox(random[0], random[1], random[2], random[3], p.seed);
      SIMT_UNROLL
      for (int j = 0; j < 4; j++) {
        const bool exists = chain_exists && unit + j < p.units;
        float x = fields[row / 2][pair * 2 + j / 2][row % 2 * 2 + j % 2];
        if (p.base) {
          x = units::fma(beta, x, (1.f - beta) * (exists ? p.base[unit + j] : 0.f));
        } else if (p.beta) {
          x = beta * x;
        }
        const int bit = pair * 16 + t * 4 + j;
        word |= static_cast<uint32_t>(exists && units::decide(x, random[j])) << bit;
        if (p.means && exists)
          p.means[chain * p.units + unit + j] =
              held >> bit & 1 ? static_cast<float>(old >> bit & 1) : units::logistic(x);
      }
    }
    word |= simt::shuffle_xor(word, 1);
    word |= simt::shuffle_xor(word, 2);
    if (row == t) drawn = (word & ~held) | (old & held);
  }
  simt::sync_warp();  // all lanes of a row have read its old states before one stores the new ones
  const int64_t chain = static_cast<int64_t>(simt::block_x()) * kTileChains + warp / 2 * 32 + t * 8 + g;
  if (chain < p.n_chains && first_unit < p.units) p.states[chain * words + first_unit / 32] = drawn;
}

}  // namespace

// --- launchers -------------------------------------------------------------------------------------------------------

void update_binary(const BinaryUpdate& update, void* stream) {
  if (update.n_inputs < 0 || update.n_inputs > kMaxInputs)
    throw std::invalid_argument("update: expected at most " + std::to_string(kMaxInputs) +
                                " couplings that lead to one layer, got " + std::to_string(update.n_inputs));
  const simt::Size size{static_cast<unsigned>((update.n_chains + kTileChains - 1) / kTileChains),
                        static_cast<unsigned>(unit_tiles(update.units)), kThreads, kStages * kStageBytes};
  simt::launch(update_binary_kernel, size, stream, update);
}

}  // namespace bm::cuda
