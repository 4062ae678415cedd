// The driver of mean-field iterations: what stays is added up once, then each thread iterates blocks of cases.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "cpu/stop.h"
#include "cpu/work.h"

namespace bm {
namespace cpu {

namespace {

// Lets a reach cover further units, whose weights count `scale` times.
void include(mean_field::Reach& reach, const mean_field::Reach& further, double scale) {
  reach.sum = std::max(reach.sum, further.sum * scale);
  for (const int limb : {mean_field::kHigh, mean_field::kLow})
    reach.norms[limb] = std::max(reach.norms[limb], further.norms[limb] * scale);
}

}  // namespace

// W_q of a coupling seen from one end, as limbs.
class Limbs {
 public:
  Limbs(const WeightsView& weights, const mean_field::Kernels& kernels, int threads) {
    const int64_t quads = (weights.inputs + mean_field::kQuad - 1) / mean_field::kQuad;
    const int64_t size = quads * mean_field::kQuad * mean_field::kPanelUnits;  // of a panel
    const int panels = weights.stride / mean_field::kPanelUnits;
    high_ = Array<uint8_t>(size * panels);
    low_ = Array<uint8_t>(size * panels);
    steps_ = Array<float>(weights.stride);
    std::vector<mean_field::Reach> reaches(panels);
    threads = useful_threads(kPerWeight * weights.inputs * weights.outputs, threads);
#pragma omp parallel for num_threads(threads)
    for (int p = 0; p < panels; p++) {
      const int32_t unit = p * mean_field::kPanelUnits;
      reaches[p] = kernels.split(high_.data() + p * size, low_.data() + p * size, steps_.data() + unit, weights, unit);
    }
    for (const mean_field::Reach& reach : reaches) include(reach_, reach, 1);
  }
  mean_field::LimbsView view() const { return {high_.data(), low_.data(), steps_.data()}; }
  const mean_field::Reach& reach() const { return reach_; }

 private:
  Array<uint8_t> high_, low_;
  Array<float> steps_;
  mean_field::Reach reach_{};
};

namespace {

// A program in two: inputs from layers that stay as they are, and inputs from those that move.
Program with_inputs(const Machine& machine, const Program& program, bool moving) {
  std::vector<bool> moves(machine.n_layers());
  for (const Block& block : program)
    for (const Update& update : block) moves[update.layer] = true;
  Program part = program;
  for (Block& block : part)
    for (Update& update : block)
      std::erase_if(update.inputs, [&](const Input& input) {
        const CouplingParameters& coupling = machine.coupling(input.coupling);
        return moves[input.transposed ? coupling.upper : coupling.lower] != moving;
      });
  return part;
}

// How finely the means of a layer go into the products, and by how much they move the fields there; as in LayerWork.
struct Fineness {
  float grid;
  float reaches[mean_field::kLimbs];
};

// Memory of one thread for the layers that move. fineness: of each update, or nothing where there are no feeds.
class Work {
 public:
  Work(const Machine& machine, const ProgramView& program, const std::vector<Fineness>& fineness) {
    for (int i = 0; i < program.n_updates; i++) {
      const size_t size = static_cast<size_t>(mean_field::kCases) * machine.layer(program.updates[i].layer).padded;
      mean_field::LayerWork work{floats(size), {}, nullptr, nullptr, 0.f, {}};
      if (!fineness.empty()) {
        for (mean_field::Feed& feed : work.feeds) {
          bytes_.emplace_back(size);
          totals_.emplace_back(mean_field::kCases);
          feed = {floats(size), bytes_.back().data(), floats(mean_field::kCases), totals_.back().data()};
        }
        work.lags = floats(mean_field::kCases);
        flags_.emplace_back(mean_field::kCases);
        work.is_old = flags_.back().data();
        work.grid = fineness[i].grid;
        std::ranges::copy(fineness[i].reaches, work.reaches);
      }
      work_.push_back(work);
    }
  }
  const mean_field::LayerWork* data() const { return work_.data(); }

 private:
  float* floats(size_t size) {
    floats_.emplace_back(size);
    return floats_.back().data();
  }
  std::vector<Array<float>> floats_;
  std::vector<Array<int8_t>> bytes_;
  std::vector<Array<bool>> flags_;
  std::vector<Array<int32_t>> totals_;
  std::vector<mean_field::LayerWork> work_;
};

// Split on first use by whoever comes first.
const Limbs& limbs_of(const Machine& machine, const InputView& input, const mean_field::Kernels& kernels, int threads) {
  const std::lock_guard lock(machine.limbs_mutex);
  std::shared_ptr<const Limbs>& limbs = machine.limbs[2 * input.coupling + input.transposed];
  if (!limbs) limbs = std::make_shared<const Limbs>(input.weights, kernels, threads);
  return *limbs;
}

// What the kernels with limbs need: weights for each input of a program, and of each update; else nothing.
struct Split {
  std::vector<mean_field::LimbsView> limbs;
  std::vector<Fineness> fineness;
};

Split split(const Machine& machine, const ProgramView& program, const mean_field::Kernels& kernels, int threads) {
  Split split;
  if (!kernels.split) return split;
  // By layer: the largest of all inputs that lead from it.
  std::vector<mean_field::Reach> reaches(machine.n_layers());
  for (int i = 0; i < program.n_updates; i++)
    for (int j = 0; j < program.updates[i].n_inputs; j++) {
      const InputView& input = program.updates[i].inputs[j];
      const Limbs& limbs = limbs_of(machine, input, kernels, threads);
      split.limbs.push_back(limbs.view());
      include(reaches[input.layer], limbs.reach(), std::abs(static_cast<double>(input.scale)));
    }
  for (int i = 0; i < program.n_updates; i++) {
    const mean_field::Reach& reach = reaches[program.updates[i].layer];
    double grid = mean_field::kCoarsestGrid;
    while (grid > mean_field::kFinestGrid && grid / 2 * reach.sum > mean_field::kMostLeft) grid /= 2;
    split.fineness.push_back(
        {static_cast<float>(grid),
         {static_cast<float>(reach.norms[mean_field::kHigh]), static_cast<float>(reach.norms[mean_field::kLow])}});
  }
  return split;
}

// Those with limbs are for means of at most 1, whose size tells what is a small change.
const mean_field::Kernels& kernels_for(const Machine& machine, const ProgramView& moving) {
  for (int i = 0; i < moving.n_updates; i++)
    if (machine.layer(moving.updates[i].layer).kind == Kind::kGaussian) return *kernels().mean_field;
  return mean_field_kernels();
}

}  // namespace
}  // namespace cpu

void mean_field(const Machine& machine, const Program& program, const std::vector<Values>& values,
                const MeanField& what, int threads, const std::function<bool()>& interrupted) {
  const cpu::Kernels& k = cpu::kernels();
  std::vector<cpu::ValuesView> inputs;
  std::vector<float*> means;
  for (const Values& v : values) {
    inputs.push_back({v.data, v.real});
    means.push_back(v.real ? static_cast<float*>(const_cast<void*>(v.data)) : nullptr);
  }
  cpu::ProgramPlan staying(machine, cpu::with_inputs(machine, program, false));
  cpu::ProgramPlan moving(machine, cpu::with_inputs(machine, program, true));
  const cpu::mean_field::Kernels& kernels = cpu::kernels_for(machine, moving.view());
  const double operations = cpu::multiply_adds(staying.view(), what.n_cases) +
                            cpu::multiply_adds(moving.view(), what.n_cases) * static_cast<double>(what.iterations);
  threads = cpu::useful_threads(operations, threads);
  std::vector<bool> is_read(machine.n_layers());
  for (const cpu::ProgramPlan* plan : {&staying, &moving})
    for (int i = 0; i < plan->view().n_updates; i++) {
      const cpu::UpdateView& update = plan->view().updates[i];
      is_read[update.layer] = true;  // damping and changes read the old means
      for (int j = 0; j < update.n_inputs; j++) is_read[update.inputs[j].layer] = true;
    }
  std::vector<cpu::mean_field::Outset> start;
  for (const Outset& outset : what.start) {
    is_read[outset.layer] = false;
    start.push_back({cpu::mean_field::update_of(moving.view(), outset.layer), static_cast<float>(outset.scale)});
  }
  cpu::check_values(machine, inputs.data(), is_read, what.n_cases, threads);
  staying.lay_out(cpu::dense_layers(cpu::shares_on(machine, inputs.data(), what.n_cases), what.n_cases, threads),
                  threads);
  moving.lay_out(std::vector<bool>(machine.n_layers()), threads);
  const cpu::Split split = cpu::split(machine, moving.view(), kernels, threads);
  const cpu::ThreadScratch scratch(machine, threads);
  std::atomic<bool> stop{false};
  std::vector<cpu::StopState> stops(threads, {&stop, nullptr, cpu::StopState::Clock::now()});
  stops[0].interrupted = &interrupted;
  std::vector<cpu::Work> work;
  for (int t = 0; t < threads; t++) work.emplace_back(machine, moving.view(), split.fineness);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part part = cpu::part(what.n_cases, t, threads, cpu::mean_field::kTileCases);
    const cpu::StopView ask{cpu::StopState::ask, &stops[t]};
    const cpu::mean_field::Iterations iterations{start.data(),    static_cast<int>(start.size()),
                                                 what.iterations, what.tolerance,
                                                 what.damping,    what.changes,
                                                 what.performed,  ask};
    const int blocks = static_cast<int>((part.n + cpu::mean_field::kCases - 1) / cpu::mean_field::kCases);
    for (int b = 0; b < blocks && !ask.requested(); b++) {
      const cpu::Part block = cpu::part(part.n, b, blocks, cpu::mean_field::kTileCases);
      const int64_t first = part.first + block.first;
      const auto n = static_cast<int32_t>(block.n);
      for (int i = 0; i < staying.view().n_updates; i++)
        k.mean_field->constant_fields(work[t].data()[i].fields, machine.view(), staying.view().updates[i],
                                      inputs.data(), first, n, scratch[t], ask);
      kernels.iterate(machine.view(), moving.view(), means.data(), work[t].data(), split.limbs.data(), iterations,
                      first, n, scratch[t]);
    }
  }
}

}  // namespace bm
