// The tables of the lookup kernel that lie in memory.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/lookup_kernels.h"
#include "cpu/views.h"

namespace bm::cpu {

inline int64_t groups_of(int64_t units) { return (units + lookup::kUnits - 1) / lookup::kUnits; }

// Memory for tables, not initialised. Tables are many times larger than what the address translation cache covers with
// small pages: large ones make sweeps about a tenth faster and spare most of the page faults of building.
class TableMemory {
 public:
  TableMemory() = default;
  explicit TableMemory(int64_t entries);
  int16_t* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(int16_t* data) const { std::free(data); }
  };
  std::unique_ptr<int16_t[], Free> data_;
};

// The tables of one direction of one coupling.
struct Direction {
  int words = 0;        // state words of the input layer
  int chunk_words = 0;  // words whose sums of high limbs fit 16 bits, and whose tables the nearest cache
  int coarse = 0;       // sums of high limbs over chunks, divided by 2^coarse, add up in 16 bits
  int exact_words = 0;  // a few chunks
  int64_t unit_groups = 0;
  int64_t most_sum = 0;   // a bound of the sizes of sums
  TableMemory high, low;  // [groups of four output units][words][kWordTable], [..][..][kLowWordTable]

  int64_t place(int64_t unit_group, int word) const { return unit_group * words + word; }
  const int16_t* highs(int64_t unit_group, int word) const {
    return high.data() + place(unit_group, word) * lookup::kWordTable;
  }
  const int16_t* lows(int64_t unit_group, int word) const {
    return low.data() + place(unit_group, word) * lookup::kLowWordTable;
  }
  int chunks() const { return (words + chunk_words - 1) / chunk_words; }
};

struct LookupTables {
  std::vector<Direction> directions;  // [2 * couplings]
};

inline int direction_of(const InputView& input) { return 2 * input.coupling + input.transposed; }

}  // namespace bm::cpu
