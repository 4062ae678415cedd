// The compiled module of the GPU: as module.cpp, with addresses on the device. Memory of the device is Python's: a
// function that the caller passes takes it, so that torch's allocator serves all, and a lack of memory is torch's
// error.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "binding.h"
#include "cuda/binary.h"
#include "cuda/device.h"
#include "cuda/draw.h"
#include "cuda/machine.h"
#include "cuda/swap.h"
#include "structure.h"

namespace py = pybind11;
using namespace bm::binding;

namespace {

constexpr int64_t kMaxChainsOfCall = bm::kMaxChains - 1;  // kernels count chains in 32 bits

// Where a call works, as Python says it.
struct PlainPlace {
  int device;
  Address stream;
  py::function allocate;
};

bm::cuda::Place use(const PlainPlace& plain) {
  bm::cuda::use_device(plain.device);
  return {at<void>(plain.stream), [&plain](int64_t bytes) {
            const py::gil_scoped_acquire acquire;
            return at<void>(plain.allocate(bytes).cast<Address>());
          }};
}

using PlainSource = std::tuple<int, int, Address, bool, Address>;  // lower, upper, weights, real, grid

bm::Structure structure_of(const std::vector<PlainLayer>& layers, const std::vector<PlainSource>& couplings) {
  std::vector<bm::CouplingParameters> parameters;
  for (const auto& [lower, upper, weights, real, grid] : couplings) {
    parameters.push_back({lower, upper, at<const int16_t>(weights), 0});
    bm::check_address("grid of coupling " + std::to_string(parameters.size() - 1), at<const void>(grid));
  }
  return {layers_of(layers), parameters};
}

std::vector<bm::cuda::CouplingSource> sources_of(const std::vector<PlainSource>& plain) {
  std::vector<bm::cuda::CouplingSource> sources;
  for (const auto& [lower, upper, weights, real, grid] : plain)
    sources.push_back({lower, upper, real ? nullptr : at<const int16_t>(weights),
                       real ? at<const float>(weights) : nullptr, at<float>(grid)});
  return sources;
}

// Whole ladders that the kernels can hold.
void check_ladders(int64_t n_rungs, int64_t n_chains) {
  bm::check_range("n_rungs", n_rungs, 2, bm::cuda::kMaxRungs);
  bm::check_ladders(n_rungs, n_chains);
}

class Machine {
 public:
  Machine(const std::vector<PlainLayer>& layers, const std::vector<PlainSource>& couplings, const PlainPlace& place)
      : structure_(structure_of(layers, couplings)), machine_(layers_of(layers), sources_of(couplings), use(place)) {}

  void refresh(Address refused, const PlainPlace& place) const {
    bm::check_address("refused", at<const void>(refused));
    machine_.refresh(at<uint32_t>(refused), use(place));
  }

  void sweep(const std::vector<std::vector<PlainUpdate>>& plain, const std::vector<Address>& states, int64_t n_chains,
             int64_t n_sweeps, uint64_t seed, uint32_t first_chain, int64_t first_sweep, Address beta,
             const std::vector<Address>& base, const std::vector<Address>& clamp, const std::vector<Address>& means,
             Address sweeps_before, const PlainPlace& place, Address sweeps_done, const py::function& progress) const {
    const bm::Program program = program_of(plain);
    const std::vector<void*> states_at = all_at<void>(states);
    const bm::Sweep what{n_chains,
                         n_sweeps,
                         seed,
                         first_chain,
                         static_cast<uint32_t>(first_sweep),
                         at<const float>(beta),
                         all_at<const float>(base),
                         all_at<const uint8_t>(clamp),
                         all_at<float>(means)};
    structure_.check_program(program);
    structure_.check_addresses("states", states_at);
    structure_.check_addresses("clamp", what.clamp, true);
    structure_.check_addresses("means", what.means, true);
    structure_.check_tempering(what.beta, what.base);
    bm::check_range("n_chains", n_chains, 1, kMaxChainsOfCall);
    bm::check_range("first_sweep", first_sweep, 0, bm::kMaxSweeps);
    bm::check_range("n_sweeps", n_sweeps, 0, bm::kMaxSweeps - first_sweep);
    bm::check_address("sweeps_done", at<const void>(sweeps_done));
    run_interruptible(sweeps_done, progress, [&](const auto& report, const auto& interrupted) {
      bm::cuda::sweep(machine_, program, states_at, what, at<const uint32_t>(sweeps_before), use(place), report,
                      interrupted);
    });
  }

  void temper(const std::vector<std::vector<PlainUpdate>>& plain, const std::vector<Address>& states,
              const PlainRungs& rungs, Address beta, int64_t n_chains, int64_t n_rungs, int64_t n_rounds,
              int64_t sweeps_per_round, uint64_t seed, uint32_t first_chain, int64_t first_sweep, int64_t first_round,
              Address betas, const std::vector<Address>& base, const std::vector<Address>& means, Address trace,
              Address sweeps_before, Address rounds_before, const PlainPlace& place, Address rounds_done,
              const py::function& progress) const {
    const bm::Program program = program_of(plain);
    const std::vector<void*> states_at = all_at<void>(states);
    const bm::Rungs rungs_at = rungs_of(rungs);
    const bm::Temper what{n_chains,
                          n_rungs,
                          n_rounds,
                          sweeps_per_round,
                          seed,
                          first_chain,
                          static_cast<uint32_t>(first_sweep),
                          static_cast<uint32_t>(first_round),
                          at<const float>(betas),
                          all_at<const float>(base),
                          {},
                          all_at<float>(means),
                          at<double>(trace)};
    structure_.check_program(program);
    structure_.check_addresses("states", states_at);
    structure_.check_addresses("means", what.means, true);
    structure_.check_tempering(what.betas, what.base);
    bm::check_range("n_chains", n_chains, 1, kMaxChainsOfCall);
    check_ladders(n_rungs, n_chains);
    bm::check_range("first_round", first_round, 0, bm::kMaxSweeps);
    bm::check_range("n_rounds", n_rounds, 0, bm::kMaxSweeps - first_round);
    bm::check_range("first_sweep", first_sweep, 0, bm::kMaxSweeps);
    bm::check_range("sweeps_per_round", sweeps_per_round, 1,
                    (bm::kMaxSweeps - first_sweep) / std::max<int64_t>(n_rounds, 1));
    for (const auto& [name, address] : {std::pair{"beta", beta}, {"betas", betas}, {"rounds_done", rounds_done}})
      bm::check_address(name, at<const void>(address));
    run_interruptible(rounds_done, progress, [&](const auto& report, const auto& interrupted) {
      bm::cuda::temper(machine_, program, states_at, rungs_at, at<float>(beta), what,
                       {at<const uint32_t>(sweeps_before), at<const uint32_t>(rounds_before)}, use(place), report,
                       interrupted);
    });
  }

  void layer_means(const PlainUpdate& update, const std::vector<PlainValues>& values, int64_t n_chains, Address out,
                   Address beta, const std::vector<Address>& base, const PlainPlace& place) const {
    const bm::Block block = {update_of(update)};
    const std::vector<const float*> base_at = all_at<const float>(base);
    structure_.check_tempering(at<const float>(beta), base_at);
    check(block, values, n_chains, at<const void>(out));
    bm::cuda::layer_means(at<float>(out), machine_, block[0], values_of(values), n_chains, at<const float>(beta),
                          base_at, use(place));
  }

  void mean_field(const std::vector<std::vector<PlainUpdate>>& plain, const std::vector<PlainValues>& plain_values,
                  int64_t n_cases, int64_t iterations, float tolerance, float damping, Address changes,
                  Address performed, Address scratch, const PlainPlace& place) const {
    const bm::Program program = program_of(plain);
    const std::vector<bm::Values> values = values_of(plain_values);
    structure_.check_program(program);
    structure_.check_values(values);
    for (const bm::Block& block : program)
      for (const bm::Update& update : block)
        if (!values[update.layer].real)
          throw std::invalid_argument("values[" + std::to_string(update.layer) +
                                      "]: expected real values of a layer that is updated");
    bm::check_range("n_cases", n_cases, 1, kMaxChainsOfCall);
    bm::check_range("iterations", iterations, 1, std::numeric_limits<int32_t>::max());
    for (const auto& [name, address] : {std::pair{"changes", changes}, {"performed", performed}, {"scratch", scratch}})
      bm::check_address(name, at<const void>(address));
    bm::cuda::mean_field(
        machine_, program, values,
        {n_cases, iterations, tolerance, damping, at<float>(changes), at<uint32_t>(performed), at<uint32_t>(scratch)},
        use(place));
  }

  void energy(const std::vector<PlainValues>& values, int64_t n_chains, Address out, const PlainPlace& place) const {
    check({}, values, n_chains, at<const void>(out));
    bm::cuda::energy(at<double>(out), machine_, values_of(values), n_chains, use(place));
  }

  void gap(const std::vector<Address>& base, const std::vector<PlainValues>& values, int64_t n_chains, Address out,
           const PlainPlace& place) const {
    const std::vector<const float*> base_at = all_at<const float>(base);
    if (!base_at.empty()) structure_.check_addresses("base", base_at);
    check({}, values, n_chains, at<const void>(out));
    bm::cuda::gap(at<double>(out), machine_, base_at, values_of(values), n_chains, use(place));
  }

  void free_energy(const std::vector<PlainUpdate>& updates, const std::vector<PlainValues>& values, int64_t n_chains,
                   Address betas, int64_t n_betas, const std::vector<Address>& base, Address out,
                   const PlainPlace& place) const {
    const bm::Block block = block_of(updates);
    const std::vector<const float*> base_at = all_at<const float>(base);
    bm::check_range("n_betas", n_betas, 1, kMaxChainsOfCall);
    bm::check_address("betas", at<const void>(betas));
    structure_.check_tempering(at<const float>(betas), base_at);
    check(block, values, n_chains, at<const void>(out));
    bm::cuda::free_energy(at<double>(out), machine_, block, values_of(values), n_chains, at<const float>(betas),
                          n_betas, base_at, use(place));
  }

 private:
  void check(const bm::Block& block, const std::vector<PlainValues>& values, int64_t n_chains, const void* out) const {
    structure_.check_program({block});
    structure_.check_values(values_of(values));
    bm::check_range("n_chains", n_chains, 1, kMaxChainsOfCall);
    bm::check_address("out", out);
  }

  bm::Structure structure_;
  bm::cuda::Machine machine_;
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Compiled kernels of bm_fast for NVIDIA GPUs; bm_fast.ops is the way to them.";

  py::class_<PlainPlace>(m, "Place", py::module_local())
      .def(py::init<int, Address, py::function>(), py::arg("device"), py::arg("stream"), py::arg("allocate"));
  py::class_<Machine>(m, "Machine", py::module_local())
      .def(py::init<const std::vector<PlainLayer>&, const std::vector<PlainSource>&, const PlainPlace&>(),
           py::arg("layers"), py::arg("couplings"), py::arg("place"))
      .def("refresh", &Machine::refresh, py::arg("refused"), py::arg("place"))
      .def("sweep", &Machine::sweep, py::arg("program"), py::arg("states"), py::arg("n_chains"), py::arg("n_sweeps"),
           py::arg("seed"), py::arg("first_chain"), py::arg("first_sweep"), py::arg("beta"), py::arg("base"),
           py::arg("clamp"), py::arg("means"), py::arg("sweeps_before"), py::arg("place"), py::arg("sweeps_done"),
           py::arg("progress"))
      .def("temper", &Machine::temper, py::arg("program"), py::arg("states"), py::arg("rungs"), py::arg("beta"),
           py::arg("n_chains"), py::arg("n_rungs"), py::arg("n_rounds"), py::arg("sweeps_per_round"), py::arg("seed"),
           py::arg("first_chain"), py::arg("first_sweep"), py::arg("first_round"), py::arg("betas"), py::arg("base"),
           py::arg("means"), py::arg("trace"), py::arg("sweeps_before"), py::arg("rounds_before"), py::arg("place"),
           py::arg("rounds_done"), py::arg("progress"))
      .def("layer_means", &Machine::layer_means, py::arg("update"), py::arg("values"), py::arg("n_chains"),
           py::arg("out"), py::arg("beta"), py::arg("base"), py::arg("place"))
      .def("mean_field", &Machine::mean_field, py::arg("program"), py::arg("values"), py::arg("n_cases"),
           py::arg("iterations"), py::arg("tolerance"), py::arg("damping"), py::arg("changes"), py::arg("performed"),
           py::arg("scratch"), py::arg("place"))
      .def("energy", &Machine::energy, py::arg("values"), py::arg("n_chains"), py::arg("out"), py::arg("place"))
      .def("gap", &Machine::gap, py::arg("base"), py::arg("values"), py::arg("n_chains"), py::arg("out"),
           py::arg("place"))
      .def("free_energy", &Machine::free_energy, py::arg("updates"), py::arg("values"), py::arg("n_chains"),
           py::arg("betas"), py::arg("n_betas"), py::arg("base"), py::arg("out"), py::arg("place"));

  m.def(
      "advance",
      [](Address counter, uint32_t steps, const PlainPlace& place) {
        bm::check_address("counter", at<const void>(counter));
        bm::cuda::advance(at<uint32_t>(counter), steps, use(place).stream);
      },
      py::arg("counter"), py::arg("steps"), py::arg("place"));
  m.def(
      "bernoulli",
      [](Address probabilities, Address rows, int64_t n, int64_t units, Address out, uint64_t seed, uint32_t sweep,
         uint32_t layer_and_purpose, const PlainPlace& place) {
        bm::check_range("n", n, 1, kMaxChainsOfCall);
        bm::check_range("units", units, 1, bm::kMaxUnits);
        for (const auto& [name, address] : {std::pair{"probabilities", probabilities}, {"rows", rows}, {"out", out}})
          bm::check_address(name, at<const void>(address));
        bm::cuda::bernoulli(at<uint8_t>(out), at<const float>(probabilities), at<const int64_t>(rows), n, units, seed,
                            sweep, layer_and_purpose, use(place).stream);
      },
      py::arg("probabilities"), py::arg("rows"), py::arg("n"), py::arg("units"), py::arg("out"), py::arg("seed"),
      py::arg("sweep"), py::arg("layer_and_purpose"), py::arg("place"));

  m.def(
      "statistics",
      [](Address lower, bool lower_real, int64_t n_lower, Address upper, bool upper_real, int64_t n_upper,
         int64_t n_chains, Address out, const PlainPlace& place) {
        bm::check_range("n_lower", n_lower, 1, bm::kMaxUnits);
        bm::check_range("n_upper", n_upper, 1, bm::kMaxUnits);
        bm::check_range("n_chains", n_chains, 1, kMaxChainsOfCall);
        for (const auto& [name, address] : {std::pair{"lower", lower}, {"upper", upper}, {"out", out}})
          bm::check_address(name, at<const void>(address));
        bm::cuda::statistics(at<float>(out), values_of({lower, lower_real}), n_lower, values_of({upper, upper_real}),
                             n_upper, n_chains, use(place));
      },
      py::arg("lower"), py::arg("lower_real"), py::arg("n_lower"), py::arg("upper"), py::arg("upper_real"),
      py::arg("n_upper"), py::arg("n_chains"), py::arg("out"), py::arg("place"));

  m.def(
      "swap",
      [](const PlainRungs& rungs, Address gaps, Address betas, int64_t n_rungs, int64_t n_chains, uint64_t seed,
         uint32_t first_ladder, uint32_t round, const PlainPlace& place) {
        const bm::Rungs at_rungs = rungs_of(rungs);
        bm::check_range("n_chains", n_chains, 1, kMaxChainsOfCall);
        check_ladders(n_rungs, n_chains);
        for (const auto& [name, address] : {std::pair{"gaps", gaps}, {"betas", betas}})
          bm::check_address(name, at<const void>(address));
        const bm::cuda::Place here = use(place);
        const int64_t n_ladders = n_chains / n_rungs;
        bm::cuda::Swap swap{};
        swap.rungs = at_rungs.rungs;
        swap.gaps = at<const double>(gaps);
        swap.betas = at<const float>(betas);
        swap.probabilities =
            static_cast<double*>(here.allocate(n_ladders * (n_rungs - 1) * static_cast<int64_t>(sizeof(double))));
        swap.attempts = at_rungs.attempts;
        swap.acceptances = at_rungs.acceptances;
        swap.heading = at_rungs.heading;
        swap.trips = at_rungs.trips;
        swap.n_ladders = static_cast<int32_t>(n_ladders);
        swap.n_rungs = static_cast<int32_t>(n_rungs);
        swap.seed = seed;
        swap.first_ladder = first_ladder;
        swap.round = round;
        bm::cuda::swap(swap, here.stream);
      },
      py::arg("rungs"), py::arg("gaps"), py::arg("betas"), py::arg("n_rungs"), py::arg("n_chains"), py::arg("seed"),
      py::arg("first_ladder"), py::arg("round"), py::arg("place"));

  m.def("gpu", &bm::cuda::gpu, py::arg("device"),
        "A CUDA device by its number, or \"none: \" and why the kernels cannot run on it.");
}
