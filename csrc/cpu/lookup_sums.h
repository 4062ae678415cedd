// Sums of the lookup kernel by tables in memory: of four output units, for some tiles of chains that go together.
#pragma once

#include <span>

#include "cpu/lookup_tables.h"
#include "cpu/machine.h"

namespace bm::cpu {

struct Tile {
  int64_t block;  // the first of `blocks` of 64 chains
  int blocks;
};

// States of a layer: words of one block after the other, `stride` apart.
struct StateWords {
  const int16_t* words;
  int64_t stride;
};

// Each run of words of all tiles meets its tables in the nearest cache, and while they are at work the tables of the
// next four units are fetched into the second-level one.
class LookupSums {
 public:
  static constexpr size_t kTogether = 8;  // tiles

  LookupSums(const LookupTables& tables, int most_inputs);

  // Sums of input i of an update for at most kTogether tiles: those of high limbs over runs of words, divided by
  // 2^coarse, and exact ones.
  void add_high(int i, int direction, const StateWords& states, int64_t unit_group, std::span<const Tile> tiles);
  void add_exact(int i, int direction, const StateWords& states, int64_t unit_group, std::span<const Tile> tiles);

  // What the last such call has made of one of its tiles, [4][kTile]
  const int16_t* high(int i, size_t tile) const { return high_.data() + place(i, tile); }
  const int32_t* exact(int i, size_t tile) const { return exact_.data() + place(i, tile); }

 private:
  static constexpr size_t kSums = lookup::kUnits * lookup::kTile;
  static size_t place(int i, size_t tile) { return (i * kTogether + tile) * kSums; }
  void add_chunk(int16_t* sums, size_t pitch, bool add, int shift, const Direction& d, const StateWords& states,
                 int64_t unit_group, std::span<const Tile> tiles, int word, int end) const;
  void add_low(const Direction& d, const StateWords& states, int64_t unit_group, std::span<const Tile> tiles, int begin,
               int end);

  const lookup::Kernels& run_;
  const LookupTables& tables_;
  Array<int32_t> exact_;         // [inputs][kTogether][4][kTile]
  Array<int16_t> high_;          // the same
  Array<int16_t> chunks_, low_;  // of one input: [kTogether][kMaxChunks][4][kTile], [kTogether][4][kTile]
};

}  // namespace bm::cpu
