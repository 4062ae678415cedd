// What the log density of a state gains from one inverse temperature to the next: beta (biases - base) of the layers
// that are kept, and the log partition functions of the units that are summed out. The fields of these are those that
// the next draw needs; it tempers them.
#pragma once

#include "cpu/kernels/fields.h"
#include "cpu/kernels/sums.h"

namespace bm::cpu::BM_ISA {

struct Step {
  float beta, following;
};

// Sums over units u of A(following) - A(beta), A(beta) being the log partition function of a unit whose field is
// beta x + (1 - beta) base.

static inline double bernoulli_rise(const float* __restrict x, const float* __restrict base, Step step,
                                    int32_t padded) {
  Doubles sums[kParts] = {};
  const float wider = step.following - step.beta;
  for (int32_t unit = 0; unit < padded; unit += kPad) {  // what is beyond the last unit has no field and adds nothing
    alignas(64) float fields[kPad], steps[kPad], rises[kPad];
    uint32_t longest = 0;  // bits of a magnitude
    for (int u = 0; u < kPad; u++) {
      fields[u] = units::fma(step.beta, x[unit + u], (1.f - step.beta) * base[unit + u]);
      steps[u] = wider * (x[unit + u] - base[unit + u]);
      const uint32_t magnitude = units::bits_of(steps[u]) & 0x7fffffffu;
      longest = magnitude > longest ? magnitude : longest;
    }
    if (longest <= units::bits_of(units::kShortStep)) {
      for (int u = 0; u < kPad; u++) rises[u] = units::short_softplus_rise(fields[u], steps[u]);
    } else {
      for (int u = 0; u < kPad; u++) rises[u] = units::softplus_rise(fields[u], steps[u]);
    }
    for (int u = 0; u < kPad; u += kLanes)
#pragma GCC unroll 4
      for (int i = 0; i < kParts; i++)
        sums[i] += __builtin_convertvector(load<HalfFloats>(rises + u + i * kDoubleLanes), Doubles);
  }
  return add_lanes(sums);
}

static inline double tempered(float x, float base, float beta) {
  return static_cast<double>(beta) * x + (1 - static_cast<double>(beta)) * base;
}

// A = field^2 / (2 precision) and what the precision alone decides, which stays along the path
static inline double gaussian_rise(const float* x, const float* base, const float* precisions, Step step, int32_t n) {
  double total = 0;
  for (int32_t u = 0; u < n; u++) {
    const double from = tempered(x[u], base[u], step.beta), to = tempered(x[u], base[u], step.following);
    total += (to - from) * (to + from) / (2 * static_cast<double>(precisions[u]));
  }
  return total;
}

static inline double softmax_rise(const float* x, const float* base, Step step, int32_t n) {
  const auto at = [&](float beta) { return log_sum_exp(n, [&](int32_t u) { return tempered(x[u], base[u], beta); }); };
  return at(step.following) - at(step.beta);
}

// Adds the part of the layers that are kept, for n chains from `first` on.
static inline void weigh_states(MachineView machine, ProgramView program, const AnnealView& anneal, int64_t sweep,
                                const ValuesView* values, int64_t first, int32_t n) {
  const double wider = static_cast<double>(anneal.betas[sweep + 1]) - static_cast<double>(anneal.betas[sweep]);
  for (int i = anneal.n_summed; i < program.n_updates; i++) {
    const int layer = program.updates[i].layer;
    for (int64_t chain = first; chain < first + n; chain++)
      anneal.log_weights[chain] +=
          wider * dot_state(values[layer], anneal.slopes[layer], machine.layers[layer].units, chain);
  }
}

// Adds the part of a layer that is summed out, given its fields [n, padded].
static inline void weigh_fields(const LayerView& layer, const float* base, const AnnealView& anneal, int64_t sweep,
                                const float* fields, int64_t first, int32_t n) {
  const Step step = {anneal.betas[sweep], anneal.betas[sweep + 1]};
  for (int32_t c = 0; c < n; c++) {
    const float* x = fields + c * static_cast<int64_t>(layer.padded);
    double& weight = anneal.log_weights[first + c];
    if (layer.kind == Kind::kGaussian) {
      weight += gaussian_rise(x, base, layer.precisions, step, layer.units);
    } else if (layer.kind == Kind::kSoftmax) {
      weight += softmax_rise(x, base, step, layer.units);
    } else {
      weight += bernoulli_rise(x, base, step, layer.padded);
    }
  }
}

}  // namespace bm::cpu::BM_ISA
