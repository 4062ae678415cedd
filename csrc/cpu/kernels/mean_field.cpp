// Mean-field iterations with float32 products: every instruction set has these.
#include "cpu/kernels/isa.h"
#include "cpu/kernels/mean_step.h"

namespace bm::cpu::BM_ISA {

static void constant_fields(float* fields, MachineView machine, UpdateView update, const ValuesView* values,
                            int64_t first, int32_t n, Scratch scratch, StopView stop) {
  block_fields(machine, update, values, first, n, scratch, nullptr, nullptr, stop);
  memcpy(fields, scratch.fields, static_cast<int64_t>(n) * machine.layers[update.layer].padded * sizeof(float));
}

static bool is_set(ProgramView moving, const mean_field::Iterations& what, int n_set, int layer) {
  for (int s = 0; s < n_set; s++)
    if (moving.updates[what.start[s].update].layer == layer) return true;
  return false;
}

// Fields of one update for a block of cases, in scratch.fields, from the first n_set layers of the start alone.
static void sum_fields(MachineView machine, ProgramView moving, int i, float* const* means, const float* constant,
                       const mean_field::Iterations& what, int n_set, int64_t first, int32_t n, Scratch scratch) {
  const UpdateView& update = moving.updates[i];
  const LayerView& layer = machine.layers[update.layer];
  memcpy(scratch.fields, constant, static_cast<int64_t>(n) * layer.padded * sizeof(float));
  for (int j = 0; j < update.n_inputs; j++) {
    const InputView& input = update.inputs[j];
    if (n_set < what.n_start && !is_set(moving, what, n_set, input.layer)) continue;
    add_real_input(scratch.fields, input, means[input.layer] + first * input.weights.inputs, n, what.stop);
  }
}

static void iterate(MachineView machine, ProgramView moving, float* const* means, const mean_field::LayerWork* work,
                    const mean_field::LimbsView*, const mean_field::Iterations& what, int64_t first, int32_t n,
                    Scratch scratch) {
  for (int s = 0; s < what.n_start; s++) {
    const int i = what.start[s].update;
    const UpdateView& update = moving.updates[i];
    const LayerView& layer = machine.layers[update.layer];
    sum_fields(machine, moving, i, means, work[i].fields, what, s, first, n, scratch);
    for (int32_t c = 0; c < n; c++) {
      float* fields = scratch.fields + c * static_cast<int64_t>(layer.padded);
      scale_fields(fields, layer, what.start[s].scale);
      step_means(means[update.layer] + (first + c) * layer.units, fields, layer, 0.f);
    }
  }
  ActiveCases cases(n);
  for (int64_t iteration = 0; iteration < what.most && cases.n > 0 && !what.stop.requested(); iteration++) {
    cases.begin_iteration();
    for (int i = 0; i < moving.n_updates; i++) {
      const UpdateView& update = moving.updates[i];
      const LayerView& layer = machine.layers[update.layer];
      sum_fields(machine, moving, i, means, work[i].fields, what, what.n_start, first, n, scratch);
      for (int32_t k = 0; k < cases.n; k++) {
        const int32_t c = cases.rows[k];
        float* to = means[update.layer] + (first + c) * layer.units;
        cases.note(c, step_means(to, scratch.fields + c * static_cast<int64_t>(layer.padded), layer, what.damping));
      }
    }
    cases.end_iteration(what, first, iteration);
  }
}

extern const mean_field::Kernels mean_field_kernels;
const mean_field::Kernels mean_field_kernels = {constant_fields, iterate, nullptr};

}  // namespace bm::cpu::BM_ISA
