// A call packs the states that it needs into bits once, launches its kernels on them, and unpacks what has changed.
#include "cuda/machine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <optional>
#include <set>
#include <stdexcept>
#include <thread>
#include <type_traits>
#include <variant>

#include "cuda/binary.h"
#include "cuda/device.h"
#include "cuda/pack.h"
#include "cuda/real.h"
#include "cuda/statistics.h"

namespace bm::cuda {
namespace {

template <class T>
T* take(const Place& place, int64_t n) {
  return static_cast<T*>(place.allocate(n * static_cast<int64_t>(sizeof(T))));
}

int32_t units_of(const Machine& machine, int layer) { return static_cast<int32_t>(machine.layers()[layer].units); }

const float* entry(const std::vector<const float*>& per_layer, int layer) {
  return per_layer.empty() ? nullptr : per_layer[layer];
}

// What kernels read of a layer: bits, or real values and their quanta.
struct View {
  uint32_t* bits;
  void* values;
  float* quanta;
};
using Views = std::vector<View>;  // of all layers; null where a call has no use for a layer

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
    to.weights = input.transposed ? coupling.down : coupling.up;
    to.grid = coupling.source.grid;
    to.scale = input.scale;
    to.units = units_of(machine, source);
  }
  product.units = units_of(machine, update.layer);
  product.biases = machine.layers()[update.layer].biases;
}

BinaryProduct binary_product(const Machine& machine, const Update& update, const Views& views, int32_t n_chains) {
  BinaryProduct product{};
  product.n_chains = n_chains;
  add_inputs(product, machine, update, views);
  return product;
}

// An update as its kernel takes it: the faster one where states and inputs are binary.
using Launch = std::variant<BinaryUpdate, RealUpdate>;

Launch launch_of(const Machine& machine, const Update& update, const Views& views, int32_t n_chains, const float* beta,
                 const std::vector<const float*>& base) {
  const LayerParameters& layer = machine.layers()[update.layer];
  const auto is_real = [&](const Input& input) { return views[source_of(machine, input)].values != nullptr; };
  if (!layer.precisions && std::none_of(update.inputs.begin(), update.inputs.end(), is_real)) {
    BinaryUpdate launch{};
    launch.product = binary_product(machine, update, views, n_chains);
    launch.beta = beta;
    launch.base = entry(base, update.layer);
    return launch;
  }
  RealUpdate launch{};
  launch.product.n_chains = n_chains;
  add_inputs(launch.product, machine, update, views);
  launch.product.beta = beta;
  launch.product.base = entry(base, update.layer);
  launch.precisions = layer.precisions;
  return launch;
}

void run(const BinaryUpdate& update, void* stream) { update_binary(update, stream); }
void run(const RealUpdate& update, void* stream) { update_real(update, stream); }

void add_coupling_energies(double* out, const Machine& machine, const Views& views, int32_t n, const Place& place) {
  for (size_t i = 0; i < machine.couplings().size(); i++) {
    const int upper = machine.couplings()[i].source.upper;
    const Update update{upper, {{static_cast<int>(i), false, 1.}}};
    auto* partials = take<int64_t>(place, 2 * unit_tiles(units_of(machine, upper)) * n);
    add_coupling_energy(out, partials, binary_product(machine, update, views, n), views[upper].bits, place.stream);
  }
}

// --- long calls ------------------------------------------------------------------------------------------------------

constexpr double kRoundWork = 2e12;  // multiply-adds: about 10 ms on an H100, 0.1 s on the slowest GPU
constexpr int64_t kMaxRound = 100;   // sweeps

int64_t sweeps_of_round(const Machine& machine, const Program& program, int64_t n_chains) {
  double work = 1;
  for (const Block& block : program)
    for (const Update& update : block)
      for (const Input& input : update.inputs)
        work += static_cast<double>(n_chains) * static_cast<double>(machine.layers()[update.layer].units) *
                units_of(machine, source_of(machine, input));
  return std::clamp(static_cast<int64_t>(kRoundWork / work), int64_t{1}, kMaxRound);
}

// Keeps at most two rounds under way, so that work that nobody waits for any more ends soon.
class Rounds {
 public:
  Rounds(void* stream, const std::function<bool()>& interrupted) : stream_(stream), interrupted_(interrupted) {}

  // Closes a round; false if the call is to end.
  bool close() {
    Event& event = events_[n_closed_++ % 2];
    while (n_closed_ > 2 && !event.has_passed()) {
      if (!ask()) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    event.record(stream_);
    return ask();
  }

 private:
  bool ask() {
    const auto now = std::chrono::steady_clock::now();
    if (now - asked_ < std::chrono::milliseconds(50)) return true;
    asked_ = now;
    return !interrupted_();
  }

  void* stream_;
  const std::function<bool()>& interrupted_;
  Event events_[2];
  int64_t n_closed_ = 0;
  std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
};

}  // namespace

Machine::Machine(std::vector<LayerParameters> layers, std::vector<CouplingSource> couplings, const Place& place)
    : layers_(std::move(layers)) {
  for (const CouplingSource& coupling : couplings) {
    const int64_t lower = layers_[coupling.lower].units, upper = layers_[coupling.upper].units;
    couplings_.push_back(
        {coupling, place.allocate(weight_bytes(lower, upper)), place.allocate(weight_bytes(upper, lower))});
  }
}

void Machine::refresh(uint32_t* refused, const Place& place) const {
  for (const Coupling& coupling : couplings_) {
    const CouplingSource& source = coupling.source;
    const auto lower = static_cast<int32_t>(layers_[source.lower].units);
    const auto upper = static_cast<int32_t>(layers_[source.upper].units);
    if (!source.integers)
      choose_grid(source.grid, refused, take<uint32_t>(place, kGridPartials), source.weights, int64_t{lower} * upper,
                  place.stream);
    for (const bool transposed : {false, true}) {
      void* to = transposed ? coupling.down : coupling.up;
      if (source.integers)
        arrange_weights(to, source.integers, lower, upper, transposed, place.stream);
      else
        quantise_weights(to, source.weights, source.grid, lower, upper, transposed, place.stream);
    }
  }
}

int64_t sweep(const Machine& machine, const Program& program, const std::vector<void*>& states, const Sweep& what,
              const uint32_t* sweeps_before, const Place& place, const std::function<void(int64_t)>& progress,
              const std::function<bool()>& interrupted) {
  const auto n_chains = static_cast<int32_t>(what.n_chains);
  std::set<int> updated, used;
  for (const Block& block : program) {
    for (const Update& update : block) updated.insert(update.layer);
    used.merge(sources_of(machine, block));
  }
  used.insert(updated.begin(), updated.end());
  std::vector<Values> values;
  for (size_t i = 0; i < states.size(); i++) values.push_back({states[i], machine.layers()[i].precisions != nullptr});
  const Views views = packed(machine, values, used, n_chains, place);

  std::vector<Launch> launches;
  for (const Block& block : program)
    for (const Update& update : block) {
      launches.push_back(launch_of(machine, update, views, n_chains, what.beta, what.base));
      const uint8_t* clamp = what.clamp[update.layer];
      std::visit(
          [&](auto& launch) {
            if (clamp) launch.clamp = packed(clamp, n_chains, units_of(machine, update.layer), place);
            launch.states = views[update.layer].bits;
            if constexpr (std::is_same_v<decltype(launch), RealUpdate&>)
              launch.numbers = launch.precisions ? static_cast<float*>(states[update.layer]) : nullptr;
            launch.seed = what.seed;
            launch.sweeps_before = sweeps_before;
            launch.first_chain = what.first_chain;
            launch.layer_and_purpose = units::layer_and_purpose(static_cast<uint32_t>(update.layer), units::kGibbs);
          },
          launches.back());
    }

  const int64_t round = sweeps_of_round(machine, program, n_chains);
  const bool is_long = what.n_sweeps > round && !is_capturing(place.stream);
  std::optional<Rounds> rounds;
  if (is_long) rounds.emplace(place.stream, interrupted);
  std::exception_ptr failure;
  int64_t done = 0;
  for (bool goes_on = true; done < what.n_sweeps && goes_on;) {
    size_t next = 0;
    for (const Block& block : program)
      for (const Update& update : block) {
        std::visit(
            [&](auto& launch) {
              launch.sweep = what.first_sweep + static_cast<uint32_t>(done);
              launch.means = done + 1 == what.n_sweeps ? what.means[update.layer] : nullptr;
              run(launch, place.stream);
            },
            launches[next++]);
        if (const View& view = views[update.layer]; view.values)
          pack_values(view.values, view.quanta, static_cast<const float*>(states[update.layer]), n_chains,
                      units_of(machine, update.layer), place.stream);
      }
    done++;
    if (!rounds || done % round != 0) continue;
    try {
      goes_on = rounds->close();
      progress(done);
    } catch (...) {  // the states must still become those of `done` sweeps
      failure = std::current_exception();
      goes_on = false;
    }
  }
  for (const int layer : updated)
    if (const uint32_t* bits = views[layer].bits)
      unpack_bits(static_cast<uint8_t*>(states[layer]), bits, n_chains, units_of(machine, layer), place.stream);
  if (failure) std::rethrow_exception(failure);
  if (!rounds || done % round != 0) progress(done);
  return done;
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
      launch_of(machine, update, views, n, beta, base));
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
      launch.product.n_chains = n;
      add_inputs(launch.product, machine, update, views);
      launch.precisions = machine.layers()[update.layer].precisions;
      launch.means = static_cast<float*>(const_cast<void*>(values[update.layer].data));
      launch.values = launch.precisions ? nullptr : views[update.layer].values;
      launch.damping = what.damping;
      launch.changes = changes;
      launch.settled = settled;
      launches.push_back(launch);
    }
  // without a tolerance no case settles, not even one that changes no more
  const float tolerance = what.tolerance > 0 ? what.tolerance : -1.f;
  for (int64_t i = 0; i < what.iterations; i++) {
    size_t next = 0;
    for (const Block& block : program)
      for (const Update& update : block) {
        const MeanUpdate& launch = launches[next++];
        update_means(launch, place.stream);
        const View& view = views[update.layer];
        if (launch.precisions && view.values)
          pack_values(view.values, view.quanta, launch.means, n, launch.product.units, place.stream);
      }
    settle({n, tolerance, changes, what.changes, settled, what.performed}, place.stream);
  }
}

void energy(double* out, const Machine& machine, const std::vector<Values>& values, int64_t n_chains,
            const Place& place) {
  const auto n = static_cast<int32_t>(n_chains);
  std::set<int> all;
  for (size_t i = 0; i < values.size(); i++) all.insert(static_cast<int>(i));
  const Views views = packed(machine, values, all, n, place);
  for (const int layer : all)
    add_bias_energy(out, {views[layer].bits, machine.layers()[layer].biases, nullptr, units_of(machine, layer)}, n,
                    nullptr, 1, place.stream);
  add_coupling_energies(out, machine, views, n, place);
}

void gap(double* out, int64_t* sums, const Machine& machine, const std::vector<const int64_t*>& biases, int bias_bits,
         const std::vector<Values>& values, int64_t n_chains, const Place& place) {
  const auto n = static_cast<int32_t>(n_chains);
  std::set<int> all;
  for (size_t i = 0; i < values.size(); i++) all.insert(static_cast<int>(i));
  const Views views = packed(machine, values, all, n, place);
  add_coupling_energies(out, machine, views, n, place);
  for (const int layer : all)
    add_whole_biases(sums, views[layer].bits, biases[layer], units_of(machine, layer), n, place.stream);
  subtract_sums(out, sums, std::ldexp(1., -bias_bits), n, place.stream);
}

void free_energy(double* out, const Machine& machine, const Block& updates, const std::vector<Values>& values,
                 int64_t n_chains, const float* betas, int64_t n_betas, const std::vector<const float*>& base,
                 const Place& place) {
  const auto n = static_cast<int32_t>(n_chains), k = static_cast<int32_t>(n_betas);
  std::set<int> kept;
  for (size_t i = 0; i < values.size(); i++) kept.insert(static_cast<int>(i));
  for (const Update& update : updates) kept.erase(update.layer);
  const Views views = packed(machine, values, kept, n, place);
  for (const int layer : kept)
    add_bias_energy(out,
                    {views[layer].bits, machine.layers()[layer].biases, entry(base, layer), units_of(machine, layer)},
                    n, betas, k, place.stream);
  for (const Update& update : updates) {
    auto* partials = take<double>(place, n_betas * 2 * unit_tiles(units_of(machine, update.layer)) * n_chains);
    add_free_energy(out, partials, binary_product(machine, update, views, n), betas, k, entry(base, update.layer),
                    place.stream);
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
