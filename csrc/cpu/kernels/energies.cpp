// Energies and free energies of states, in double from float fields; every sum has one fixed order.
#include "cpu/kernels/isa.h"
#include "cpu/kernels/sums.h"

namespace bm::cpu::BM_ISA {

static double half_weighted_square(const float* __restrict state, const float* __restrict precisions, int32_t n) {
  alignas(64) double lanes[kLanes] = {};
  for (int32_t u = 0; u < n; u += kLanes)
    for (int i = 0; i < kLanes && u + i < n; i++) {
      const double x = state[u + i];
      lanes[i] += x * x * static_cast<double>(precisions[u + i]);
    }
  return add_lanes(lanes) / 2;
}

// lower W upper of one chain; exact where both are binary
static double interaction(const InputView& input, const ValuesView* values, int upper, int64_t chain, Scratch scratch) {
  const WeightsView& weights = input.weights;
  const ValuesView &below = values[input.layer], &above = values[upper];
  if (below.real) {
    for (int32_t u = 0; u < weights.stride; u++) scratch.fields[u] = 0;
    add_real_input(scratch.fields, input, real_state(below, weights.inputs, chain), 1, {never, nullptr});
    return dot_state(above, scratch.fields, weights.outputs, chain);
  }
  int32_t* sums = scratch.sums;
  update_sums(sums, weights, list_rows(scratch.rows, input, binary_state(below, weights.inputs, chain), chain, {}));
  if (above.real)
    return dot(sums, real_state(above, weights.outputs, chain), weights.outputs) * static_cast<double>(input.scale);
  const uint8_t* state = binary_state(above, weights.outputs, chain);
  return static_cast<double>(sum_on(sums, state, weights.outputs)) * static_cast<double>(input.scale);
}

void energy(double* out, MachineView machine, ProgramView upward, const ValuesView* values, int64_t first, int64_t n,
            Scratch scratch) {
  for (int64_t chain = first; chain < first + n; chain++) {
    double total = 0;
    for (int i = 0; i < machine.n_layers; i++) {
      const LayerView& layer = machine.layers[i];
      total -= dot_state(values[i], layer.biases, layer.units, chain);
      if (layer.precisions && values[i].real)
        total += half_weighted_square(real_state(values[i], layer.units, chain), layer.precisions, layer.units);
    }
    for (int i = 0; i < upward.n_updates; i++)
      total -= interaction(upward.updates[i].inputs[0], values, upward.updates[i].layer, chain, scratch);
    out[chain] = total;
  }
}

void gap(double* out, MachineView machine, ProgramView upward, const GapView& biases, const ValuesView* values,
         const int64_t* interactions, int64_t first, int64_t n, Scratch scratch) {
  const double grid = __builtin_ldexp(1., -biases.bits);
  for (int64_t chain = first; chain < first + n; chain++) {
    double total = 0;
    uint64_t on = 0;  // of int64 sums, without undefined overflow
    for (int i = 0; i < machine.n_layers; i++) {
      const LayerView& layer = machine.layers[i];
      if (values[i].real) {
        const float* state = real_state(values[i], layer.units, chain);
        total -= dot(state, biases.biases[i], layer.units) * grid;
        if (layer.precisions && !biases.has_base) total += half_weighted_square(state, layer.precisions, layer.units);
      } else {
        const uint8_t* state = binary_state(values[i], layer.units, chain);
        on += static_cast<uint64_t>(sum_on(biases.biases[i], state, layer.units));
      }
    }
    for (int i = 0; i < upward.n_updates; i++) {
      const InputView& input = upward.updates[i].inputs[0];
      total -= interactions
                   ? static_cast<double>(interactions[chain * upward.n_updates + i]) * static_cast<double>(input.scale)
                   : interaction(input, values, upward.updates[i].layer, chain, scratch);
    }
    out[chain] = total - static_cast<double>(static_cast<int64_t>(on)) * grid;
  }
}

// --- free energy -----------------------------------------------------------------------------------------------------

// exp(-x) of x >= 0, relative error 3e-13; 2^-1000 from there on
BM_UNITS Doubles exp_minus(Doubles x) {
  const Doubles zero = {}, magic = zero + 6755399441055744.;  // 1.5 * 2^52: adding it rounds to an integer
  Doubles t = x * -1.4426950408889634;
  t = t < zero - 1000. ? zero - 1000. : t;
  const Doubles shifted = t + magic;
  const Doubles r = (t - (shifted - magic)) * 0.6931471805599453;
  Doubles p = r * (1. / 3628800) + 1. / 362880;  // Taylor's series of exp on [-0.35, 0.35]
  p = p * r + 1. / 40320;
  p = p * r + 1. / 5040;
  p = p * r + 1. / 720;
  p = p * r + 1. / 120;
  p = p * r + 1. / 24;
  p = p * r + 1. / 6;
  p = p * r + 0.5;
  p = p * r + 1.;
  p = p * r + 1.;
  return reinterpret_cast<Doubles>(reinterpret_cast<DoubleBits>(p) + (reinterpret_cast<DoubleBits>(shifted) << 52));
}

// Sum of log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)) over the units of a padded field. The factors 1 + exp(-|x|)
// lie in [1, 2], so hundreds of them are multiplied before one logarithm is taken.
static double sum_softplus(float* __restrict x, int32_t n) {
  constexpr int32_t kFactors = 960;                    // their product stays below 2^960
  for (int32_t u = n; u % kLanes; u++) x[u] = -1e30f;  // adds nothing
  double total = 0;
  const Doubles zero = {};
  alignas(64) double lanes[kLanes];
  Doubles positive[kParts] = {};
  for (int32_t begin = 0; begin < n; begin += kFactors) {
    const int32_t end = n < begin + kFactors ? n : begin + kFactors;
    Doubles product[kParts];
#pragma GCC unroll 4
    for (int i = 0; i < kParts; i++) product[i] = zero + 1;
    for (int32_t u = begin; u < end; u += kLanes) {
#pragma GCC unroll 4
      for (int i = 0; i < kParts; i++) {
        const Doubles value = __builtin_convertvector(load<HalfFloats>(x + u + i * kDoubleLanes), Doubles);
        const Doubles above = value > zero ? value : zero;
        product[i] *= exp_minus(value > zero ? value : -value) + 1;
        positive[i] += above;
      }
    }
    for (int i = 0; i < kParts; i++) store(lanes + i * kDoubleLanes, product[i]);
    total += __builtin_log(((lanes[0] * lanes[4]) * (lanes[2] * lanes[6])) *
                           ((lanes[1] * lanes[5]) * (lanes[3] * lanes[7])));
  }
  return total + add_lanes(positive);
}

// Sum of x^2 / (2 precision) + log(2 pi / precision) / 2
static double sum_gaussian(const float* x, const float* precisions, double beta, int32_t n) {
  double total = 0;
  for (int32_t u = 0; u < n; u++) {
    const double precision = static_cast<double>(static_cast<float>(beta) * precisions[u]), field = x[u];
    total += field * field / (2 * precision) + __builtin_log(6.283185307179586 / precision) / 2;
  }
  return total;
}

void free_energy(double* out, MachineView machine, ProgramView summed, const bool* is_summed, const ValuesView* values,
                 int64_t n_chains, const float* betas, int64_t n_betas, const float* const* base, int64_t first,
                 int64_t n, Scratch scratch) {
  for (int64_t chain = first; chain < first + n; chain++) {
    double from_model = 0, from_base = 0, quadratic = 0;
    for (int i = 0; i < machine.n_layers; i++) {
      if (is_summed[i]) continue;
      const LayerView& layer = machine.layers[i];
      from_model += dot_state(values[i], layer.biases, layer.units, chain);
      if (base) from_base += dot_state(values[i], base[i], layer.units, chain);
      if (layer.precisions && values[i].real)
        quadratic += half_weighted_square(real_state(values[i], layer.units, chain), layer.precisions, layer.units);
    }
    for (int64_t k = 0; k < n_betas; k++) {
      const double beta = betas[k];
      out[k * n_chains + chain] = (base ? quadratic : beta * quadratic) - (beta * from_model + (1 - beta) * from_base);
    }
  }
  for (int64_t chain = first; chain < first + n; chain += kBlockChains) {
    const int32_t block = static_cast<int32_t>(first + n - chain < kBlockChains ? first + n - chain : kBlockChains);
    for (int i = 0; i < summed.n_updates; i++) {
      const LayerView& layer = machine.layers[summed.updates[i].layer];
      const float* layer_base = base ? base[summed.updates[i].layer] : nullptr;
      block_fields(machine, summed.updates[i], values, chain, block, scratch, nullptr, nullptr, {never, nullptr});
      for (int32_t c = 0; c < block; c++) {
        const float* x = scratch.fields + c * static_cast<int64_t>(layer.padded);
        float* tempered = reinterpret_cast<float*>(scratch.sums);
        for (int64_t k = 0; k < n_betas; k++) {
          memcpy(tempered, x, layer.padded * sizeof(float));
          temper(tempered, betas + k, layer_base, layer.padded);
          out[k * n_chains + chain + c] -=
              layer.kind == Kind::kGaussian ? sum_gaussian(tempered, layer.precisions, base ? 1 : betas[k], layer.units)
              : layer.kind == Kind::kSoftmax
                  ? log_sum_exp(layer.units, [&](int32_t u) { return static_cast<double>(tempered[u]); })
                  : sum_softplus(tempered, layer.units);
        }
      }
    }
  }
}

}  // namespace bm::cpu::BM_ISA
