#include "cuda/launch.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/hopper.h"
#include "cuda/pack.h"

namespace bm::cuda {
namespace {

template <class Product>
void add_inputs(Product& product, const Machine& machine, const Update& update, const Views& views) {
  if (update.inputs.size() > kMaxInputs)
    throw std::invalid_argument("program: expected at most " + std::to_string(kMaxInputs) +
                                " inputs of a layer on a GPU, got " + std::to_string(update.inputs.size()));
  for (const Input& input : update.inputs) {
    const Machine::Coupling& coupling = machine.couplings()[input.coupling];
    const int source = source_of(machine, input);
    auto& to = product.inputs[product.n_inputs++];
    to.bits = views[source].bits;
    if constexpr (std::is_same_v<Product, RealProduct>) {
      to.values = views[source].values;
      to.quanta = views[source].quanta;
    }
    to.weights = coupling.to(input).portable;
    to.grid = coupling.source.grid;
    to.scale = input.scale;
    to.units = units_of(machine, source);
  }
  product.units = units_of(machine, update.layer);
  product.biases = machine.layers()[update.layer].biases;
}

// The same update with the weights of the kernel for streams, where that is to be chosen and all inputs have them.
bool streams(StreamedUpdate& launch, const Machine& machine, const Update& update) {
  BinaryProduct& product = launch.product;
  if (hopper::choose({product.units, 0, product.n_chains, 0}) != hopper::Kernel::kStreamed) return false;
  for (int32_t i = 0; i < product.n_inputs; i++) {
    const Machine::Direction& weights = machine.couplings()[update.inputs[i].coupling].to(update.inputs[i]);
    if (!weights.hopper || weights.layout != hopper::Layout::kStreamed) return false;
    product.inputs[i].weights = weights.hopper;
  }
  return true;
}

}  // namespace

uint32_t* packed(const uint8_t* values, int32_t n_chains, int32_t units, const Place& place) {
  auto* bits = take<uint32_t>(place, n_chains * bit_words(units));
  pack_bits(bits, values, n_chains, units, place.stream);
  return bits;
}

Views packed(const Machine& machine, const std::vector<Values>& values, const std::set<int>& layers, int32_t n_chains,
             const Place& place) {
  Views views(values.size());
  for (const int layer : layers) {
    const int32_t units = units_of(machine, layer);
    if (values[layer].real) {
      views[layer].values = place.allocate(value_bytes(n_chains, units));
      views[layer].quanta = take<float>(place, n_chains);
      pack_values(views[layer].values, views[layer].quanta, static_cast<const float*>(values[layer].data), n_chains,
                  units, place.stream);
    } else {
      views[layer].bits = packed(static_cast<const uint8_t*>(values[layer].data), n_chains, units, place);
    }
  }
  return views;
}

float* softmax_fields(const Machine& machine, int layer, int32_t n_chains, const Place& place) {
  return take<float>(place, int64_t{units_of(machine, layer)} * n_chains);
}

int source_of(const Machine& machine, const Input& input) {
  const Machine::Coupling& coupling = machine.couplings()[input.coupling];
  return input.transposed ? coupling.source.upper : coupling.source.lower;
}

std::set<int> sources_of(const Machine& machine, const Block& block) {
  std::set<int> layers;
  for (const Update& update : block)
    for (const Input& input : update.inputs) layers.insert(source_of(machine, input));
  return layers;
}

BinaryProduct binary_product(const Machine& machine, const Update& update, const Views& views, int32_t n_chains) {
  BinaryProduct product{};
  product.n_chains = n_chains;
  add_inputs(product, machine, update, views);
  return product;
}

RealProduct real_product(const Machine& machine, const Update& update, const Views& views, int32_t n_chains) {
  RealProduct product{};
  product.n_chains = n_chains;
  add_inputs(product, machine, update, views);
  return product;
}

bool is_binary(const Machine& machine, const Update& update, const Views& views) {
  const auto is_real = [&](const Input& input) { return views[source_of(machine, input)].values != nullptr; };
  return machine.layers()[update.layer].kind == Kind::kBernoulli &&
         std::none_of(update.inputs.begin(), update.inputs.end(), is_real);
}

Launch launch_of(const Machine& machine, const Update& update, const Views& views, int32_t n_chains, const float* beta,
                 const std::vector<const float*>& base, const Place& place) {
  const LayerParameters& layer = machine.layers()[update.layer];
  if (is_binary(machine, update, views)) {
    BinaryUpdate launch{};
    launch.product = binary_product(machine, update, views, n_chains);
    launch.beta = beta;
    launch.base = entry(base, update.layer);
    StreamedUpdate streamed{launch};
    if (streams(streamed, machine, update)) return streamed;
    return launch;
  }
  RealProduct product = real_product(machine, update, views, n_chains);
  product.beta = beta;
  product.base = entry(base, update.layer);
  if (layer.kind == Kind::kSoftmax) {
    SoftmaxUpdate launch{};
    launch.product = product;
    launch.fields = softmax_fields(machine, update.layer, n_chains, place);
    return launch;
  }
  RealUpdate launch{};
  launch.product = product;
  launch.precisions = layer.precisions;
  return launch;
}

void run(const BinaryUpdate& update, void* stream) { update_binary(update, stream); }
void run(const StreamedUpdate& update, void* stream) { hopper::update_streamed(update, stream); }
void run(const RealUpdate& update, void* stream) { update_real(update, stream); }
void run(const SoftmaxUpdate& update, void* stream) { update_softmax(update, stream); }

}  // namespace bm::cuda
