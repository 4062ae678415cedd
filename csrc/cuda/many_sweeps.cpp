#include "cuda/many_sweeps.h"

namespace bm::cuda {
namespace {

// Two layers in turn whose only coupling has its weights in the order that stays in a cluster.
bool is_resident(const Machine& machine, const Program& program) {
  if (program.size() != 2) return false;
  for (const Block& block : program)
    if (block.size() != 1 || block[0].inputs.size() != 1) return false;
  const Input& first = program[0][0].inputs[0];
  const Machine::Direction& weights = machine.couplings()[first.coupling].to(first);
  return weights.hopper && weights.layout == hopper::Layout::kResident;
}

int resident_place(const Update& update) { return update.inputs[0].transposed ? 0 : 1; }

// Layers of bits alone whose weights are all there in the order that streams.
bool may_persist(const Machine& machine, const Program& program, const Views& views) {
  size_t n_updates = 0, n_inputs = 0;
  for (const Block& block : program)
    for (const Update& update : block) {
      n_updates++;
      n_inputs += update.inputs.size();
      if (!is_binary(machine, update, views)) return false;
      for (const Input& input : update.inputs) {
        const Machine::Direction& weights = machine.couplings()[input.coupling].to(input);
        if (!weights.hopper || weights.layout != hopper::Layout::kStreamed) return false;
      }
    }
  return n_updates > 0 && n_updates <= hopper::kMostUpdates && n_inputs <= hopper::kMostSources;
}

hopper::SweptLayer swept_layer(const Machine& machine, const Update& update, const Views& views,
                               const std::vector<const uint32_t*>& clamp, const Sweep& what) {
  return {views[update.layer].bits,
          clamp[update.layer],
          machine.layers()[update.layer].biases,
          entry(what.base, update.layer),
          nullptr,
          units_of(machine, update.layer),
          units::layer_and_purpose(static_cast<uint32_t>(update.layer), units::kGibbs)};
}

void set_call(hopper::Sweeps& sweeps, const Sweep& what, const uint32_t* sweeps_before) {
  sweeps.beta = what.beta;
  sweeps.sweeps_before = sweeps_before;
  sweeps.seed = what.seed;
  sweeps.n_chains = static_cast<int32_t>(what.n_chains);
  sweeps.first_chain = what.first_chain;
}

}  // namespace

std::optional<ManySweeps> many_sweeps(const Machine& machine, const Program& program, const Views& views,
                                      const std::vector<const uint32_t*>& clamp, const Sweep& what,
                                      const uint32_t* sweeps_before, const Place& place) {
  if (is_resident(machine, program)) {
    const Machine::Coupling& coupling = machine.couplings()[program[0][0].inputs[0].coupling];
    hopper::ResidentSweeps sweeps{};
    set_call(sweeps, what, sweeps_before);
    for (const Block& block : program)
      sweeps.layers[resident_place(block[0])] = {swept_layer(machine, block[0], views, clamp, what),
                                                 coupling.to(block[0].inputs[0]).hopper, block[0].inputs[0].scale};
    sweeps.grid = coupling.source.grid;
    sweeps.first = resident_place(program[0][0]);
    return sweeps;
  }
  if (!may_persist(machine, program, views)) return std::nullopt;
  hopper::PersistentSweeps sweeps{};
  set_call(sweeps, what, sweeps_before);
  int32_t n_inputs = 0;
  for (const Block& block : program)
    for (const Update& update : block) {
      hopper::PersistentUpdate& to = sweeps.updates[sweeps.n_updates++];
      to = {swept_layer(machine, update, views, clamp, what), n_inputs, n_inputs, &update == &block.back()};
      for (const Input& input : update.inputs) {
        const Machine::Coupling& coupling = machine.couplings()[input.coupling];
        const int source = source_of(machine, input);
        sweeps.inputs[to.end_input++] = {views[source].bits, coupling.to(input).hopper, coupling.source.grid,
                                         input.scale, units_of(machine, source)};
      }
      n_inputs = to.end_input;
    }
  const hopper::Task task{sweeps.updates[0].units, 0, sweeps.n_chains, hopper::persistent_room(sweeps)};
  if (hopper::choose(task) != hopper::Kernel::kPersistent) return std::nullopt;
  sweeps.arrivals = take<uint32_t>(place, hopper::arrival_words(sweeps.n_chains));
  return sweeps;
}

void run(ManySweeps& sweeps, const Program& program, const Sweep& what, int64_t first, int64_t end, void* stream) {
  auto* resident = std::get_if<hopper::ResidentSweeps>(&sweeps);
  auto* persistent = std::get_if<hopper::PersistentSweeps>(&sweeps);
  hopper::Sweeps& call = resident ? static_cast<hopper::Sweeps&>(*resident) : *persistent;
  call.first_sweep = what.first_sweep + static_cast<uint32_t>(first);
  call.n_sweeps = static_cast<uint32_t>(end - first);
  if (end == what.n_sweeps) {
    size_t number = 0;
    for (const Block& block : program)
      for (const Update& update : block) {
        hopper::SweptLayer& layer = resident
                                        ? static_cast<hopper::SweptLayer&>(resident->layers[resident_place(update)])
                                        : persistent->updates[number];
        layer.means = what.means[update.layer];
        number++;
      }
  }
  resident ? hopper::sweep_resident(*resident, stream) : hopper::sweep_persistent(*persistent, stream);
}

}  // namespace bm::cuda
