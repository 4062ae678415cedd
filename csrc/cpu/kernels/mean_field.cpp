// Mean-field iterations with float32 products: every instruction set has these.
#include "cpu/kernels/isa.h"
#include "cpu/kernels/mean_step.h"

namespace bm::cpu::BM_ISA {

static void constant_fields(float* fields, MachineView machine, UpdateView update, const ValuesView* values,
                            int64_t first, int32_t n, Scratch scratch) {
  block_fields(machine, update, values, first, n, scratch, {never, nullptr});
  memcpy(fields, scratch.fields, static_cast<int64_t>(n) * machine.layers[update.layer].padded * sizeof(float));
}

static void iterate(MachineView machine, ProgramView moving, float* const* means, const mean_field::LayerWork* work,
                    const mean_field::LimbsView*, const mean_field::Iterations& what, int64_t first, int32_t n,
                    Scratch scratch) {
  ActiveCases cases(n);
  for (int64_t iteration = 0; iteration < what.most && cases.n > 0; iteration++) {
    cases.begin_iteration();
    for (int i = 0; i < moving.n_updates; i++) {
      const UpdateView& update = moving.updates[i];
      const LayerView& layer = machine.layers[update.layer];
      memcpy(scratch.fields, work[i].fields, static_cast<int64_t>(n) * layer.padded * sizeof(float));
      for (int j = 0; j < update.n_inputs; j++) {
        const InputView& input = update.inputs[j];
        add_real_input(scratch.fields, input, means[input.layer] + first * input.weights.inputs, n, {never, nullptr});
      }
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
