#include "cpu/rounding.h"

#include <algorithm>
#include <cmath>

#include "cpu/machine.h"

namespace bm::cpu {
namespace {

constexpr int64_t kMostShort = 32767;

int32_t runs(int32_t inputs) { return (inputs + kRunInputs - 1) / kRunInputs; }

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

double float_slack(const Machine& machine, const UpdateView& update, double most_base, int threads) {
  const LayerView& layer = machine.layer(update.layer);
  double largest = most_base;  // above the sizes of all fields, and of what they are on the way there
  for (int32_t u = 0; u < layer.units; u++) largest = std::max(largest, std::abs(static_cast<double>(layer.biases[u])));
  for (int i = 0; i < update.n_inputs; i++) {
    const InputView& input = update.inputs[i];
    const int64_t all = machine.weights(input.coupling).bounds(input.transposed, threads).all;
    largest += std::abs(static_cast<double>(input.scale)) * static_cast<double>(all);
  }
  // For each input and each kernel two roundings, the same again for what is put back, and tempering: 2^-24 each.
  return largest * (update.n_inputs + 1) * 0x1p-20;
}

bool few_in_doubt(double reach, int64_t units, int64_t weights) {
  // A draw in doubt costs little where caches hold the weights of all units, and a wait for memory where they do not.
  constexpr int64_t kCached = int64_t{4} << 20;
  const bool cached = units * weights * static_cast<int64_t>(sizeof(int16_t)) <= kCached;
  return 0.5 * reach <= (cached ? 0.05 : 0.003);
}

void ProgramPlan::round_sums(const Outlook& outlook, int threads) {
  InputView* input = inputs_.data();
  for (UpdateView& update : updates_) {
    InputView* const end = input + update.n_inputs;
    update.rounded = take_rounding(update, input, end, outlook, threads);
    for (; input < end; input++) input->rounded = update.rounded && outlook.is_many[input->layer];
  }
}

bool ProgramPlan::take_rounding(UpdateView& update, InputView* begin, InputView* end, const Outlook& outlook,
                                int threads) const {
  if (machine_.layer(update.layer).kind != Kind::kBernoulli || !reads_binary_layers_alone(machine_, update) ||
      std::none_of(begin, end, [&](const InputView& input) { return outlook.is_many[input.layer]; }))
    return false;
  const double slack = float_slack(machine_, update, outlook.most_base, threads);
  double reach = slack;
  int64_t weights = 0;
  for (InputView* input = begin; input < end; input++) {
    weights += input->weights.inputs;
    if (!outlook.is_many[input->layer]) continue;
    input->rounding =
        finest_rounding(machine_.weights(input->coupling).bounds(input->transposed, threads), input->weights.inputs);
    reach += std::abs(static_cast<double>(input->scale)) *
             rounding_reach(input->rounding, input->weights.inputs, outlook.share_on[input->layer]);
  }
  if (!(reach < kMostReach) ||
      !few_in_doubt(outlook.most_beta * reach + outlook.most_rest * slack, machine_.layer(update.layer).units, weights))
    return false;
  update.slack = static_cast<float>(slack);
  try {
    for (InputView* input = begin; input < end; input++)
      input->columns = machine_.weights(input->coupling).rows(!input->transposed, threads);
  } catch (const std::bad_alloc&) {  // exact sums need no second copy of the weights
    return false;
  }
  return true;
}

}  // namespace bm::cpu
