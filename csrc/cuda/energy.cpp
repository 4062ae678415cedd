// Energies, free energies and gaps: the exact kernels where a layer and its inputs are binary, else those for real
// values.
#include <set>

#include "cuda/gap.h"
#include "cuda/gap_biases.h"
#include "cuda/launch.h"
#include "cuda/machine.h"

namespace bm::cuda {
namespace {

std::set<int> all_layers(const Machine& machine) {
  std::set<int> all;
  for (size_t i = 0; i < machine.layers().size(); i++) all.insert(static_cast<int>(i));
  return all;
}

int64_t n_partials(const Machine& machine, int layer, int32_t n_chains) {
  return 2 * unit_tiles(units_of(machine, layer)) * n_chains;
}

// Memory for the partial sums of the couplings, one after the other.
void* coupling_partials(const Machine& machine, int32_t n_chains, const Place& place) {
  static_assert(sizeof(int64_t) == sizeof(double));
  int64_t most = 0;
  for (const Machine::Coupling& coupling : machine.couplings())
    most = std::max(most, n_partials(machine, coupling.source.upper, n_chains));
  return take<double>(place, most);
}

// out -= the energies of all couplings, in order.
void add_couplings(double* out, void* partials, const Machine& machine, const Views& views,
                   const std::vector<Values>& values, int32_t n_chains, void* stream) {
  for (size_t i = 0; i < machine.couplings().size(); i++) {
    const int upper = machine.couplings()[i].source.upper;
    const Update update{upper, {{static_cast<int>(i), false, 1.}}};
    if (!values[machine.couplings()[i].source.lower].real && !values[upper].real) {
      add_coupling_energy(out, static_cast<int64_t*>(partials), binary_product(machine, update, views, n_chains),
                          views[upper].bits, stream);
      continue;
    }
    RealProduct product = real_product(machine, update, views, n_chains);
    product.biases = nullptr;
    add_real_coupling_energy(out, static_cast<double*>(partials), product, views[upper].bits,
                             static_cast<const float*>(values[upper].real ? values[upper].data : nullptr), stream);
  }
}

RealLayer real_layer(const Machine& machine, const std::vector<Values>& values, int layer, const float* base) {
  const LayerParameters& parameters = machine.layers()[layer];
  return {static_cast<const float*>(values[layer].data), parameters.biases, base, parameters.precisions,
          units_of(machine, layer)};
}

// out[n_betas, n_chains] -= what the biases of a layer add.
void add_biases(double* out, const Machine& machine, const Views& views, const std::vector<Values>& values, int layer,
                int32_t n_chains, const float* betas, int32_t n_betas, const float* base, void* stream) {
  if (values[layer].real)
    add_real_bias_energy(out, real_layer(machine, values, layer, base), n_chains, betas, n_betas, stream);
  else
    add_bias_energy(out, {views[layer].bits, machine.layers()[layer].biases, base, units_of(machine, layer)}, n_chains,
                    betas, n_betas, stream);
}

}  // namespace

void energy(double* out, const Machine& machine, const std::vector<Values>& values, int64_t n_chains,
            const Place& place) {
  const auto n = static_cast<int32_t>(n_chains);
  const std::set<int> all = all_layers(machine);
  const Views views = packed(machine, values, all, n, place);
  for (const int layer : all) add_biases(out, machine, views, values, layer, n, nullptr, 1, nullptr, place.stream);
  add_couplings(out, coupling_partials(machine, n, place), machine, views, values, n, place.stream);
}

void gap(double* out, const Machine& machine, const std::vector<const float*>& base, const std::vector<Values>& values,
         int64_t n_chains, const Place& place) {
  const auto n = static_cast<int32_t>(n_chains);
  const Views views = packed(machine, values, all_layers(machine), n, place);
  Gap(machine, base, views, values, n, place).launch(out);
}

void free_energy(double* out, const Machine& machine, const Block& updates, const std::vector<Values>& values,
                 int64_t n_chains, const float* betas, int64_t n_betas, const std::vector<const float*>& base,
                 const Place& place) {
  const auto n = static_cast<int32_t>(n_chains), k = static_cast<int32_t>(n_betas);
  std::set<int> kept = all_layers(machine);
  for (const Update& update : updates) kept.erase(update.layer);
  const Views views = packed(machine, values, kept, n, place);
  for (const int layer : kept)
    add_biases(out, machine, views, values, layer, n, betas, k, entry(base, layer), place.stream);
  for (const Update& update : updates) {
    const LayerParameters& layer = machine.layers()[update.layer];
    if (layer.kind == Kind::kSoftmax) {
      add_softmax_free_energy(out, softmax_fields(machine, update.layer, n, place),
                              real_product(machine, update, views, n), betas, k, entry(base, update.layer),
                              place.stream);
      continue;
    }
    auto* partials = take<double>(place, n_betas * n_partials(machine, update.layer, n));
    if (is_binary(machine, update, views))
      add_free_energy(out, partials, binary_product(machine, update, views, n), betas, k, entry(base, update.layer),
                      place.stream);
    else
      add_real_free_energy(out, partials, real_product(machine, update, views, n), layer.precisions, betas, k,
                           entry(base, update.layer), place.stream);
  }
}

Gap::Gap(const Machine& machine, const std::vector<const float*>& base, const Views& views,
         const std::vector<Values>& values, int32_t n_chains, const Place& place)
    : machine_(machine),
      has_base_(!base.empty()),
      grid_(take<float>(place, 1)),
      views_(views),
      values_(values),
      n_chains_(n_chains),
      stream_(place.stream),
      sums_(take<int64_t>(place, n_chains)),
      partials_(coupling_partials(machine, n_chains, place)) {
  std::vector<GapLayer> layers;
  for (const int layer : all_layers(machine)) {
    const int32_t units = units_of(machine, layer);
    layers.push_back({machine.layers()[layer].biases, entry(base, layer), take<int64_t>(place, units), units});
    biases_.push_back(layers.back().whole);
  }
  choose_gap_biases(grid_, take<uint64_t>(place, static_cast<int64_t>(layers.size()) * kGapPartials), layers,
                    place.stream);
}

void Gap::launch(double* out) const {
  clear_gap(out, sums_, n_chains_, stream_);
  for (const int layer : all_layers(machine_)) {
    if (!values_[layer].real) continue;
    RealLayer real = real_layer(machine_, values_, layer, nullptr);
    if (has_base_) real.precisions = nullptr;  // the quadratic term cancels
    add_real_whole_biases(out, real, biases_[layer], grid_, n_chains_, stream_);
  }
  add_couplings(out, partials_, machine_, views_, values_, n_chains_, stream_);
  for (const int layer : all_layers(machine_))
    if (!values_[layer].real)
      add_whole_biases(sums_, views_[layer].bits, biases_[layer], units_of(machine_, layer), n_chains_, stream_);
  subtract_sums(out, sums_, grid_, n_chains_, stream_);
}

}  // namespace bm::cuda
