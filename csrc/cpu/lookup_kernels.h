// Kernels of the lookup sweep (lookup.h says what it is), as a table like kernels.h for the instruction sets that have
// them.
//
// Chains come in blocks of 64. A layer's states are int16 words [block][word][64]: each holds some consecutive units of
// one chain, in the layout that the kind of tables asks for. Kernels work on one to three blocks at a time and on four
// output units, which share the four numbers of one Philox call.
#pragma once

#include <cstdint>

namespace bm::cpu::lookup {

constexpr int kGroup = 5;                                    // input units that form one table index
constexpr int kEntries = 1 << kGroup;                        // entries per table
constexpr int kWordGroups = 3;                               // groups per state word
constexpr int kWordUnits = kGroup * kWordGroups;             // units per state word
constexpr int kLanes = 32;                                   // chains per register
constexpr int kBlock = 64;                                   // chains per block
constexpr int kMaxBlocks = 3;                                // blocks per tile
constexpr int kTile = kBlock * kMaxBlocks;                   // chains per tile
constexpr int kUnits = 4;                                    // output units per tile
constexpr int kWordTable = kWordGroups * kUnits * kEntries;  // int16 table entries per state word, four units, one limb
constexpr int kMaxInputs = 16;                               // couplings that may lead to one layer
constexpr int kLowBits = 6;                                  // of table sums, in their low limbs
constexpr int kMostLow = (1 << kLowBits) - 1;

// How units lie in state words; the other bits are 0.
struct Layout {
  int units;      // per word
  int first_bit;  // of the first of them
  constexpr int64_t words(int64_t n) const { return (n + units - 1) / units; }
  constexpr int bit(int64_t unit) const { return first_bit + static_cast<int>(unit % units); }
};
constexpr Layout kTabled = {kWordUnits, 0};  // tables in memory: three groups of five
constexpr Layout kInRegisters = {4, 1};      // tables in registers: one group of four, above the bit that tells limbs

struct Decision {
  int inputs;
  const int32_t* sums[kMaxInputs];  // each [4][kTile]
  float scales[kMaxInputs];
  float bias[kUnits], base[kUnits];
  bool has_base;
  const float* beta;          // [64 blocks] or null
  const float *least, *most;  // [64 blocks], factors of exp(-x) between which that of the exact field lies; null: x is
  uint32_t key[2], unit_group, first_chain, sweep, layer;
};

struct Kernels {
  // Subset sums of W_q for four output units over all input units, split as sum = 64 high + low, 0 <= low < 64.
  //   high, low [words][3][4][32]: entry s of input group g and unit u is the sum over the set bits of s
  //   weights   [4 rows][n_in] by `pitch`; rows from n_out on count as zero
  // Returns a number of words such that over any run of so many the high and the low sums fit 16 bits each.
  int (*build_tables)(int16_t* high, int16_t* low, const int16_t* weights, int64_t pitch, int n_in, int n_out,
                      int words);

  // sums[4][kTile] = (or +=) sum over `words` state words of the tables' entries, exact in int32.
  //   states: the first word of the first block; blocks lie `block_stride` int16 apart
  // Without low tables, which may be null, halfway between the least and the most that these could add.
  //   ahead:  tables that are wanted soon; `lines_ahead` cache lines of each are fetched for every word
  void (*accumulate)(int32_t* sums, bool add, const int16_t* states, int64_t block_stride, const int16_t* high,
                     const int16_t* low, int words, int blocks, const int16_t* high_ahead, const int16_t* low_ahead,
                     int lines_ahead);

  // The same sums without tables in memory, for the first `n_chains` of a block.
  //   rows: for each of the four output units its weights, [n_in] and zeros up to a multiple of four
  void (*accumulate_few)(int32_t* sums, const int16_t* states, const int16_t* const* rows, int n_in, int n_chains);

  // drawn[unit][block] = the units that turn on, one bit a chain; means[4][kTile] their probabilities unless null.
  // open[unit][block] = those of which that is not certain; random[4][kTile] their random numbers then
  void (*decide)(uint64_t (*drawn)[kMaxBlocks], uint64_t (*open)[kMaxBlocks], uint32_t* random, float* means,
                 const Decision& what, int n_chains);

  // The sum of one output unit's weights [n_in] over the inputs of one chain, whose words lie kBlock apart.
  int32_t (*sum_of_words)(const int16_t* words, const int16_t* weights, int n_in);

  // Writes one unit's bits into its state words (64 words a block); `held` chains keep their bit.
  void (*place)(int16_t* words, int64_t block_stride, int bit, const uint64_t* drawn, const uint64_t* held, int blocks);

  // totals[64 blocks] += over four units that a chain turned on, its sums[4][kTile]; or, for every chain, `values[4]`.
  void (*add_drawn)(int64_t* totals, const int32_t* sums, const uint64_t (*drawn)[kMaxBlocks], int blocks);
  void (*add_drawn_values)(int64_t* totals, const int64_t* values, const uint64_t (*drawn)[kMaxBlocks], int blocks);

  // uint8 0/1 states [n_chains <= 64][units] to one block of state words, and back.
  void (*pack)(int16_t* words, Layout layout, const uint8_t* states, int64_t units, int n_chains);
  void (*unpack)(uint8_t* states, Layout layout, const int16_t* words, int64_t units, int n_chains);

  // masks[unit] = the chains for which a byte of `bytes` [n_chains <= 64][units] is not 0.
  void (*pack_masks)(uint64_t* masks, const uint8_t* bytes, int64_t units, int n_chains);
};

}  // namespace bm::cpu::lookup
