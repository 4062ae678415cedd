// A call packs the states that it needs into bits once, launches its kernels on them, and unpacks what has changed.
#include "cuda/machine.h"

#include <cmath>
#include <optional>
#include <set>
#include <variant>

#include "cuda/launch.h"
#include "cuda/pack.h"
#include "cuda/statistics.h"

namespace bm::cuda {
Machine::Machine(std::vector<LayerParameters> layers, std::vector<CouplingSource> couplings, const Place& place)
    : layers_(std::move(layers)) {
  for (const CouplingSource& coupling : couplings) {
    const auto is_bernoulli = [&](int layer) { return layers_[layer].kind == Kind::kBernoulli; };
    // no cluster takes a softmax layer in turn with another one: weights that lead from it stream
    const bool is_alone = couplings.size() == 1 && is_bernoulli(coupling.lower) && is_bernoulli(coupling.upper);
    couplings_.push_back({coupling, direction(coupling.lower, coupling.upper, is_alone, place),
                          direction(coupling.upper, coupling.lower, is_alone, place)});
  }
}

Machine::Direction Machine::direction(int from, int to, bool is_alone, const Place& place) const {
  const auto inputs = static_cast<int32_t>(layers_[from].units), outputs = static_cast<int32_t>(layers_[to].units);
  Direction weights{place.allocate(weight_bytes(inputs, outputs)), nullptr, hopper::Layout::kStreamed};
  const bool is_binary = layers_[from].kind != Kind::kGaussian && layers_[to].kind == Kind::kBernoulli;
  const std::optional<hopper::Layout> layout = hopper::layout_of(inputs, outputs, is_alone);
  if (is_binary && layout) {
    weights.layout = *layout;
    weights.hopper = place.allocate(hopper::weight_bytes(weights.layout, inputs, outputs));
  }
  return weights;
}

void Machine::refresh(uint32_t* refused, const Place& place) const {
  for (const Coupling& coupling : couplings_) {
    const CouplingSource& source = coupling.source;
    const int32_t lower = units_of(*this, source.lower), upper = units_of(*this, source.upper);
    if (!source.integers)
      choose_grid(source.grid, refused, take<uint32_t>(place, kGridPartials), source.weights, int64_t{lower} * upper,
                  place.stream);
    for (const bool transposed : {false, true}) {
      const Direction& to = transposed ? coupling.down : coupling.up;
      if (source.integers) {
        arrange_weights(to.portable, source.integers, lower, upper, transposed, place.stream);
        if (to.hopper)
          hopper::arrange_weights(to.layout, to.hopper, source.integers, lower, upper, transposed, place.stream);
      } else {
        quantise_weights(to.portable, source.weights, source.grid, lower, upper, transposed, place.stream);
        if (to.hopper)
          hopper::quantise_weights(to.layout, to.hopper, source.weights, source.grid, lower, upper, transposed,
                                   place.stream);
      }
    }
  }
}

void layer_means(float* out, const Machine& machine, const Update& update, const std::vector<Values>& values,
                 int64_t n_chains, const float* beta, const std::vector<const float*>& base, const Place& place) {
  const auto n = static_cast<int32_t>(n_chains);
  const Views views = packed(machine, values, sources_of(machine, {update}), n, place);
  std::visit(
      [&](auto launch) {
        launch.means = out;
        run(launch, place.stream);
      },
      launch_of(machine, update, views, n, beta, base, place));
}

void mean_field(const Machine& machine, const Program& program, const std::vector<Values>& values,
                const MeanField& what, const Place& place) {
  const auto n = static_cast<int32_t>(what.n_cases);
  std::set<int> means, given;  // updated layers with values from 0 to 1, and all others that are read
  for (const Block& block : program) given.merge(sources_of(machine, block));
  for (const Block& block : program)
    for (const Update& update : block)
      if (!machine.layers()[update.layer].precisions) means.insert(update.layer);
  for (const int layer : means) given.erase(layer);
  Views views = packed(machine, values, given, n, place);
  for (const int layer : means) {
    views[layer].values = place.allocate(value_bytes(n, units_of(machine, layer)));
    pack_means(views[layer].values, static_cast<const float*>(values[layer].data), n, units_of(machine, layer),
               place.stream);
  }
  auto* changes = reinterpret_cast<float*>(what.scratch);
  uint32_t* settled = what.scratch + what.n_cases;
  std::vector<MeanUpdate> launches;
  for (const Block& block : program)
    for (const Update& update : block) {
      MeanUpdate launch{};
      launch.product = real_product(machine, update, views, n);
      launch.precisions = machine.layers()[update.layer].precisions;
      launch.means = static_cast<float*>(const_cast<void*>(values[update.layer].data));
      launch.values = launch.precisions ? nullptr : views[update.layer].values;
      launch.damping = what.damping;
      launch.changes = changes;
      launch.settled = settled;
      if (machine.layers()[update.layer].kind == Kind::kSoftmax)
        launch.fields = softmax_fields(machine, update.layer, n, place);
      launches.push_back(launch);
    }
  // without a tolerance no case settles, not even one that changes no more
  const float tolerance = what.tolerance > 0 ? what.tolerance : -1.f;
  for (int64_t i = 0; i < what.iterations; i++) {
    size_t next = 0;
    for (const Block& block : program)
      for (const Update& update : block) {
        const MeanUpdate& launch = launches[next++];
        launch.fields ? update_softmax_means(launch, place.stream) : update_means(launch, place.stream);
        const View& view = views[update.layer];
        if (launch.precisions && view.values)
          pack_values(view.values, view.quanta, launch.means, n, launch.product.units, place.stream);
      }
    settle({n, tolerance, changes, what.changes, settled, what.performed}, place.stream);
  }
}

void statistics(float* out, Values lower, int64_t n_lower, Values upper, int64_t n_upper, int64_t n_chains,
                const Place& place) {
  const auto n = static_cast<int32_t>(n_chains);
  const auto factor = [&](const Values& values, int64_t n_units) {
    const auto units = static_cast<int32_t>(n_units);
    if (values.real) return Factor{nullptr, static_cast<const float*>(values.data), units};
    return Factor{packed(static_cast<const uint8_t*>(values.data), n, units, place), nullptr, units};
  };
  const Factor below = factor(lower, n_lower), above = factor(upper, n_upper);
  statistics(out, below, above, n, place.stream);
}

}  // namespace bm::cuda
