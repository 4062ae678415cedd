#include "cpu/lookup_sums.h"

#include <algorithm>

#include "cpu/dispatch.h"

namespace bm::cpu {

using namespace lookup;

namespace {

// Cache lines of a word's tables that each tile fetches of the next four units: the first tiles do so for all.
int64_t lines_ahead(const Direction& d, int64_t unit_group, std::span<const Tile> tiles, int word_table) {
  if (tiles[0].block > 0 || unit_group + 1 == d.unit_groups) return 0;
  const int64_t lines = word_table / kEntries, n = static_cast<int64_t>(tiles.size());
  return (lines + n - 1) / n;
}

const int16_t* block_words(const StateWords& states, const Tile& tile, int word) {
  return states.words + tile.block * states.stride + static_cast<int64_t>(word) * kBlock;
}

}  // namespace

LookupSums::LookupSums(const LookupTables& tables, int most_inputs)
    : run_(*kernels().lookup),
      tables_(tables),
      exact_(most_inputs * kTogether * kSums),
      high_(most_inputs * kTogether * kSums),
      chunks_(kTogether * kMaxChunks * kSums),
      low_(kTogether * kSums) {}

void LookupSums::add_high(int i, int direction, const StateWords& states, int64_t unit_group,
                          std::span<const Tile> tiles) {
  const Direction& d = tables_.directions[direction];
  for (int word = 0; word < d.words; word += d.chunk_words)
    add_chunk(high_.data() + place(i, 0), kSums, word > 0, d.coarse, d, states, unit_group, tiles, word, d.words);
}

void LookupSums::add_exact(int i, int direction, const StateWords& states, int64_t unit_group,
                           std::span<const Tile> tiles) {
  const Direction& d = tables_.directions[direction];
  for (int begin = 0; begin < d.words; begin += d.exact_words) {
    const int end = std::min(begin + d.exact_words, d.words);
    int runs = 0;
    for (int word = begin; word < end; word += d.chunk_words, runs++)
      add_chunk(chunks_.data() + runs * kSums, kMaxChunks * kSums, false, 0, d, states, unit_group, tiles, word, end);
    add_low(d, states, unit_group, tiles, begin, end);
    for (size_t t = 0; t < tiles.size(); t++)
      run_.widen(exact_.data() + place(i, t), begin > 0, chunks_.data() + t * kMaxChunks * kSums, runs,
                 low_.data() + t * kSums, tiles[t].blocks);
  }
}

// Sums of one run of words, which ends at `end` at the latest; those of tiles lie `pitch` apart.
void LookupSums::add_chunk(int16_t* sums, size_t pitch, bool add, int shift, const Direction& d,
                           const StateWords& states, int64_t unit_group, std::span<const Tile> tiles, int word,
                           int end) const {
  const int words = std::min(d.chunk_words, end - word);
  const int64_t lines = lines_ahead(d, unit_group, tiles, kWordTable);
  const int16_t* ahead = d.highs(unit_group + 1, word);
  for (size_t t = 0; t < tiles.size(); t++, ahead += lines * words * kEntries)
    run_.accumulate_high(sums + t * pitch, add, shift, block_words(states, tiles[t], word), states.stride,
                         d.highs(unit_group, word), words, tiles[t].blocks, ahead, static_cast<int>(lines));
}

void LookupSums::add_low(const Direction& d, const StateWords& states, int64_t unit_group, std::span<const Tile> tiles,
                         int begin, int end) {
  const int64_t lines = lines_ahead(d, unit_group, tiles, kLowWordTable);
  for (int word = begin; word < end; word += kByteWords) {
    const int words = std::min(kByteWords, end - word);
    const int16_t* ahead = d.lows(unit_group + 1, word);
    for (size_t t = 0; t < tiles.size(); t++, ahead += lines * words * kEntries)
      run_.accumulate_low(low_.data() + t * kSums, word > begin, block_words(states, tiles[t], word), states.stride,
                          d.lows(unit_group, word), words, tiles[t].blocks, ahead, static_cast<int>(lines));
  }
}

}  // namespace bm::cpu
