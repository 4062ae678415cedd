#include "cpu/lookup_tables.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/lookup.h"

namespace bm::cpu {

using namespace lookup;

TableMemory::TableMemory(int64_t entries) {
  constexpr size_t kLargePage = size_t{1} << 21;
  const size_t bytes = static_cast<size_t>(entries) * sizeof(int16_t);
  const size_t alignment = bytes < kLargePage ? 64 : kLargePage;
  const size_t size = (bytes + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<int16_t*>(std::aligned_alloc(alignment, size)));
  if (!data_) throw std::bad_alloc();
#ifdef __linux__
  if (alignment == kLargePage) madvise(data_.get(), size, MADV_HUGEPAGE);
#endif
}

namespace {

// Weights are needed output by output here, which is how the opposite direction's rows lie.
Direction build_direction(const CouplingWeights& weights, bool transposed, int threads) {
  Direction d;
  const WeightsView by_output = weights.shape(!transposed);
  const int16_t* rows = weights.rows(!transposed, threads);
  const int n_in = by_output.outputs, n_out = by_output.inputs, groups = static_cast<int>(groups_of(n_out));
  d.words = d.chunk_words = static_cast<int>(kTabled.words(n_in));
  d.unit_groups = groups;
  d.high = TableMemory(d.place(groups, 0) * kWordTable);
  d.low = TableMemory(d.place(groups, 0) * kLowWordTable);
  std::vector<int> fit(groups);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int g = 0; g < groups; g++) {
    const int64_t first = static_cast<int64_t>(g) * kUnits;
    fit[g] = kernels().lookup->build_tables(d.high.data() + d.place(g, 0) * kWordTable,
                                            d.low.data() + d.place(g, 0) * kLowWordTable,
                                            rows + first * by_output.stride, by_output.stride, n_in,
                                            static_cast<int>(std::min<int64_t>(kUnits, n_out - first)), d.words);
  }
  for (const int words : fit) d.chunk_words = std::min(d.chunk_words, words);
  // Rounding down makes each group's high limb, and each chunk's share, smaller by less than one.
  d.most_sum = weights.bounds(transposed, threads).all;
  const int64_t most = (d.most_sum >> kLowBits) + 1 + int64_t{d.words} * kWordGroups;
  while ((most >> d.coarse) + 1 + d.chunks() > 32767) d.coarse++;
  d.exact_words = std::min(d.words, kMaxChunks * d.chunk_words);
  return d;
}

}  // namespace

int64_t lookup_bytes(const Machine& machine) {
  constexpr int64_t kBytes = sizeof(int16_t) * (kWordTable + kLowWordTable);
  int64_t bytes = 0;
  for (int c = 0; c < machine.n_couplings(); c++) {
    const int64_t lower = machine.layer(machine.coupling(c).lower).units;
    const int64_t upper = machine.layer(machine.coupling(c).upper).units;
    bytes += (groups_of(upper) * kTabled.words(lower) + groups_of(lower) * kTabled.words(upper)) * kBytes;
  }
  return bytes;
}

bool lookup_prepare(const Machine& machine, int threads) {
  try {
    std::call_once(machine.lookup_once, [&] {
      auto tables = std::make_shared<LookupTables>();
      for (int c = 0; c < machine.n_couplings(); c++)
        for (const bool transposed : {false, true})
          tables->directions.push_back(build_direction(machine.weights(c), transposed, threads));
      machine.lookup_tables = std::move(tables);
      machine.has_lookup_tables = true;
    });
  } catch (const std::bad_alloc&) {  // a later call tries again
    return false;
  }
  return true;
}

}  // namespace bm::cpu
