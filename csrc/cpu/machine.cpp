#include "cpu/machine.h"

#include <cmath>
#include <cstring>

namespace bm {
namespace {

// to[i] = from[i] for n values, then `rest` up to `size`
template <class T>
void copy_padded(T* to, const T* from, int64_t n, int64_t size, T rest) {
  std::memcpy(to, from, n * sizeof(T));
  for (int64_t i = n; i < size; i++) to[i] = rest;
}

}  // namespace

Machine::Machine(const std::vector<LayerParameters>& layers, const std::vector<CouplingParameters>& couplings,
                 int threads)
    : limbs(2 * couplings.size()), couplings_(couplings) {
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
    const int32_t lower = layers_[coupling.lower].units, upper = layers_[coupling.upper].units;
    weights_.push_back(coupling.values
                           ? std::make_unique<const cpu::CouplingWeights>(coupling.values, coupling.fraction_bits,
                                                                          lower, upper, threads)
                           : std::make_unique<const cpu::CouplingWeights>(coupling.weights, lower, upper, threads));
    for (const auto& [inputs, outputs] : {std::pair(lower, upper), std::pair(upper, lower)})
      kept_.push_back(kept_.back() + cpu::padded(outputs) * static_cast<int64_t>(sizeof(int32_t)) +
                      cpu::padded(inputs));
    coupling.values = nullptr;
    coupling.weights = nullptr;
  }
}

std::shared_ptr<const Machine> build_machine(const std::vector<LayerParameters>& layers,
                                             const std::vector<CouplingParameters>& couplings, int threads) {
  return std::make_shared<const Machine>(layers, couplings, threads);
}

void read_weights(int16_t* out, const Machine& machine, int coupling) { machine.weights(coupling).read(out); }

bool has_lookup_tables(const Machine& machine) { return machine.has_lookup_tables; }

namespace cpu {

ProgramPlan::ProgramPlan(const Machine& machine, const Program& program) : machine_(machine) {
  size_t n_inputs = 0;
  for (const Block& block : program)
    for (const Update& update : block) n_inputs += update.inputs.size();
  inputs_.reserve(n_inputs);
  for (const Block& block : program) {
    for (const Update& update : block) {
      updates_.push_back({update.layer, static_cast<int>(update.inputs.size()), inputs_.data() + inputs_.size()});
      for (InputView& input : inputs_) input.settled &= input.layer != update.layer;
      for (const Input& input : update.inputs) {
        const CouplingParameters& coupling = machine.coupling(input.coupling);
        const int source = input.transposed ? coupling.upper : coupling.lower;
        const WeightsView weights = machine.weights(input.coupling).shape(input.transposed);
        inputs_.push_back({input.coupling, input.transposed, source,
                           static_cast<float>(input.scale * std::ldexp(1., -coupling.fraction_bits)),
                           machine.kept(input.coupling, input.transposed), weights, true});
      }
    }
  }
}

void ProgramPlan::lay_out(const std::vector<bool>& is_dense, int threads) {
  for (InputView& input : inputs_) {
    input.weights.rows = machine_.weights(input.coupling).rows(input.transposed, threads);
    input.dense = is_dense[input.layer];
  }
}

}  // namespace cpu
}  // namespace bm
