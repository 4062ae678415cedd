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
constexpr int kWordTable = kWordGroups * kUnits * kEntries;  // int16 entries of high tables per state word, four units
constexpr int kLowUnits = 2;                                 // output units whose low limbs share an entry, as bytes
constexpr int kLowWordTable = kWordTable / kLowUnits;        // the same of low tables
constexpr int kMaxInputs = 16;                               // couplings that may lead to one layer
constexpr int kLowBits = 4;                                  // of table sums, in their low limbs
constexpr int kMostLow = (1 << kLowBits) - 1;
constexpr int kByteWords = 255 / kMostLow / kWordGroups;  // over which low sums fit bytes
constexpr int kRunWords = 20;                             // whose tables leave room in the first-level cache
constexpr int64_t kMostNarrow = INT32_MAX / kUnits;       // sums of which four add up in 32 bits
constexpr int kMaxChunks = 8;                             // runs of words whose high sums are kept side by side
static_assert(kMaxChunks * kRunWords * kWordGroups * kMostLow < 1 << 16);  // low sums of as many

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
  const int32_t* sums[kMaxInputs];  // each [4][kTile]; or, where `least` is set,
  const int16_t* high[kMaxInputs];  // rounded sums, likewise
  float scales[kMaxInputs];
  float bias[kUnits], base[kUnits];
  bool has_base;
  const float* beta;          // [64 blocks] or null
  const float *least, *most;  // [64 blocks], factors of exp(-x) between which that of the exact field lies; null: x is
  uint32_t key[2], unit_group, first_chain, sweep, layer;
};

// One input of one unit of one chain.
struct ExactInput {
  const int16_t* words;    // of the chain, kBlock apart
  const int16_t* weights;  // of the unit, [n_in]
  int n_in;
  float scale;
};

struct Kernels {
  // Subset sums of W_q for four output units over all input units, split as sum = 16 high + low, 0 <= low < 16.
  //   high      [words][3][4][32]: entry s of input group g and unit u is that of the sum over the set bits of s
  //   low       [words][3][2][32]: units 2 i in the low bytes of [i], 2 i + 1 in the high ones
  //   weights   [4 rows][n_in] by `pitch`; rows from n_out on count as zero
  // Returns a number of words, kRunWords at most, such that over any run of so many the high sums fit 16 bits.
  int (*build_tables)(int16_t* high, int16_t* low, const int16_t* weights, int64_t pitch, int n_in, int n_out,
                      int words);

  // sums[4][kTile] = (or +=) sums of high limbs over `words` state words, divided by 2^shift and rounded down.
  //   states: the first word of the first block; blocks lie `block_stride` int16 apart
  //   ahead:  tables that are wanted soon; `lines_ahead` cache lines are fetched for every word
  void (*accumulate_high)(int16_t* sums, bool add, int shift, const int16_t* states, int64_t block_stride,
                          const int16_t* high, int words, int blocks, const int16_t* ahead, int lines_ahead);
  // sums[4][kTile] = (or +=) sums of low limbs over at most kByteWords words
  void (*accumulate_low)(int16_t* sums, bool add, const int16_t* states, int64_t block_stride, const int16_t* low,
                         int words, int blocks, const int16_t* ahead, int lines_ahead);
  // sums[4][kTile] = (or +=) 16 times the sums of high limbs over `runs` runs of words, [runs][4][kTile], plus those of
  // low limbs
  void (*widen)(int32_t* sums, bool add, const int16_t* high, int runs, const int16_t* low, int blocks);

  // sums[4][kTile] without tables in memory, for the first `n_chains` of a block.
  //   rows: for each of the four output units its weights, [n_in] and zeros up to a multiple of four
  void (*accumulate_few)(int32_t* sums, const int16_t* states, const int16_t* const* rows, int n_in, int n_chains);

  // drawn[unit][block] = the units that turn on, one bit a chain; means[4][kTile] their probabilities unless null.
  // open[unit][block] = those of which that is not certain; random[4][kTile] their random numbers then
  void (*decide)(uint64_t (*drawn)[kMaxBlocks], uint64_t (*open)[kMaxBlocks], uint32_t* random, float* means,
                 const Decision& what, int n_chains);

  // Whether a unit turns on, from its exact field. beta: null is 1; base: of the unit, or null
  bool (*decide_exactly)(const ExactInput* inputs, int n_inputs, float bias, const float* beta, const float* base,
                         uint32_t random);

  // Writes one unit's bits into its state words (64 words a block); `held` chains keep their bit.
  void (*place)(int16_t* words, int64_t block_stride, int bit, const uint64_t* drawn, const uint64_t* held, int blocks);

  // totals[64 blocks] += over four units that a chain turned on, its sums[4][kTile], of which `most` is a bound.
  void (*add_drawn)(int64_t* totals, const int32_t* sums, int64_t most, const uint64_t (*drawn)[kMaxBlocks],
                    int blocks);
  // totals[64] of one block += over the units that are on in a chain, values[units].
  void (*add_values)(int64_t* totals, const int16_t* words, Layout layout, const int64_t* values, int64_t units);

  // uint8 0/1 states [n_chains <= 64][units] to one block of state words, and back.
  void (*pack)(int16_t* words, Layout layout, const uint8_t* states, int64_t units, int n_chains);
  void (*unpack)(uint8_t* states, Layout layout, const int16_t* words, int64_t units, int n_chains);

  // masks[unit] = the chains for which a byte of `bytes` [n_chains <= 64][units] is not 0.
  void (*pack_masks)(uint64_t* masks, const uint8_t* bytes, int64_t units, int n_chains);
};

}  // namespace bm::cpu::lookup
