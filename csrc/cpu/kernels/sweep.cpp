// Block Gibbs sweeps and means of one layer, a block of chains at a time: states, lists and fields of a block stay in
// the first-level cache while the rows of W_q stream from the second.
#include "cpu/kernels/isa.h"

namespace bm::cpu::BM_ISA {

static int32_t block_chains(const UpdateView& update) {
  for (int i = 0; i < update.n_inputs; i++)
    if (update.inputs[i].dense) return kDenseChains;
  return kBlockChains;
}

static int32_t block_chains(const ProgramView& program) {
  int32_t n = kBlockChains;
  for (int i = 0; i < program.n_updates; i++) n = block_chains(program.updates[i]) > n ? kDenseChains : n;
  return n;
}

// Replaces what a tile holds where `held` is not 0.
template <class T>
static void keep_held(T* __restrict drawn, const T* __restrict old, const uint8_t* __restrict held, int32_t n) {
  for (int32_t u = 0; u < n; u++) drawn[u] = held[u] ? old[u] : drawn[u];
}

static void draw_chain(float* x, const LayerView& layer, int index, const SweepView& what, int64_t sweep,
                       int64_t chain) {
  const float* beta = what.beta ? what.beta + chain : nullptr;
  temper(x, beta, what.base ? what.base[index] : nullptr, layer.padded);
  const int64_t start = chain * layer.units;
  const uint8_t* clamp = what.clamp[index] ? what.clamp[index] + start : nullptr;
  float* means = sweep + 1 == what.n_sweeps && what.means[index] ? what.means[index] + start : nullptr;
  for (int32_t unit = 0; unit < layer.units; unit += kPad) {
    const int32_t n = layer.units - unit < kPad ? layer.units - unit : kPad;
    alignas(64) uint32_t words[kPad];
    alignas(64) float mean[kPad];
    tile_words(words, unit, what.first_chain + static_cast<uint32_t>(chain),
               what.first_sweep + static_cast<uint32_t>(sweep),
               units::layer_and_purpose(static_cast<uint32_t>(index), units::kGibbs), what.seed);
    if (means) tile_means(mean, x + unit, layer, unit, beta, what.base);
    if (layer.kind == Kind::kGaussian) {
      alignas(64) float drawn[kPad];
      float* state = static_cast<float*>(what.states[index]) + start + unit;
      tile_gaussians(drawn, x + unit, words, layer, unit, beta, what.base);
      if (clamp) keep_held(drawn, state, clamp + unit, n);
      memcpy(state, drawn, n * sizeof(float));
      if (means && clamp) keep_held(mean, state, clamp + unit, n);
    } else {
      alignas(64) uint8_t drawn[kPad];
      uint8_t* state = static_cast<uint8_t*>(what.states[index]) + start + unit;
      tile_decisions(drawn, x + unit, words);
      if (clamp) keep_held(drawn, state, clamp + unit, n);
      memcpy(state, drawn, n);
      if (means && clamp)
        for (int32_t u = 0; u < n; u++) mean[u] = clamp[unit + u] ? state[u] : mean[u];
    }
    if (means) memcpy(means + unit, mean, n * sizeof(float));
  }
}

bool sweep(MachineView machine, ProgramView program, const SweepView& what, const ValuesView* values, int64_t first,
           int64_t n, Scratch scratch, StopView stop) {
  const int32_t most = block_chains(program);
  for (int64_t chain = first; chain < first + n; chain += most) {
    const int32_t block = static_cast<int32_t>(first + n - chain < most ? first + n - chain : most);
    for (int64_t s = 0; s < what.n_sweeps; s++) {
      for (int i = 0; i < program.n_updates; i++) {
        const UpdateView& update = program.updates[i];
        const LayerView& layer = machine.layers[update.layer];
        if (!block_fields(machine, update, values, chain, block, scratch, stop)) return false;
        for (int32_t c = 0; c < block; c++)
          draw_chain(scratch.fields + c * static_cast<int64_t>(layer.padded), layer, update.layer, what, s, chain + c);
      }
    }
  }
  return true;
}

void layer_means(float* out, MachineView machine, UpdateView update, const ValuesView* values, TemperView how,
                 int64_t first, int64_t n, Scratch scratch) {
  const LayerView& layer = machine.layers[update.layer];
  const int32_t most = block_chains(update);
  for (int64_t chain = first; chain < first + n; chain += most) {
    const int32_t block = static_cast<int32_t>(first + n - chain < most ? first + n - chain : most);
    block_fields(machine, update, values, chain, block, scratch, {never, nullptr});
    for (int32_t c = 0; c < block; c++) {
      float* x = scratch.fields + c * static_cast<int64_t>(layer.padded);
      const float* beta = how.beta ? how.beta + chain + c : nullptr;
      temper(x, beta, how.base ? how.base[update.layer] : nullptr, layer.padded);
      for (int32_t unit = 0; unit < layer.units; unit += kPad) {
        alignas(64) float mean[kPad];
        tile_means(mean, x + unit, layer, unit, beta, how.base);
        memcpy(out + (chain + c) * layer.units + unit, mean,
               (layer.units - unit < kPad ? layer.units - unit : kPad) * sizeof(float));
      }
    }
  }
}

}  // namespace bm::cpu::BM_ISA
