#include "cpu/rounding.h"

#include <algorithm>
#include <cmath>

#include "cpu/machine.h"

namespace bm::cpu {
namespace {

constexpr int64_t kMostShort = 32767;

int32_t runs(int32_t inputs) { return (inputs + kRunInputs - 1) / kRunInputs; }

// Above the sizes of all fields of a layer, and of what they are on the way there.
double largest_field(const Machine& machine, const UpdateView& update, double most_base) {
  const LayerView& layer = machine.layer(update.layer);
  double largest = most_base;
  for (int32_t u = 0; u < layer.units; u++) largest = std::max(largest, std::abs(static_cast<double>(layer.biases[u])));
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    const int64_t all = machine.weights(input.coupling).bounds(input.transposed).all;
    largest += std::abs(static_cast<double>(input.scale)) * static_cast<double>(all);
  }
  return largest;
}

bool reads_binary_layers_alone(const Machine& machine, const UpdateView& update) {
  for (int i = 0; i < update.n_inputs; i++)
    if (machine.layer(update.inputs[i].layer).kind == Kind::kGaussian) return false;
  return true;
}

}  // namespace

Rounding finest_rounding(const SumBounds& bounds, int32_t inputs) {
  // Rounding down makes each weight, and each run, smaller by less than one unit.
  Rounding rounding = {0, 0};
  while ((bounds.run >> rounding.fine) + kRunInputs > kMostShort) rounding.fine++;
  rounding.coarse = rounding.fine;
  const int64_t all = bounds.all + (static_cast<int64_t>(inputs) << rounding.fine);
  while ((all >> rounding.coarse) + runs(inputs) > kMostShort) rounding.coarse++;
  return rounding;
}

double rounding_reach(const Rounding& rounding, int32_t inputs, double share_on) {
  const double fine = std::ldexp(1., rounding.fine), coarse = std::ldexp(1., rounding.coarse);
  return 0.5 * (share_on * inputs * (fine - 1) + runs(inputs) * (coarse - fine));
}

bool few_in_doubt(double reach, int64_t units, int64_t weights) {
  // Weights by output that the second and third cache hold, and those that memory has to bring. Measured:
  // docs/kernels.md
  constexpr int64_t kCached = int64_t{4} << 20;
  const bool cached = units * weights * static_cast<int64_t>(sizeof(int16_t)) <= kCached;
  return 0.5 * reach <= (cached ? 0.05 : 0.003);
}

void ProgramPlan::round_sums(const Outlook& outlook, int threads) {
  InputView* input = inputs_.data();
  for (UpdateView& update : updates_) {
    InputView* const end = input + update.n_inputs;
    update.rounded = false;
    for (InputView* i = input; i < end; i++) i->rounded = false;
    const bool suits = machine_.layer(update.layer).kind == Kind::kBernoulli &&
                       reads_binary_layers_alone(machine_, update) &&
                       std::any_of(input, end, [&](const InputView& i) { return outlook.is_many[i.layer]; });
    if (!suits) {
      input = end;
      continue;
    }
    // For each input and each side two roundings of floats, the same again for what is put back, and tempering.
    double reach = largest_field(machine_, update, outlook.most_base) * (update.n_inputs + 1) * 0x1p-20;
    update.slack = static_cast<float>(reach);
    int64_t weights = 0;
    for (InputView* i = input; i < end; i++) {
      weights += i->weights.inputs;
      if (!outlook.is_many[i->layer]) continue;
      i->rounding = finest_rounding(machine_.weights(i->coupling).bounds(i->transposed), i->weights.inputs);
      reach += std::abs(static_cast<double>(i->scale)) *
               rounding_reach(i->rounding, i->weights.inputs, outlook.share_on[i->layer]);
    }
    update.rounded = few_in_doubt(reach * outlook.most_beta, machine_.layer(update.layer).units, weights);
    for (; input < end; input++) {
      input->rounded = update.rounded && outlook.is_many[input->layer];
      if (update.rounded) input->columns = machine_.weights(input->coupling).rows(!input->transposed, threads);
    }
  }
}

}  // namespace bm::cpu
