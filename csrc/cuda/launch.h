// What the launches of an operation are made of: the states that kernels read, and updates as kernels take them.
#pragma once

#include <set>
#include <variant>
#include <vector>

#include "cuda/binary.h"
#include "cuda/machine.h"
#include "cuda/real.h"
#include "cuda/softmax.h"

namespace bm::cuda {

template <class T>
T* take(const Place& place, int64_t n) {
  return static_cast<T*>(place.allocate(n * static_cast<int64_t>(sizeof(T))));
}

inline int32_t units_of(const Machine& machine, int layer) {
  return static_cast<int32_t>(machine.layers()[layer].units);
}

inline const float* entry(const std::vector<const float*>& per_layer, int layer) {
  return per_layer.empty() ? nullptr : per_layer[layer];
}

// What kernels read of a layer: bits, or real values and their quanta.
struct View {
  uint32_t* bits;
  void* values;
  float* quanta;
};
using Views = std::vector<View>;  // of all layers; null where a call has no use for a layer

uint32_t* packed(const uint8_t* values, int32_t n_chains, int32_t units, const Place& place);
Views packed(const Machine& machine, const std::vector<Values>& values, const std::set<int>& layers, int32_t n_chains,
             const Place& place);

// Memory for the fields of a softmax layer.
float* softmax_fields(const Machine& machine, int layer, int32_t n_chains, const Place& place);

int source_of(const Machine& machine, const Input& input);
std::set<int> sources_of(const Machine& machine, const Block& block);

BinaryProduct binary_product(const Machine& machine, const Update& update, const Views& views, int32_t n_chains);
RealProduct real_product(const Machine& machine, const Update& update, const Views& views, int32_t n_chains);

// An update as its kernel takes it: the faster ones where states and inputs are binary.
struct StreamedUpdate : BinaryUpdate {};  // for compute capability 9.0
using Launch = std::variant<BinaryUpdate, StreamedUpdate, RealUpdate, SoftmaxUpdate>;

// Whether an update has binary inputs and Bernoulli units.
bool is_binary(const Machine& machine, const Update& update, const Views& views);

Launch launch_of(const Machine& machine, const Update& update, const Views& views, int32_t n_chains, const float* beta,
                 const std::vector<const float*>& base, const Place& place);

void run(const BinaryUpdate& update, void* stream);
void run(const StreamedUpdate& update, void* stream);
void run(const RealUpdate& update, void* stream);
void run(const SoftmaxUpdate& update, void* stream);

}  // namespace bm::cuda
