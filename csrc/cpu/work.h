// What the drivers of the operations share: working memory per thread, padded base biases, cutting work into parts.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/machine.h"

namespace bm::cpu {

// Working memory of every thread for the largest layer of a machine.
class ThreadScratch {
 public:
  // n_exact: inputs of an update whose sums are wanted beside fields, at most
  ThreadScratch(const Machine& machine, int threads, int n_exact = 0) {
    int32_t size = 0;
    for (int i = 0; i < machine.n_layers(); i++) size = std::max(size, machine.layer(i).padded);
    for (int t = 0; t < threads; t++) {
      rows_.emplace_back(static_cast<size_t>(kBlockChains) * 2 * size);
      sums_.emplace_back(size);
      fields_.emplace_back(static_cast<size_t>(kBlockChains) * size);
      if (n_exact) exact_.emplace_back(static_cast<size_t>(n_exact) * kBlockChains * size);
    }
  }
  Scratch operator[](int thread) const {
    return {rows_[thread].data(),
            sums_[thread].data(),
            fields_[thread].data(),
            exact_.empty() ? nullptr : exact_[thread].data(),
            {}};
  }

 private:
  std::vector<Array<uint16_t>> rows_;
  std::vector<Array<int32_t>> sums_, exact_;
  std::vector<Array<float>> fields_;
};

inline int most_inputs(const ProgramView& program) {
  int most = 0;
  for (int i = 0; i < program.n_updates; i++) most = std::max(most, program.updates[i].n_inputs);
  return most;
}

// Base biases copied to padded arrays; null where there is no base.
class PaddedBase {
 public:
  PaddedBase(const Machine& machine, const std::vector<const float*>& base) {
    for (size_t i = 0; i < base.size(); i++) {
      const LayerView& layer = machine.layer(static_cast<int>(i));
      arrays_.emplace_back(layer.padded);
      std::fill(std::copy_n(base[i], layer.units, arrays_.back().data()), arrays_.back().data() + layer.padded, 0.f);
      pointers_.push_back(arrays_.back().data());
    }
  }
  const float* const* data() const { return pointers_.empty() ? nullptr : pointers_.data(); }

 private:
  std::vector<Array<float>> arrays_;
  std::vector<const float*> pointers_;
};

// Threads worth waking for this many operations of vectors' lanes, multiply-adds or the like. Waking and joining them
// takes microseconds, and far more where other processes hold the cores.
inline int useful_threads(double operations, int threads) {
  constexpr double kOperationsPerThread = 2e6;
  return static_cast<int>(std::clamp(operations / kOperationsPerThread, 1., static_cast<double>(threads)));
}

// Of a pass over weights, for each of them: such passes wait for caches, and cores that share them have most at hand.
constexpr double kPerWeight = 12;

struct Part {
  int64_t first, n;
};

// Part `i` of `parts` of n items, cut at multiples of `grain`.
inline Part part(int64_t n, int i, int parts, int64_t grain = 1) {
  const int64_t grains = (n + grain - 1) / grain;
  const int64_t begin = std::min(n, grains * i / parts * grain), end = std::min(n, grains * (i + 1) / parts * grain);
  return {begin, end - begin};
}

// Of one chain.
inline double multiply_adds_of(const InputView& input) {
  return static_cast<double>(input.weights.inputs) * input.weights.outputs;
}

// For all updates of a program.
inline double multiply_adds(const ProgramView& program, int64_t n_chains) {
  double total = 0;
  for (int i = 0; i < program.n_updates; i++)
    for (int j = 0; j < program.updates[i].n_inputs; j++)
      total += multiply_adds_of(program.updates[i].inputs[j]) * static_cast<double>(n_chains);
  return total;
}

constexpr int64_t kSampleChains = 64;  // that tell what all are like

// Per layer: share of its binary values that are 1, in the first chains; 0 for a real one.
std::vector<double> shares_on(const Machine& machine, const ValuesView* values, int64_t n_chains);

// Per layer: whether the dense kernel pays, given the shares of their rows that would have to be added otherwise.
std::vector<bool> dense_layers(const std::vector<double>& shares, int64_t n_chains, int threads);

// The same for rounded sums.
std::vector<bool> rounded_layers(const std::vector<double>& shares, int64_t n_chains, int threads);

// Throws std::invalid_argument, naming the layer, where a layer that is read has a binary value above 1 or a real one
// that is not finite.
void check_values(const Machine& machine, const ValuesView* values, const std::vector<bool>& is_read, int64_t n_chains,
                  int threads);

}  // namespace bm::cpu
