// The tables of the lookup kernel that lie in memory.
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "cpu/lookup_kernels.h"

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
  int chunk_words = 0;  // words whose sums fit 16 bits: accumulators are emptied that often
  int64_t unit_groups = 0;
  TableMemory high, low;  // [groups of four output units][words][kWordTable]

  int64_t offset(int64_t unit_group, int word) const { return (unit_group * words + word) * lookup::kWordTable; }
};

struct LookupTables {
  std::vector<Direction> directions;  // [2 * couplings], as in Machine::weights
};

}  // namespace bm::cpu
