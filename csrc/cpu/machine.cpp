#include "cpu/machine.h"

#include <cmath>
#include <cstring>

#include "cpu/work.h"

namespace bm {
namespace {

// to[i] = from[i] for n values, then `rest` up to `size`
template <class T>
void copy_padded(T* to, const T* from, int64_t n, int64_t size, T rest) {
  std::memcpy(to, from, n * sizeof(T));
  for (int64_t i = n; i < size; i++) to[i] = rest;
}

typedef int16_t Eight __attribute__((vector_size(16)));

// Transposes 8 x 8 values in registers: three rounds of interleaving rows that are half the rest apart.
void transpose_tile(int16_t* to, int64_t to_stride, const int16_t* from, int64_t from_stride) {
  Eight a[8], b[8];
  for (int i = 0; i < 8; i++) std::memcpy(&a[i], from + i * from_stride, sizeof a[i]);
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < 4; i++) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i++) a[i] = b[i];
  }
  for (int i = 0; i < 8; i++) std::memcpy(to + i * to_stride, &a[i], sizeof a[i]);
}

// rows[upper, stride] from weights[lower, upper], padded with zeros
void transpose(int16_t* rows, int64_t stride, const int16_t* weights, int64_t lower, int64_t upper, int threads) {
  const int64_t n_tiles = (upper + 7) / 8;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t tile = 0; tile < n_tiles; tile++) {
    const int64_t j = 8 * tile;
    for (int64_t i = 0; i < stride; i += 8) {
      if (i + 8 <= lower && j + 8 <= upper) {
        transpose_tile(rows + j * stride + i, stride, weights + i * upper + j, upper);
        continue;
      }
      for (int64_t y = j; y < j + 8 && y < upper; y++)
        for (int64_t x = i; x < i + 8; x++) rows[y * stride + x] = x < lower ? weights[x * upper + y] : int16_t{0};
    }
  }
}

}  // namespace

Machine::Machine(const std::vector<LayerParameters>& layers, const std::vector<CouplingParameters>& couplings,
                 int threads)
    : couplings_(couplings) {
  for (const LayerParameters& layer : layers) {
    const auto units = static_cast<int32_t>(layer.units), size = cpu::padded(units);
    cpu::LayerView view{units, size, layer.kind, nullptr, nullptr};
    floats_.emplace_back(size);
    copy_padded(floats_.back().data(), layer.biases, units, size, 0.f);
    view.biases = floats_.back().data();
    if (layer.precisions) {
      floats_.emplace_back(size);
      copy_padded(floats_.back().data(), layer.precisions, units, size, 1.f);
      view.precisions = floats_.back().data();
    }
    layers_.push_back(view);
    names_.push_back(layer.name);
  }
  for (CouplingParameters& coupling : couplings_) {
    const cpu::LayerView &lower = layers_[coupling.lower], &upper = layers_[coupling.upper];
    const int helpers = cpu::useful_threads(4. * lower.units * upper.units, threads);  // copied and transposed
    integers_.emplace_back(static_cast<size_t>(lower.units) * upper.padded);
    int16_t* upward = integers_.back().data();
#pragma omp parallel for num_threads(helpers) schedule(static)
    for (int64_t i = 0; i < lower.units; i++)
      copy_padded(upward + i * upper.padded, coupling.weights + i * upper.units, upper.units, upper.padded, int16_t{0});
    weights_.push_back({lower.units, upper.units, upper.padded, upward});
    integers_.emplace_back(static_cast<size_t>(upper.units) * lower.padded);
    int16_t* downward = integers_.back().data();
    transpose(downward, lower.padded, coupling.weights, lower.units, upper.units, helpers);
    weights_.push_back({upper.units, lower.units, lower.padded, downward});
    coupling.weights = nullptr;
  }
}

std::shared_ptr<const Machine> build_machine(const std::vector<LayerParameters>& layers,
                                             const std::vector<CouplingParameters>& couplings, int threads) {
  return std::make_shared<const Machine>(layers, couplings, threads);
}

namespace cpu {

ProgramPlan::ProgramPlan(const Machine& machine, const Program& program) {
  size_t n_inputs = 0;
  for (const Block& block : program)
    for (const Update& update : block) n_inputs += update.inputs.size();
  inputs_.reserve(n_inputs);
  for (const Block& block : program) {
    for (const Update& update : block) {
      updates_.push_back({update.layer, static_cast<int>(update.inputs.size()), inputs_.data() + inputs_.size()});
      for (const Input& input : update.inputs) {
        const CouplingParameters& coupling = machine.coupling(input.coupling);
        inputs_.push_back({input.coupling, input.transposed, input.transposed ? coupling.upper : coupling.lower,
                           static_cast<float>(input.scale * std::ldexp(1., -coupling.fraction_bits)),
                           machine.weights(input.coupling, input.transposed)});
      }
    }
  }
}

}  // namespace cpu
}  // namespace bm
