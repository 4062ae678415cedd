#include "cpu/lookup.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "cpu/dispatch.h"
#include "cpu/lookup_rests.h"
#include "cpu/lookup_sums.h"
#include "cpu/work.h"

namespace bm::cpu {

using namespace lookup;

namespace {

constexpr int64_t kUnitsPerQuestion = 32;  // of an update, between questions whether to stop, which read a clock

// Three blocks a tile are fastest, one is slowest: four blocks are two and two.
int tile_blocks(int64_t left) { return left == 4 ? 2 : static_cast<int>(std::min<int64_t>(left, kMaxBlocks)); }

}  // namespace

class LookupPart {
 public:
  LookupPart(const Machine& machine, const ProgramView& program, const SweepView& sweep, int64_t first, int64_t n,
             LookupTablesIn tables, int threads)
      : machine_(machine),
        sweep_(sweep),
        first_(first),
        n_(n),
        tables_(tables == LookupTablesIn::kMachine ? machine.lookup_tables.get() : nullptr),
        layout_(tables_ ? kTabled : kInRegisters) {
    blocks_ = (n + kBlock - 1) / kBlock;
    for (int64_t block = 0; block < blocks_; block += tiles_.back().blocks)
      tiles_.push_back({block, tables_ ? tile_blocks(blocks_ - block) : 1});
    for (int layer = 0; layer < machine.n_layers(); layer++) {
      states_.emplace_back(blocks_ * stride(layer));
      std::fill_n(states_.back().data(), states_.back().size(), int16_t{0});  // bits of no unit stay 0
      held_.emplace_back(sweep.clamp[layer] ? blocks_ * machine.layer(layer).units : 0);
    }
    if (sweep.beta) beta_ = Array<float>(blocks_ * kBlock);
    if (sweep.gap) totals_ = Array<int64_t>((machine.n_couplings() + 1) * blocks_ * kBlock);
    for (int i = 0; i < program.n_updates; i++) make_room_for_softmax(program.updates[i]);
    for (int i = 0; tables_ && i < program.n_updates; i++) {
      const UpdateView& update = program.updates[i];
      rests_.emplace_back(machine, update, sweep.base ? sweep.base[update.layer] : nullptr, blocks_ * kBlock, threads);
    }
    if (tables_) {
      sums_.emplace(*tables_, most_inputs(program));
      return;
    }
    rows_.resize(2 * machine.n_couplings());
    for (int i = 0; i < program.n_updates; i++)
      for (int j = 0; j < program.updates[i].n_inputs; j++) {
        const InputView& input = program.updates[i].inputs[j];
        rows_[direction_of(input)] = machine.weights(input.coupling).rows(!input.transposed, threads);
      }
  }

  void pack() {
    for (int layer = 0; layer < machine_.n_layers(); layer++) pack_layer(layer);
  }

  bool run(const ProgramView& program, StopView stop) {
    if (sweep_.beta) std::copy_n(sweep_.beta + first_, n_, beta_.data());
    for (LookupRests& rests : rests_) rests.bound(sweep_.beta ? beta_.data() : nullptr, n_);
    if (sweep_.gap) std::fill_n(totals_.data(), totals_.size(), 0);
    for (int64_t s = 0; s < sweep_.n_sweeps; s++)
      for (int i = 0; i < program.n_updates; i++)
        if (!run_update(program, i, s, stop)) return false;
    if (sweep_.gap) add_biases_to_gaps();
    return true;
  }

  // Exact integers times their grids, added in the order that docs/numbers.md states.
  void write_gaps(double* out) const {
    const double grid = std::ldexp(1., -sweep_.gap->bits);
    for (int64_t c = 0; c < n_; c++) {
      double total = 0;
      for (int i = 0; i < machine_.n_couplings(); i++)
        total -= static_cast<double>(totals(i)[c]) * std::ldexp(1., -machine_.coupling(i).fraction_bits);
      out[first_ + c] = total - static_cast<double>(totals(machine_.n_couplings())[c]) * grid;
    }
  }

  void unpack_layers(const ProgramView& program) const {
    for (int i = 0; i < program.n_updates; i++) {
      const int layer = program.updates[i].layer;
      const int64_t units = machine_.layer(layer).units;
      for (int64_t b = 0; b < blocks_; b++)
        run_.unpack(bytes(layer, b), layout_, states(layer, b), units, chains_in(b));
    }
  }

 private:
  StateWords words(int layer) const { return {states(layer, 0), stride(layer)}; }
  int64_t stride(int layer) const { return layout_.words(machine_.layer(layer).units) * kBlock; }
  int16_t* states(int layer, int64_t block) const { return states_[layer].data() + block * stride(layer); }
  int chains_in(int64_t block, int blocks = 1) const {
    return static_cast<int>(std::min<int64_t>(blocks * kBlock, n_ - block * kBlock));
  }
  uint8_t* bytes(int layer, int64_t block) const {
    return static_cast<uint8_t*>(sweep_.states[layer]) + (first_ + block * kBlock) * machine_.layer(layer).units;
  }

  void pack_layer(int layer) {
    const int64_t units = machine_.layer(layer).units;
    const uint8_t* clamp = sweep_.clamp[layer];
    for (int64_t b = 0; b < blocks_; b++) {
      run_.pack(states(layer, b), layout_, bytes(layer, b), units, chains_in(b));
      if (clamp)
        run_.pack_masks(held_[layer].data() + b * units, clamp + (first_ + b * kBlock) * units, units, chains_in(b));
    }
  }

  void make_room_for_softmax(const UpdateView& update) {
    const LayerView& layer = machine_.layer(update.layer);
    if (layer.kind != Kind::kSoftmax) return;
    const size_t n_sums = update.n_inputs * groups_of(layer.units) * kUnits * kTile;
    if (softmax_sums_.size() < n_sums) softmax_sums_ = Array<int32_t>(n_sums);
    if (static_cast<int64_t>(chosen_.size()) >= layer.units) return;
    softmax_fields_ = Array<float>(layer.padded);
    softmax_held_ = Array<uint8_t>(layer.units);
    chosen_.resize(layer.units);
  }

  // A group of four units is refreshed for all chains before the next, so that its tables stay in the nearest cache.
  bool run_update(const ProgramView& program, int index, int64_t sweep, StopView stop) {
    const UpdateView& update = program.updates[index];
    const LayerView& layer = machine_.layer(update.layer);
    if (layer.kind == Kind::kSoftmax) return run_softmax(program, index, sweep, stop);
    Decision what = {};
    what.inputs = update.n_inputs;
    what.has_base = sweep_.base != nullptr;
    what.key[0] = static_cast<uint32_t>(sweep_.seed), what.key[1] = static_cast<uint32_t>(sweep_.seed >> 32);
    what.sweep = sweep_.first_sweep + static_cast<uint32_t>(sweep);
    what.layer = static_cast<uint32_t>(update.layer);
    const bool wants_means = sweep_.means[update.layer] && sweep == sweep_.n_sweeps - 1;
    const bool wants_gap = sweep_.gap && sweep == sweep_.n_sweeps - 1;
    const bool exact = wants_means || (wants_gap && has_settled_input(update));
    const LookupRests* rests = tables_ && rests_[index].pays && !exact ? &rests_[index] : nullptr;
    for (int i = 0; i < update.n_inputs; i++) what.scales[i] = rests ? rests->scales[i] : update.inputs[i].scale;
    for (int64_t unit = 0; unit < layer.units; unit += kUnits) {
      for (int u = 0; u < kUnits; u++) {  // biases are padded
        what.bias[u] = layer.biases[unit + u] + (rests ? static_cast<float>(rests->middle) : 0.f);
        if (what.has_base) what.base[u] = sweep_.base[update.layer][unit + u];
      }
      what.unit_group = static_cast<uint32_t>(unit / kUnits);
      if (unit % kUnitsPerQuestion == 0 && stop.requested()) return false;
      for (size_t tile = 0; tile < tiles_.size(); tile++) {
        const auto [block, blocks] = tiles_[tile];
        add_sums(what, update, unit / kUnits, tile, rests == nullptr);
        what.first_chain = sweep_.first_chain + static_cast<uint32_t>(first_ + block * kBlock);
        what.beta = sweep_.beta ? beta_.data() + block * kBlock : nullptr;
        what.least = rests ? rests->least.data() + block * kBlock : nullptr;
        what.most = rests ? rests->most.data() + block * kBlock : nullptr;
        uint64_t drawn[kUnits][kMaxBlocks], open[kUnits][kMaxBlocks];
        run_.decide(drawn, open, numbers_[0], wants_means ? means_[0] : nullptr, what, chains_in(block, blocks));
        if (rests) close(drawn, open, update, *rests, unit, block, blocks);
        for (int64_t u = layer.units - unit; u < kUnits; u++)  // their sums may be those of other units
          std::fill_n(drawn[u], kMaxBlocks, 0);
        place_units(update.layer, unit, block, blocks, drawn);
        if (wants_means) write_means(update.layer, unit, block, blocks);
        if (wants_gap) add_to_gaps(update, what, block, blocks, drawn);
      }
    }
    return true;
  }

  // Draws the units that are in doubt from their exact fields.
  void close(uint64_t (*drawn)[kMaxBlocks], const uint64_t (*open)[kMaxBlocks], const UpdateView& update,
             const LookupRests& rests, int64_t unit, int64_t block, int blocks) const {
    const int64_t last = std::min<int64_t>(kUnits, machine_.layer(update.layer).units - unit);
    ExactInput inputs[kMaxInputs];
    for (int64_t u = 0; u < last; u++)
      for (int b = 0; b < blocks; b++)
        for (uint64_t left = open[u][b]; left; left &= left - 1) {
          const int lane = __builtin_ctzll(left);
          if (lane >= chains_in(block + b)) break;
          const uint32_t chain = static_cast<uint32_t>(b * kBlock + lane);
          for (int i = 0; i < update.n_inputs; i++) {
            const InputView& input = update.inputs[i];
            const int n_in = input.weights.inputs;
            inputs[i] = {states(input.layer, block + b) + lane, rests.columns[i] + (unit + u) * padded(n_in), n_in,
                         input.scale};
          }
          const bool on =
              run_.decide_exactly(inputs, update.n_inputs, machine_.layer(update.layer).biases[unit + u],
                                  sweep_.beta ? &beta_[block * kBlock + chain] : nullptr,
                                  sweep_.base ? &sweep_.base[update.layer][unit + u] : nullptr, numbers_[u][chain]);
          const uint64_t bit = uint64_t{1} << lane;
          drawn[u][b] = on ? drawn[u][b] | bit : drawn[u][b] & ~bit;
        }
  }

  // chain: of the part
  float tempered(float x, int layer, int64_t unit, int64_t chain) const {
    if (!sweep_.beta) return x;
    const float beta = beta_[chain];
    return sweep_.base ? units::fma(beta, x, (1.f - beta) * sweep_.base[layer][unit]) : beta * x;
  }

  // A softmax layer is small: its sums are kept for all units, and each chain then chooses one of them.
  bool run_softmax(const ProgramView& program, int index, int64_t sweep, StopView stop) {
    const UpdateView& update = program.updates[index];
    const int64_t groups = groups_of(machine_.layer(update.layer).units);
    for (size_t tile = 0; tile < tiles_.size(); tile++) {
      for (int64_t group = 0; group < groups; group++) {
        if (stop.requested()) return false;
        for (int i = 0; i < update.n_inputs; i++)
          std::copy_n(exact_sums(i, update.inputs[i], group, tile), kUnits * kTile,
                      softmax_sums_.data() + (i * groups + group) * kUnits * kTile);
      }
      choose_units(program, index, sweep, tiles_[tile].block, tiles_[tile].blocks);
    }
    return true;
  }

  void choose_units(const ProgramView& program, int index, int64_t sweep, int64_t block, int blocks) {
    const UpdateView& update = program.updates[index];
    const int64_t units = machine_.layer(update.layer).units, sums = groups_of(units) * kUnits * kTile;
    const bool is_last = sweep == sweep_.n_sweeps - 1, wants_gap = sweep_.gap && is_last;
    float* means = is_last ? sweep_.means[update.layer] : nullptr;
    std::fill(chosen_.begin(), chosen_.end(), Chosen{});
    for (int c = 0; c < chains_in(block, blocks); c++) {
      const int64_t chain = first_ + block * kBlock + c;
      const int64_t on = choose_unit(update, sweep, block, c, means ? means + chain * units : nullptr);
      chosen_[on].chains[c / kBlock] |= uint64_t{1} << c % kBlock;
      if (!wants_gap) continue;
      for (int i = 0; i < update.n_inputs; i++)
        if (update.inputs[i].settled)
          totals(update.inputs[i].coupling)[block * kBlock + c] += softmax_sums_[i * sums + on * kTile + c];
    }
    for (int64_t u = 0; u < units; u++)
      run_.place(states(update.layer, block) + u / layout_.units * kBlock, stride(update.layer), layout_.bit(u),
                 chosen_[u].chains, nullptr, blocks);
  }

  // The unit that is on from now on in chain c of a tile; means: [units] or null.
  int64_t choose_unit(const UpdateView& update, int64_t sweep, int64_t block, int c, float* means) {
    const LayerView& layer = machine_.layer(update.layer);
    const int64_t b = block + c / kBlock, lane = c % kBlock, sums = groups_of(layer.units) * kUnits * kTile;
    const bool has_held = held_[update.layer].size() > 0;
    for (int64_t u = 0; has_held && u < layer.units; u++) {
      softmax_held_[u] = held_[update.layer][b * layer.units + u] >> lane & 1;
      const int word = states(update.layer, b)[u / layout_.units * kBlock + lane];
      if (!softmax_held_[u] || !(word >> layout_.bit(u) & 1)) continue;
      for (int64_t i = 0; means && i < layer.units; i++) means[i] = i == u;
      return u;
    }
    for (int64_t u = 0; u < layer.units; u++) {
      float x = layer.biases[u];
      for (int i = 0; i < update.n_inputs; i++)
        x = units::fma(static_cast<float>(softmax_sums_[i * sums + u * kTile + c]), update.inputs[i].scale, x);
      softmax_fields_[u] = tempered(x, update.layer, u, block * kBlock + c);
    }
    uint32_t words[4] = {0, sweep_.first_chain + static_cast<uint32_t>(first_ + block * kBlock + c),
                         sweep_.first_sweep + static_cast<uint32_t>(sweep),
                         units::layer_and_purpose(static_cast<uint32_t>(update.layer), units::kGibbs)};
    units::philox(words[0], words[1], words[2], words[3], sweep_.seed);
    return kernels().draw_softmax(means, softmax_fields_.data(), layer.units, has_held ? softmax_held_.data() : nullptr,
                                  words[0]);
  }

  // Those of all tiles that go together are made with the first of them.
  void add_sums(Decision& what, const UpdateView& update, int64_t unit_group, size_t tile, bool exact) {
    const size_t n = std::min(LookupSums::kTogether, tiles_.size() - tile), at = tile % LookupSums::kTogether;
    for (int i = 0; i < update.n_inputs; i++) {
      const InputView& input = update.inputs[i];
      if (!sums_) {
        what.sums[i] = exact_sums(i, input, unit_group, tile);
        continue;
      }
      const std::span<const Tile> together = std::span(tiles_).subspan(tile, n);
      if (at == 0 && exact)
        sums_->add_exact(i, direction_of(input), words(input.layer), unit_group, together);
      else if (at == 0)
        sums_->add_high(i, direction_of(input), words(input.layer), unit_group, together);
      what.sums[i] = sums_->exact(i, at);
      what.high[i] = sums_->high(i, at);
    }
  }

  // Of input i of an update, for four units of a tile.
  const int32_t* exact_sums(int i, const InputView& input, int64_t unit_group, size_t tile) {
    if (sums_) {
      sums_->add_exact(i, direction_of(input), words(input.layer), unit_group, std::span(tiles_).subspan(tile, 1));
      return sums_->exact(i, 0);
    }
    const int n_in = input.weights.inputs;
    const int16_t* rows[kUnits];  // the last of them stand for those that do not exist
    for (int u = 0; u < kUnits; u++)
      rows[u] = rows_[direction_of(input)] +
                std::min<int64_t>(unit_group * kUnits + u, input.weights.outputs - 1) * padded(n_in);
    const int64_t block = tiles_[tile].block;
    run_.accumulate_few(few_[i], states(input.layer, block), rows, n_in, chains_in(block));
    return few_[i];
  }

  void place_units(int layer, int64_t unit, int64_t block, int blocks, const uint64_t (*drawn)[kMaxBlocks]) {
    const int64_t units = machine_.layer(layer).units, last = std::min<int64_t>(kUnits, units - unit);
    for (int64_t u = unit; u < unit + last; u++) {
      uint64_t held[kMaxBlocks] = {};
      if (held_[layer].size())
        for (int b = 0; b < blocks; b++) held[b] = held_[layer][(block + b) * units + u];
      run_.place(states(layer, block) + u / layout_.units * kBlock, stride(layer), layout_.bit(u), drawn[u - unit],
                 held, blocks);
    }
  }

  int64_t* totals(int i) const { return totals_.data() + i * blocks_ * kBlock; }

  // The sums that four units were drawn from are what the couplings' energies need, once neither end changes any more.
  void add_to_gaps(const UpdateView& update, const Decision& what, int64_t block, int blocks,
                   const uint64_t (*drawn)[kMaxBlocks]) {
    for (int i = 0; i < update.n_inputs; i++) {
      const InputView& input = update.inputs[i];
      if (!input.settled) continue;
      const int64_t most = tables_ ? tables_->directions[direction_of(input)].most_sum : INT64_MAX;
      run_.add_drawn(totals(input.coupling) + block * kBlock, what.sums[i], most, drawn, blocks);
    }
  }

  void add_biases_to_gaps() {
    for (int layer = 0; layer < machine_.n_layers(); layer++)
      for (int64_t b = 0; b < blocks_; b++)
        run_.add_values(totals(machine_.n_couplings()) + b * kBlock, states(layer, b), layout_,
                        sweep_.gap->biases[layer], machine_.layer(layer).units);
  }

  void write_means(int layer, int64_t unit, int64_t block, int blocks) {
    const int64_t units = machine_.layer(layer).units, last = std::min<int64_t>(kUnits, units - unit);
    const int64_t n = std::min<int64_t>(n_ - block * kBlock, static_cast<int64_t>(blocks) * kBlock);
    float* out = sweep_.means[layer] + (first_ + block * kBlock) * units + unit;
    for (int64_t c = 0; c < n; c++)
      for (int64_t u = 0; u < last; u++) {
        const int64_t b = block + c / kBlock, lane = c % kBlock;
        const bool held = held_[layer].size() && held_[layer][b * units + unit + u] >> lane & 1;
        const int word = states(layer, b)[(unit + u) / layout_.units * kBlock + lane];
        out[c * units + u] = held ? static_cast<float>(word >> layout_.bit(unit + u) & 1) : means_[u][c];
      }
  }

  const lookup::Kernels& run_ = *kernels().lookup;
  const Machine& machine_;
  const SweepView& sweep_;
  int64_t first_, n_, blocks_;
  std::vector<Tile> tiles_;
  const LookupTables* tables_;  // null where they are made in registers
  Layout layout_;
  std::vector<const int16_t*> rows_;    // [2 * couplings], the weights of each output unit in turn, where no tables are
  std::vector<Array<int16_t>> states_;  // per layer [blocks][words][64]
  std::vector<Array<uint64_t>> held_;   // per layer [blocks][units], empty where nothing is clamped
  std::vector<LookupRests> rests_;      // of each update; empty where there are no tables
  Array<float> beta_;                   // [64 blocks]
  Array<int64_t> totals_;               // [couplings, then biases][64 blocks], of the gaps; empty where not wanted
  // Of the largest softmax layer: [inputs][unit groups][kUnits * kTile], a chain's tempered fields and held units, and
  // the chains in which each unit is on.
  Array<int32_t> softmax_sums_;
  Array<float> softmax_fields_;
  Array<uint8_t> softmax_held_;
  struct Chosen {
    uint64_t chains[kMaxBlocks];
  };
  std::vector<Chosen> chosen_;
  std::optional<LookupSums> sums_;  // none where tables are made in registers, whose sums are `few_`
  alignas(64) int32_t few_[kMaxInputs][kUnits * kTile];
  alignas(64) float means_[kUnits][kTile];
  alignas(64) uint32_t numbers_[kUnits][kTile];
};

bool lookup_suits(const Machine& machine, const ProgramView& program) {
  if (!kernels().lookup) return false;
  for (int layer = 0; layer < machine.n_layers(); layer++)
    if (machine.layer(layer).kind == Kind::kGaussian) return false;
  for (int i = 0; i < program.n_updates; i++)
    if (program.updates[i].n_inputs > kMaxInputs) return false;
  return true;
}

std::shared_ptr<LookupPart> lookup_part(const Machine& machine, const ProgramView& program, const SweepView& sweep,
                                        int64_t first_chain, int64_t n_chains, LookupTablesIn tables, int threads) {
  return std::make_shared<LookupPart>(machine, program, sweep, first_chain, n_chains, tables, threads);
}

void lookup_pack(LookupPart& part) { part.pack(); }

bool lookup_sweep(LookupPart& part, const ProgramView& program, double* gaps, StopView stop) noexcept {
  if (!part.run(program, stop)) return false;
  if (gaps) part.write_gaps(gaps);
  return true;
}

void lookup_unpack(const LookupPart& part, const ProgramView& program) { part.unpack_layers(program); }

}  // namespace bm::cpu
