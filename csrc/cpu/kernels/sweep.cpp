// Block Gibbs sweeps and means of one layer, a block of chains at a time, so that the rows of W_q for a tile of output
// units are read from the second-level cache by all of its chains.
#include "cpu/kernels/anneal.h"
#include "cpu/kernels/doubt.h"
#include "cpu/kernels/isa.h"
#include "cpu/kernels/sums.h"

namespace bm::cpu::BM_ISA {

// Replaces what a tile holds where `held` is not 0.
template <class T>
static void keep_held(T* __restrict drawn, const T* __restrict old, const uint8_t* __restrict held, int32_t n) {
  for (int32_t u = 0; u < n; u++) drawn[u] = held[u] ? old[u] : drawn[u];
}

int32_t draw_softmax(float* means, const float* x, int32_t units, const uint8_t* held, uint32_t word) {
  const Softmax softmax = softmax_of(x, units, held);
  for (int32_t unit = 0; means && unit < units; unit += kPad) {
    alignas(64) float terms[kPad];
    const int32_t width = tile_width(units, unit);
    softmax_terms(terms, x + unit, softmax.largest, held ? held + unit : nullptr, width);
    for (int32_t u = 0; u < width; u++) means[unit + u] = terms[u] / softmax.total;
  }
  return choose_unit(x, units, held, softmax, word);
}

// A layer whose unit that is on is held keeps its state; otherwise one of the units that are not held turns on.
static void draw_softmax_chain(const float* x, const LayerView& layer, uint8_t* state, const uint8_t* held,
                               float* means, uint32_t word) {
  for (int32_t u = 0; held && u < layer.units; u++)
    if (held[u] && state[u]) {
      for (int32_t i = 0; means && i < layer.units; i++) means[i] = state[i];
      return;
    }
  const int32_t on = draw_softmax(means, x, layer.units, held, word);
  memset(state, 0, layer.units);
  state[on] = 1;
}

// reach: of the fields, which come from rounded sums; null where they are exact
static void draw_chain(float* x, const LayerView& layer, const UpdateView& update, const SweepView& what,
                       const ValuesView* values, const float* reach, int64_t sweep, int64_t chain) {
  const int index = update.layer;
  const float* beta = what.anneal ? what.anneal->betas + sweep + 1 : what.beta ? what.beta + chain : nullptr;
  const float* base = what.base ? what.base[index] : nullptr;
  const int64_t start = chain * layer.units;
  const uint8_t* clamp = what.clamp[index] ? what.clamp[index] + start : nullptr;
  float* means = sweep + 1 == what.n_sweeps && what.means[index] ? what.means[index] + start : nullptr;
  const uint32_t counted_chain = what.first_chain + static_cast<uint32_t>(chain);
  const uint32_t counted_sweep = what.first_sweep + static_cast<uint32_t>(sweep);
  const uint32_t purpose = units::layer_and_purpose(static_cast<uint32_t>(index), units::kGibbs);
  if (layer.kind == Kind::kSoftmax) {
    temper(x, beta, base, layer.padded);
    uint32_t words[4] = {0, counted_chain, counted_sweep, purpose};
    units::philox(words[0], words[1], words[2], words[3], what.seed);
    draw_softmax_chain(x, layer, static_cast<uint8_t*>(what.states[index]) + start, clamp, means, words[0]);
    return;
  }
  const Doubt doubt = doubt_within(reach ? tempered_reach(*reach, update.slack, beta, base) : 0.f);
  constexpr int kTiles = 2;  // whose random numbers hide each other's latencies
  alignas(64) uint32_t drawn_words[kTiles * kPad];
  for (int32_t unit = 0; unit < layer.units; unit += kPad) {
    const int32_t n = tile_width(layer.units, unit), tile = unit / kPad % kTiles;
    const uint32_t* words = drawn_words + tile * kPad;
    alignas(64) float mean[kPad];
    temper(x + unit, beta, base ? base + unit : nullptr, kPad);
    if (tile == 0) tile_words<kTiles>(drawn_words, unit, counted_chain, counted_sweep, purpose, what.seed);
    if (means) tile_means(mean, x + unit, layer, unit, beta, base, {});
    if (layer.kind == Kind::kGaussian) {
      alignas(64) float drawn[kPad];
      float* state = static_cast<float*>(what.states[index]) + start + unit;
      tile_gaussians(drawn, x + unit, words, layer, unit, beta, base);
      if (clamp) keep_held(drawn, state, clamp + unit, n);
      copy_tile(state, drawn, n);
      if (means && clamp) keep_held(mean, state, clamp + unit, n);
    } else {
      alignas(64) uint8_t drawn[kPad];
      uint8_t* state = static_cast<uint8_t*>(what.states[index]) + start + unit;
      if (reach) {
        uint64_t open = tile_likely_decisions(drawn, x + unit, words, doubt);
        for (; open; open &= open - 1) {
          const int u = __builtin_ctzll(open);
          if (u >= n) break;
          float field = exact_field(layer, update, values, chain, unit + u);
          temper(&field, beta, base ? base + unit + u : nullptr, 1);
          drawn[u] = units::decide(field, words[u]);
        }
      } else {
        tile_decisions(drawn, x + unit, words);
      }
      if (clamp) keep_held(drawn, state, clamp + unit, n);
      copy_tile(state, drawn, n);
      if (means && clamp)
        for (int32_t u = 0; u < n; u++) mean[u] = clamp[unit + u] ? state[u] : mean[u];
    }
    if (means) copy_tile(means + unit, mean, n);
  }
}

static bool leads_to_interactions(const UpdateView& update, const SweepView& what, int64_t sweep) {
  return what.interactions && sweep + 1 == what.n_sweeps && has_settled_input(update);
}

// Annealing weighs chains by its fields, and means are made of them: both are exact.
static bool takes_rounded(const UpdateView& update, const SweepView& what, int64_t sweep) {
  return update.rounded && !what.anneal && !(what.means[update.layer] && sweep + 1 == what.n_sweeps) &&
         !leads_to_interactions(update, what, sweep);
}

// Of the settled inputs of a layer that has just been drawn.
static void write_interactions(MachineView machine, const UpdateView& update, const SweepView& what,
                               const int32_t* exact, int64_t chain, int32_t n) {
  const LayerView& layer = machine.layers[update.layer];
  for (int i = 0; i < update.n_inputs; i++) {
    if (!update.inputs[i].settled) continue;
    for (int32_t c = 0; c < n; c++) {
      const int32_t* sums = exact + (static_cast<int64_t>(i) * kBlockChains + c) * layer.padded;
      const uint8_t* state = static_cast<const uint8_t*>(what.states[update.layer]) + (chain + c) * layer.units;
      what.interactions[(chain + c) * what.n_couplings + update.inputs[i].coupling] = sum_on(sums, state, layer.units);
    }
  }
}

bool sweep(MachineView machine, ProgramView program, const SweepView& what, const ValuesView* values, int64_t first,
           int64_t n, Scratch scratch, StopView stop) {
  for (int64_t chain = first; chain < first + n; chain += kBlockChains) {
    const int32_t block = static_cast<int32_t>(first + n - chain < kBlockChains ? first + n - chain : kBlockChains);
    for (int64_t s = 0; s < what.n_sweeps; s++) {
      if (what.anneal) weigh_states(machine, program, *what.anneal, s, values, chain, block);
      for (int i = 0; i < program.n_updates; i++) {
        const UpdateView& update = program.updates[i];
        const LayerView& layer = machine.layers[update.layer];
        float reach[kBlockChains];
        for (int32_t c = 0; c < block; c++) reach[c] = update.slack;
        const bool rounded = takes_rounded(update, what, s);
        int32_t* exact = leads_to_interactions(update, what, s) ? scratch.exact : nullptr;
        if (!block_fields(machine, update, values, chain, block, scratch, rounded ? reach : nullptr, exact, stop))
          return false;
        if (what.anneal && i < what.anneal->n_summed)
          weigh_fields(layer, what.base[update.layer], *what.anneal, s, scratch.fields, chain, block);
        bool slow = false;
        for (int k = 0; k < update.n_inputs; k++) slow |= rounded && is_slow(update.inputs[k].weights);
        for (int32_t c = 0; c < block; c++) {
          if (slow && stop.requested()) return false;
          draw_chain(scratch.fields + c * static_cast<int64_t>(layer.padded), layer, update, what, values,
                     rounded ? reach + c : nullptr, s, chain + c);
        }
        if (exact) write_interactions(machine, update, what, exact, chain, block);
      }
    }
  }
  return true;
}

void layer_means(float* out, MachineView machine, UpdateView update, const ValuesView* values, TemperView how,
                 int64_t first, int64_t n, Scratch scratch) {
  const LayerView& layer = machine.layers[update.layer];
  for (int64_t chain = first; chain < first + n; chain += kBlockChains) {
    const int32_t block = static_cast<int32_t>(first + n - chain < kBlockChains ? first + n - chain : kBlockChains);
    block_fields(machine, update, values, chain, block, scratch, nullptr, nullptr, {never, nullptr});
    for (int32_t c = 0; c < block; c++) {
      float* x = scratch.fields + c * static_cast<int64_t>(layer.padded);
      const float* beta = how.beta ? how.beta + chain + c : nullptr;
      temper(x, beta, how.base ? how.base[update.layer] : nullptr, layer.padded);
      const Softmax softmax = layer.kind == Kind::kSoftmax ? softmax_of(x, layer.units, nullptr) : Softmax{};
      for (int32_t unit = 0; unit < layer.units; unit += kPad) {
        alignas(64) float mean[kPad];
        tile_means(mean, x + unit, layer, unit, beta, how.base, softmax);
        copy_tile(out + (chain + c) * layer.units + unit, mean, tile_width(layer.units, unit));
      }
    }
  }
}

}  // namespace bm::cpu::BM_ISA
