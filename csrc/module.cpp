// The compiled module: addresses and sizes in, the GIL released, C++ exceptions to Python errors. python/bm_fast/ops
// has checked dtype, shape, contiguity and device of what it passes, and keeps the tensors alive; structure.h checks
// what does not take a look at the arrays.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>

#include "binding.h"
#include "ops.h"
#include "structure.h"

namespace py = pybind11;
using namespace bm::binding;

namespace {

class Machine {
 public:
  // are_values: weights are float32, not yet on the grid
  Machine(const std::vector<PlainLayer>& layers, const std::vector<PlainCoupling>& couplings, bool are_values,
          int threads) {
    const std::vector<bm::LayerParameters> layer_parameters = layers_of(layers);
    std::vector<bm::CouplingParameters> coupling_parameters = couplings_of(couplings);
    for (size_t i = 0; are_values && i < couplings.size(); i++) {
      coupling_parameters[i].weights = nullptr;
      coupling_parameters[i].values = at<const float>(std::get<2>(couplings[i]));
    }
    structure_.emplace(layer_parameters, coupling_parameters);
    bm::check_threads(threads);
    const py::gil_scoped_release release;
    machine_ = bm::build_machine(layer_parameters, coupling_parameters, threads);
  }

  void read_weights(int coupling, Address out) const {
    bm::check_range("coupling", coupling, 0, structure_->n_couplings() - 1);
    bm::check_address("out", at<const void>(out));
    bm::read_weights(at<int16_t>(out), *machine_, coupling);
  }

  bool has_lookup_tables() const { return bm::has_lookup_tables(*machine_); }

  void sweep(const std::vector<std::vector<PlainUpdate>>& plain, const std::vector<Address>& states, int64_t n_chains,
             int64_t n_sweeps, uint64_t seed, uint32_t first_chain, int64_t first_sweep, Address beta,
             const std::vector<Address>& base, const std::vector<Address>& clamp, const std::vector<Address>& means,
             int threads, Address sweeps_done, const py::function& progress) const {
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
    structure_->check_program(program);
    structure_->check_addresses("states", states_at);
    structure_->check_addresses("clamp", what.clamp, true);
    structure_->check_addresses("means", what.means, true);
    structure_->check_tempering(what.beta, what.base);
    bm::check_range("n_chains", n_chains, 1, bm::kMaxChains);
    bm::check_range("first_sweep", first_sweep, 0, bm::kMaxSweeps);
    bm::check_range("n_sweeps", n_sweeps, 0, bm::kMaxSweeps - first_sweep);
    bm::check_threads(threads);
    bm::check_address("sweeps_done", at<const void>(sweeps_done));
    run_interruptible(sweeps_done, progress, [&](const auto& report, const auto& interrupted) {
      bm::sweep(*machine_, program, states_at, what, threads, report, interrupted);
    });
  }

  void temper(const std::vector<std::vector<PlainUpdate>>& plain, const std::vector<Address>& states,
              const PlainRungs& rungs, int64_t n_chains, int64_t n_rungs, int64_t n_rounds, int64_t sweeps_per_round,
              uint64_t seed, uint32_t first_chain, int64_t first_sweep, int64_t first_round, Address betas,
              const std::vector<Address>& base, const std::vector<Address>& biases, int bias_bits,
              const std::vector<Address>& means, Address trace, int threads, Address rounds_done,
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
                          {all_at<const int64_t>(biases), bias_bits, !base.empty()},
                          all_at<float>(means),
                          at<double>(trace)};
    structure_->check_program(program);
    structure_->check_addresses("states", states_at);
    structure_->check_addresses("means", what.means, true);
    structure_->check_tempering(what.betas, what.base);
    structure_->check_gap_biases(what.gap);
    bm::check_ladders(n_rungs, n_chains);
    bm::check_range("first_round", first_round, 0, bm::kMaxSweeps);
    bm::check_range("n_rounds", n_rounds, 0, bm::kMaxSweeps - first_round);
    bm::check_range("first_sweep", first_sweep, 0, bm::kMaxSweeps);
    bm::check_range("sweeps_per_round", sweeps_per_round, 1,
                    (bm::kMaxSweeps - first_sweep) / std::max<int64_t>(n_rounds, 1));
    bm::check_threads(threads);
    bm::check_address("betas", what.betas);
    bm::check_address("rounds_done", at<const void>(rounds_done));
    run_interruptible(rounds_done, progress, [&](const auto& report, const auto& interrupted) {
      bm::temper(*machine_, program, states_at, rungs_at, what, threads, report, interrupted);
    });
  }

  void anneal(const std::vector<std::vector<PlainUpdate>>& plain, const std::vector<Address>& states, int64_t n_chains,
              int64_t n_steps, uint64_t seed, uint32_t first_chain, int64_t first_sweep, Address betas,
              const std::vector<Address>& base, Address log_weights, int threads, Address steps_done,
              const py::function& progress) const {
    const bm::Program program = program_of(plain);
    const std::vector<void*> states_at = all_at<void>(states);
    const bm::Anneal what{n_chains,
                          n_steps,
                          seed,
                          first_chain,
                          static_cast<uint32_t>(first_sweep),
                          at<const float>(betas),
                          all_at<const float>(base)};
    structure_->check_program(program);
    bm::check_range("program: number of blocks", static_cast<int64_t>(program.size()), 1,
                    std::numeric_limits<int32_t>::max());
    structure_->check_addresses("states", states_at);
    structure_->check_addresses("base", what.base);
    bm::check_range("n_chains", n_chains, 1, bm::kMaxChains);
    bm::check_range("first_sweep", first_sweep, 0, bm::kMaxSweeps);
    bm::check_range("n_steps", n_steps, 0, bm::kMaxSweeps - first_sweep);
    bm::check_threads(threads);
    bm::check_address("betas", what.betas);
    bm::check_address("log_weights", at<const void>(log_weights));
    bm::check_address("steps_done", at<const void>(steps_done));
    run_interruptible(steps_done, progress, [&](const auto& report, const auto& interrupted) {
      bm::anneal(*machine_, program, states_at, at<double>(log_weights), what, threads, report, interrupted);
    });
  }

  void layer_means(const PlainUpdate& update, const std::vector<PlainValues>& values, int64_t n_chains, Address out,
                   Address beta, const std::vector<Address>& base, int threads) const {
    const bm::Block block = {update_of(update)};
    const std::vector<const float*> base_at = all_at<const float>(base);
    structure_->check_tempering(at<const float>(beta), base_at);
    check(block, values, n_chains, at<const void>(out), threads);
    const py::gil_scoped_release release;
    bm::layer_means(at<float>(out), *machine_, block[0], values_of(values), n_chains, at<const float>(beta), base_at,
                    threads);
  }

  void mean_field(const std::vector<std::vector<PlainUpdate>>& plain, const std::vector<PlainValues>& plain_values,
                  int64_t n_cases, const std::vector<std::tuple<int, double>>& start, int64_t iterations,
                  float tolerance, float damping, Address changes, Address performed, int threads) const {
    bm::Program program;
    for (const auto& block : plain) program.push_back(block_of(block));
    const std::vector<bm::Values> values = values_of(plain_values);
    structure_->check_program(program);
    structure_->check_values(values);
    for (const bm::Block& block : program)
      for (const bm::Update& update : block)
        if (!values[update.layer].real)
          throw std::invalid_argument("values[" + std::to_string(update.layer) +
                                      "]: expected real values of a layer that is updated");
    std::vector<bm::Outset> outsets;
    for (const auto& [layer, scale] : start) outsets.push_back({layer, scale});
    structure_->check_start(outsets, program);
    bm::check_range("n_cases", n_cases, 1, bm::kMaxChains);
    bm::check_range("iterations", iterations, 1, std::numeric_limits<int32_t>::max());
    bm::check_address("changes", at<const void>(changes));
    bm::check_address("performed", at<const void>(performed));
    bm::check_threads(threads);
    const bm::MeanField what = {n_cases, iterations, tolerance, damping, at<float>(changes), at<int32_t>(performed),
                                outsets};
    run_interruptible(
        [&](const auto& interrupted) { bm::mean_field(*machine_, program, values, what, threads, interrupted); });
  }

  void energy(const std::vector<PlainValues>& values, int64_t n_chains, Address out, int threads) const {
    check({}, values, n_chains, at<const void>(out), threads);
    const py::gil_scoped_release release;
    bm::energy(at<double>(out), *machine_, values_of(values), n_chains, threads);
  }

  void gap(const std::vector<Address>& biases, int bias_bits, bool has_base, const std::vector<PlainValues>& values,
           int64_t n_chains, Address out, int threads) const {
    const bm::GapBiases gap_biases = {all_at<const int64_t>(biases), bias_bits, has_base};
    structure_->check_gap_biases(gap_biases);
    check({}, values, n_chains, at<const void>(out), threads);
    const py::gil_scoped_release release;
    bm::gap(at<double>(out), *machine_, gap_biases, values_of(values), n_chains, threads);
  }

  void free_energy(const std::vector<PlainUpdate>& updates, const std::vector<PlainValues>& values, int64_t n_chains,
                   Address betas, int64_t n_betas, const std::vector<Address>& base, Address out, int threads) const {
    const bm::Block block = block_of(updates);
    const std::vector<const float*> base_at = all_at<const float>(base);
    bm::check_range("n_betas", n_betas, 1, bm::kMaxChains);
    bm::check_address("betas", at<const void>(betas));
    structure_->check_tempering(at<const float>(betas), base_at);
    check(block, values, n_chains, at<const void>(out), threads);
    const py::gil_scoped_release release;
    bm::free_energy(at<double>(out), *machine_, block, values_of(values), n_chains, at<const float>(betas), n_betas,
                    base_at, threads);
  }

 private:
  void check(const bm::Block& block, const std::vector<PlainValues>& values, int64_t n_chains, const void* out,
             int threads) const {
    structure_->check_program({block});
    structure_->check_values(values_of(values));
    bm::check_range("n_chains", n_chains, 1, bm::kMaxChains);
    bm::check_address("out", out);
    bm::check_threads(threads);
  }

  std::optional<bm::Structure> structure_;
  std::shared_ptr<const bm::Machine> machine_;
};

// Sizes and addresses of a function that knows no machine.
void check(std::initializer_list<std::pair<const char*, int64_t>> sizes,
           std::initializer_list<std::pair<const char*, Address>> addresses, int threads) {
  for (const auto& [name, size] : sizes) bm::check_range(name, size, 1, int64_t{1} << 40);
  for (const auto& [name, address] : addresses) bm::check_address(name, at<const void>(address));
  bm::check_threads(threads);
}

// Operations take and free the same hundreds of kilobytes in every update of a training. The GNU C library gives such
// memory back to the system, to be mapped and cleared page by page the next time, until a larger block has been freed:
// from then on it keeps blocks up to that size. A block that is never touched costs nothing. Limits that a user has set
// stay as they are.
void keep_freed_memory() {
  void* volatile block = std::malloc(size_t{16} << 20);
  std::free(block);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  keep_freed_memory();
  m.doc() = "Compiled kernels of bm_fast; bm_fast.ops is the way to them.";
  const auto released = py::call_guard<py::gil_scoped_release>();

  py::class_<Machine>(m, "Machine")
      .def(py::init<const std::vector<PlainLayer>&, const std::vector<PlainCoupling>&, bool, int>(), py::arg("layers"),
           py::arg("couplings"), py::arg("are_values"), py::arg("threads"))
      .def("read_weights", &Machine::read_weights, py::arg("coupling"), py::arg("out"))
      .def("has_lookup_tables", &Machine::has_lookup_tables)
      .def("sweep", &Machine::sweep, py::arg("program"), py::arg("states"), py::arg("n_chains"), py::arg("n_sweeps"),
           py::arg("seed"), py::arg("first_chain"), py::arg("first_sweep"), py::arg("beta"), py::arg("base"),
           py::arg("clamp"), py::arg("means"), py::arg("threads"), py::arg("sweeps_done"), py::arg("progress"))
      .def("temper", &Machine::temper, py::arg("program"), py::arg("states"), py::arg("rungs"), py::arg("n_chains"),
           py::arg("n_rungs"), py::arg("n_rounds"), py::arg("sweeps_per_round"), py::arg("seed"),
           py::arg("first_chain"), py::arg("first_sweep"), py::arg("first_round"), py::arg("betas"), py::arg("base"),
           py::arg("biases"), py::arg("bias_bits"), py::arg("means"), py::arg("trace"), py::arg("threads"),
           py::arg("rounds_done"), py::arg("progress"))
      .def("anneal", &Machine::anneal, py::arg("program"), py::arg("states"), py::arg("n_chains"), py::arg("n_steps"),
           py::arg("seed"), py::arg("first_chain"), py::arg("first_sweep"), py::arg("betas"), py::arg("base"),
           py::arg("log_weights"), py::arg("threads"), py::arg("steps_done"), py::arg("progress"))
      .def("layer_means", &Machine::layer_means, py::arg("update"), py::arg("values"), py::arg("n_chains"),
           py::arg("out"), py::arg("beta"), py::arg("base"), py::arg("threads"))
      .def("mean_field", &Machine::mean_field, py::arg("program"), py::arg("values"), py::arg("n_cases"),
           py::arg("start"), py::arg("iterations"), py::arg("tolerance"), py::arg("damping"), py::arg("changes"),
           py::arg("performed"), py::arg("threads"))
      .def("energy", &Machine::energy, py::arg("values"), py::arg("n_chains"), py::arg("out"), py::arg("threads"))
      .def("gap", &Machine::gap, py::arg("biases"), py::arg("bias_bits"), py::arg("has_base"), py::arg("values"),
           py::arg("n_chains"), py::arg("out"), py::arg("threads"))
      .def("free_energy", &Machine::free_energy, py::arg("updates"), py::arg("values"), py::arg("n_chains"),
           py::arg("betas"), py::arg("n_betas"), py::arg("base"), py::arg("out"), py::arg("threads"));

  m.def(
      "statistics",
      [](Address lower, bool lower_real, int64_t n_lower, Address upper, bool upper_real, int64_t n_upper,
         int64_t n_chains, Address out, int threads) {
        check({{"n_lower", n_lower}, {"n_upper", n_upper}, {"n_chains", n_chains}},
              {{"lower", lower}, {"upper", upper}, {"out", out}}, threads);
        bm::statistics(at<float>(out), {at<const void>(lower), lower_real}, n_lower,
                       {at<const void>(upper), upper_real}, n_upper, n_chains, threads);
      },
      py::arg("lower"), py::arg("lower_real"), py::arg("n_lower"), py::arg("upper"), py::arg("upper_real"),
      py::arg("n_upper"), py::arg("n_chains"), py::arg("out"), py::arg("threads"), released);
  m.def(
      "gradient",
      [](Address visible, bool visible_real, int64_t n_visible, Address hidden, int64_t n_hidden, int64_t n_chains,
         Address signs, Address visible_means, Address hidden_means, Address visible_offsets, Address hidden_offsets,
         Address weight_out, Address visible_out, Address hidden_out, int threads) {
        bm::check_range("n_visible", n_visible, 1, bm::kMaxUnits);
        bm::check_range("n_hidden", n_hidden, 1, bm::kMaxUnits);
        bm::check_range("n_chains", n_chains, 1, bm::kMaxChains);
        check({},
              {{"visible", visible},
               {"hidden", hidden},
               {"signs", signs},
               {"visible_means", visible_means},
               {"hidden_means", hidden_means},
               {"weight_out", weight_out},
               {"visible_out", visible_out},
               {"hidden_out", hidden_out}},
              threads);
        if ((visible_offsets == 0) != (hidden_offsets == 0))
          throw std::invalid_argument("offsets: expected those of both layers or of neither");
        bm::gradient({at<float>(weight_out), at<float>(visible_out), at<float>(hidden_out)},
                     {n_chains, at<const float>(signs), at<const float>(visible_means), at<const float>(hidden_means),
                      at<const float>(visible_offsets), at<const float>(hidden_offsets)},
                     {at<const void>(visible), visible_real}, n_visible, at<const float>(hidden), n_hidden, threads);
      },
      py::arg("visible"), py::arg("visible_real"), py::arg("n_visible"), py::arg("hidden"), py::arg("n_hidden"),
      py::arg("n_chains"), py::arg("signs"), py::arg("visible_means"), py::arg("hidden_means"),
      py::arg("visible_offsets"), py::arg("hidden_offsets"), py::arg("weight_out"), py::arg("visible_out"),
      py::arg("hidden_out"), py::arg("threads"), released);
  m.def(
      "bernoulli",
      [](Address probabilities, Address rows, int64_t n, int64_t units, Address out, uint64_t seed, uint32_t sweep,
         uint32_t layer_and_purpose, int threads) {
        check({{"n", n}, {"units", units}}, {{"probabilities", probabilities}, {"rows", rows}, {"out", out}}, threads);
        bm::bernoulli(at<uint8_t>(out), at<const float>(probabilities), at<const int64_t>(rows), n, units, seed, sweep,
                      layer_and_purpose, threads);
      },
      py::arg("probabilities"), py::arg("rows"), py::arg("n"), py::arg("units"), py::arg("out"), py::arg("seed"),
      py::arg("sweep"), py::arg("layer_and_purpose"), py::arg("threads"), released);
  m.def(
      "swap",
      [](const PlainRungs& rungs, Address gaps, Address betas, int64_t n_rungs, int64_t n_chains, uint64_t seed,
         uint32_t first_ladder, uint32_t round) {
        check({{"n_rungs", n_rungs}, {"n_chains", n_chains}}, {{"gaps", gaps}, {"betas", betas}}, 1);
        bm::check_ladders(n_rungs, n_chains);
        bm::swap(rungs_of(rungs), at<const double>(gaps), at<const float>(betas), n_rungs, n_chains, seed, first_ladder,
                 round);
      },
      py::arg("rungs"), py::arg("gaps"), py::arg("betas"), py::arg("n_rungs"), py::arg("n_chains"), py::arg("seed"),
      py::arg("first_ladder"), py::arg("round"), released);
  m.def(
      "largest_weight",
      [](Address weights, int64_t n, int threads) {
        check({{"n", n}}, {{"weights", weights}}, threads);
        return bm::largest_weight(at<const float>(weights), n, threads);
      },
      py::arg("weights"), py::arg("n"), py::arg("threads"), released);
  m.def(
      "quantise",
      [](Address weights, int64_t n, int fraction_bits, Address out, int threads) {
        check({{"n", n}}, {{"weights", weights}, {"out", out}}, threads);
        bm::check_range("fraction_bits", fraction_bits, 0, bm::kMaxFractionBits);
        bm::quantise(at<int16_t>(out), at<const float>(weights), n, fraction_bits, threads);
      },
      py::arg("weights"), py::arg("n"), py::arg("fraction_bits"), py::arg("out"), py::arg("threads"), released);

  m.def("version", [] { return BM_FAST_VERSION; }, "Version that the module was built from.");
  m.def("compiled_isas", &bm::compiled_isas, "Instruction sets in the module, from the least to the most demanding.");
  m.def("usable_isas", &bm::usable_isas, "Instruction sets that this processor has.");
  m.def("isa", &bm::isa, "The instruction set in use; ValueError where BM_FAST_ISA names none that can be.");
}
