// Runs cases on the kernels for compute capability 9.0, emulated on the host, or on a GPU where nvcc compiles it.
//
//   hopper_runner resident CASE OUT   sweeps of two layers in one launch; OUT gets states and means
//   hopper_runner streamed CASE OUT   the program in the file CASE, a launch for each update; OUT gets the same
//   hopper_runner persistent CASE OUT the program, one sweep in a launch and all others in another one; the same
//   hopper_runner room CASE           prints the chains that this kernel takes
//   hopper_runner choose UNITS OTHER CHAINS ROOM   prints the kernel for such a task (cuda/hopper.h)
//   hopper_runner products            compares the products of a warpgroup with plain loops; 1 where they differ
//   hopper_runner together            the same for bytes that go round between blocks that run at the same time
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "arrays.h"
#include "cuda/hopper.h"
#include "cuda/pack.h"
#include "hopper_checks.h"

namespace {

namespace hopper = bm::cuda::hopper;

struct Layer {
  int32_t units;
  Buffer<float> biases;
  std::optional<Buffer<float>> base;
  std::optional<Buffer<uint32_t>> clamp;
  std::optional<Buffer<float>> means;
  Buffer<uint32_t> bits;
};

struct Coupling {
  int lower, upper;
  float fraction;  // 2^-f
  Buffer<float> grid;
  Buffer<int16_t> weights;
};

struct Input {
  int coupling;
  bool transposed;
  double scale;
};

struct Update {
  int layer;
  std::vector<Input> inputs;
};

struct Case {
  int32_t n_chains;
  uint64_t seed;
  uint32_t first_chain, first_sweep, n_sweeps;
  std::optional<Buffer<float>> beta;
  std::vector<Layer> layers;
  std::vector<Coupling> couplings;
  std::vector<Update> program;
};

Case read_case(const char* from) {
  Reader in(from);
  Case c{};
  c.n_chains = static_cast<int32_t>(in.one());
  c.seed = in.one<uint64_t>();
  c.first_chain = static_cast<uint32_t>(in.one());
  c.first_sweep = static_cast<uint32_t>(in.one());
  c.n_sweeps = static_cast<uint32_t>(in.one());
  if (in.one()) c.beta.emplace(in.many<float>(c.n_chains));
  const int64_t n_layers = in.one();
  for (int64_t i = 0; i < n_layers; i++) {
    const auto units = static_cast<int32_t>(in.one());
    const auto packed = [&](Buffer<uint8_t> values) {
      Buffer<uint32_t> bits(c.n_chains * bm::cuda::bit_words(units));
      bm::cuda::pack_bits(bits.data(), values.data(), c.n_chains, units, nullptr);
      return bits;
    };
    Buffer<float> biases(in.many<float>(units));
    std::optional<Buffer<float>> base = in.maybe<float>(units);
    std::optional<Buffer<uint32_t>> clamp;
    if (in.one()) clamp.emplace(packed(Buffer<uint8_t>(in.many<uint8_t>(int64_t{c.n_chains} * units))));
    std::optional<Buffer<float>> means;
    if (in.one()) means.emplace(static_cast<size_t>(c.n_chains) * units);
    Buffer<uint32_t> bits = packed(Buffer<uint8_t>(in.many<uint8_t>(int64_t{c.n_chains} * units)));
    c.layers.push_back(
        {units, std::move(biases), std::move(base), std::move(clamp), std::move(means), std::move(bits)});
  }
  const int64_t n_couplings = in.one();
  for (int64_t i = 0; i < n_couplings; i++) {
    const auto lower = static_cast<int>(in.one()), upper = static_cast<int>(in.one());
    const float fraction = std::ldexp(1.f, -static_cast<int>(in.one()));
    Buffer<float> grid(std::vector<float>{fraction});
    const int64_t n = int64_t{c.layers[lower].units} * c.layers[upper].units;
    c.couplings.push_back({lower, upper, fraction, std::move(grid), Buffer<int16_t>(in.many<int16_t>(n))});
  }
  const int64_t n_updates = in.one();
  for (int64_t i = 0; i < n_updates; i++) {
    Update update{static_cast<int>(in.one()), {}};
    const int64_t n_inputs = in.one();
    for (int64_t j = 0; j < n_inputs; j++) {
      const auto coupling = static_cast<int>(in.one());
      const bool transposed = in.one() != 0;
      update.inputs.push_back({coupling, transposed, in.one<double>()});
    }
    c.program.push_back(std::move(update));
  }
  return c;
}

void write_case(Case& c, const char* to) {
  Writer out(to);
  for (Layer& layer : c.layers) {
    Buffer<uint8_t> states(static_cast<size_t>(c.n_chains) * layer.units);
    bm::cuda::unpack_bits(states.data(), layer.bits.data(), c.n_chains, layer.units, nullptr);
    out.add(states.read());
    if (layer.means) out.add(layer.means->read());
    // bits beyond the last unit stay 0
    const std::vector<uint32_t> bits = layer.bits.read();
    const int64_t words = bm::cuda::bit_words(layer.units);
    for (int64_t i = 0; i < static_cast<int64_t>(bits.size()); i++)
      for (int64_t b = 0; b < 32; b++)
        if (i % words * 32 + b >= layer.units && bits[i] >> b & 1) throw std::runtime_error("a bit beyond the layer");
  }
}

// Both directions of a coupling, one from integers and one from floats that are rounded to the same.
struct Arranged {
  Arranged(Coupling& coupling, int32_t lower, int32_t upper, hopper::Layout layout)
      : up(hopper::weight_bytes(layout, lower, upper)), down(hopper::weight_bytes(layout, upper, lower)) {
    hopper::arrange_weights(layout, up.data(), coupling.weights.data(), lower, upper, false, nullptr);
    const std::vector<int16_t> integers = coupling.weights.read();
    std::vector<float> floats(integers.size());
    for (size_t i = 0; i < floats.size(); i++) floats[i] = integers[i] * coupling.fraction;
    Buffer<float> there(floats);
    hopper::quantise_weights(layout, down.data(), there.data(), coupling.grid.data(), lower, upper, true, nullptr);
  }
  Buffer<unsigned char> up, down;
};

hopper::SweptLayer swept(Case& c, int index, bool with_means) {
  Layer& layer = c.layers[index];
  return {layer.bits.data(),
          address(layer.clamp),
          layer.biases.data(),
          address(layer.base),
          with_means ? address(layer.means) : nullptr,
          layer.units,
          bm::units::layer_and_purpose(static_cast<uint32_t>(index), bm::units::kGibbs)};
}

constexpr uint32_t kSweepsBefore = 2;  // of those before the first one, on the device

void set_call(hopper::Sweeps& sweeps, Case& c, Buffer<uint32_t>& sweeps_before) {
  sweeps.beta = address(c.beta);
  sweeps.sweeps_before = sweeps_before.data();
  sweeps.seed = c.seed;
  sweeps.n_chains = c.n_chains;
  sweeps.n_sweeps = c.n_sweeps;
  sweeps.first_chain = c.first_chain;
  sweeps.first_sweep = c.first_sweep - kSweepsBefore;
}

void resident(Case& c) {
  Coupling& coupling = c.couplings.at(0);
  const int32_t lower = c.layers.at(0).units, upper = c.layers.at(1).units;
  Arranged arranged(coupling, lower, upper, hopper::Layout::kResident);
  Buffer<uint32_t> sweeps_before(std::vector<uint32_t>{kSweepsBefore});
  hopper::ResidentSweeps sweeps{};
  set_call(sweeps, c, sweeps_before);
  for (size_t i = 0; i < 2; i++) {
    const Update& update = c.program.at(i);
    sweeps.layers[update.layer] = {swept(c, update.layer, true),
                                   update.layer == 0 ? arranged.down.data() : arranged.up.data(),
                                   update.inputs.at(0).scale};
  }
  sweeps.grid = coupling.grid.data();
  sweeps.first = c.program[0].layer;
  hopper::sweep_resident(sweeps, nullptr);
}

int source_of(const Case& c, const Input& input) {
  return input.transposed ? c.couplings[input.coupling].upper : c.couplings[input.coupling].lower;
}

std::vector<Arranged> arranged_to_stream(Case& c) {
  std::vector<Arranged> arranged;
  for (Coupling& coupling : c.couplings)
    arranged.emplace_back(coupling, c.layers[coupling.lower].units, c.layers[coupling.upper].units,
                          hopper::Layout::kStreamed);
  return arranged;
}

bm::cuda::BinaryInput streamed_input(Case& c, std::vector<Arranged>& arranged, const Input& input) {
  Layer& source = c.layers[source_of(c, input)];
  Arranged& weights = arranged[input.coupling];
  return {source.bits.data(), (input.transposed ? weights.down : weights.up).data(),
          c.couplings[input.coupling].grid.data(), input.scale, source.units};
}

// Whether no update of the program from `first` to `last` reads a layer of another one.
bool are_independent(const Case& c, size_t first, size_t last) {
  for (size_t i = first; i <= last; i++)
    for (const Input& input : c.program[i].inputs)
      for (size_t j = first; j <= last; j++)
        if (source_of(c, input) == c.program[j].layer) return false;
  return true;
}

// The program with as many updates in a block as may be.
hopper::PersistentSweeps persistent_sweeps(Case& c, std::vector<Arranged>& arranged, bool with_means) {
  hopper::PersistentSweeps sweeps{};
  int32_t n_inputs = 0;
  size_t first = 0;
  for (size_t i = 0; i < c.program.size(); i++) {
    const Update& update = c.program[i];
    hopper::PersistentUpdate& to = sweeps.updates[sweeps.n_updates++];
    const bool ends_block = i + 1 == c.program.size() || !are_independent(c, first, i + 1);
    to = {swept(c, update.layer, with_means), n_inputs, n_inputs, ends_block};
    for (const Input& input : update.inputs) sweeps.inputs[to.end_input++] = streamed_input(c, arranged, input);
    n_inputs = to.end_input;
    if (ends_block) first = i + 1;
  }
  return sweeps;
}

// The first sweep in a launch of its own, so that the next one finds what it has left.
void persistent(Case& c) {
  std::vector<Arranged> arranged = arranged_to_stream(c);
  Buffer<uint32_t> sweeps_before(std::vector<uint32_t>{kSweepsBefore}), arrivals(hopper::arrival_words(c.n_chains));
  const uint32_t n_sweeps = c.n_sweeps, first_sweep = c.first_sweep;
  for (uint32_t done = 0; done < n_sweeps; done += c.n_sweeps) {
    c.first_sweep = first_sweep + done;
    c.n_sweeps = done == 0 ? 1 : n_sweeps - done;
    hopper::PersistentSweeps sweeps = persistent_sweeps(c, arranged, done + c.n_sweeps == n_sweeps);
    set_call(sweeps, c, sweeps_before);
    sweeps.arrivals = arrivals.data();
    hopper::sweep_persistent(sweeps, nullptr);
  }
}

int room(Case& c) {
  std::vector<Arranged> arranged = arranged_to_stream(c);
  std::printf("%d\n", hopper::persistent_room(persistent_sweeps(c, arranged, true)));
  return 0;
}

void streamed(Case& c) {
  std::vector<Arranged> arranged = arranged_to_stream(c);
  for (uint32_t sweep = 0; sweep < c.n_sweeps; sweep++)
    for (const Update& of_layer : c.program) {
      Layer& layer = c.layers[of_layer.layer];
      bm::cuda::BinaryUpdate update{};
      update.product.n_chains = c.n_chains;
      update.product.units = layer.units;
      update.product.n_inputs = static_cast<int32_t>(of_layer.inputs.size());
      for (size_t i = 0; i < of_layer.inputs.size(); i++)
        update.product.inputs[i] = streamed_input(c, arranged, of_layer.inputs[i]);
      update.product.biases = layer.biases.data();
      update.beta = address(c.beta);
      update.base = address(layer.base);
      update.clamp = address(layer.clamp);
      update.states = layer.bits.data();
      update.means = sweep + 1 == c.n_sweeps ? address(layer.means) : nullptr;
      update.seed = c.seed;
      update.first_chain = c.first_chain;
      update.sweep = c.first_sweep + sweep;
      update.layer_and_purpose = bm::units::layer_and_purpose(static_cast<uint32_t>(of_layer.layer), bm::units::kGibbs);
      hopper::update_streamed(update, nullptr);
    }
}

}  // namespace

int main(int n, char** arguments) {
  try {
    const std::string what = n > 1 ? arguments[1] : "";
    if (what == "products" && n == 2) return products();
    if (what == "together" && n == 2) return together();
    if (what == "choose" && n == 6) {
      const char* names[] = {"portable", "resident", "persistent", "streamed"};
      const hopper::Task task{std::atoi(arguments[2]), std::atoi(arguments[3]), std::atoi(arguments[4]),
                              std::atoi(arguments[5])};
      std::puts(names[static_cast<int>(hopper::choose(task))]);
      return 0;
    }
    if (what == "room" && n == 3) {
      Case c = read_case(arguments[2]);
      return room(c);
    }
    const std::map<std::string, void (*)(Case&)> kernels = {
        {"persistent", persistent}, {"resident", resident}, {"streamed", streamed}};
    if (n == 4 && kernels.count(what)) {
      Case c = read_case(arguments[2]);
      kernels.at(what)(c);
      write_case(c, arguments[3]);
      return 0;
    }
    std::fprintf(stderr,
                 "expected: products, together, choose UNITS OTHER CHAINS ROOM, room CASE, or persistent, resident or "
                 "streamed CASE OUT\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 2;
}
