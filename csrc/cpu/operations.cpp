// The operations other than sweeps: check the numbers, cut the work into one part per thread, call the kernels.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "cpu/work.h"

namespace bm {
namespace cpu {

void check_values(const Machine& machine, const ValuesView* values, const std::vector<bool>& is_read, int64_t n_chains,
                  int threads) {
  const Kernels& k = kernels();
  for (int i = 0; i < machine.n_layers(); i++) {
    if (!is_read[i]) continue;
    const int64_t n = n_chains * machine.layer(i).units;
    uint32_t largest = 0;
#pragma omp parallel for num_threads(threads) reduction(max : largest)
    for (int t = 0; t < threads; t++) {
      const Part p = part(n, t, threads);
      const uint32_t of_part = values[i].real
                                   ? k.largest_magnitude(static_cast<const float*>(values[i].data) + p.first, p.n)
                                   : k.largest_byte(static_cast<const uint8_t*>(values[i].data) + p.first, p.n);
      largest = std::max(largest, of_part);  // a thread may have several parts
    }
    const std::string& name = machine.name(i);
    if (values[i].real && largest >= 0x7f800000u)
      throw std::invalid_argument("values of layer '" + name + "': expected finite numbers, got NaN or infinity");
    if (!values[i].real && largest > 1)
      throw std::invalid_argument("values of layer '" + name + "': expected 0 or 1, got " + std::to_string(largest));
  }
}

std::vector<double> shares_on(const Machine& machine, const ValuesView* values, int64_t n_chains) {
  std::vector<double> shares(machine.n_layers());
  for (int i = 0; i < machine.n_layers(); i++) {
    if (values[i].real) continue;
    const auto* states = static_cast<const uint8_t*>(values[i].data);
    const int64_t n = std::min(n_chains, kSampleChains) * machine.layer(i).units;
    shares[i] = static_cast<double>(std::accumulate(states, states + n, int32_t{0})) / static_cast<double>(n);
  }
  return shares;
}

namespace {

// Rows cost what entries do from `share` on, and tables what `chains` chains add. Measured: docs/kernels.md
std::vector<bool> tables_layers(double share, double chains, const std::vector<double>& shares, int64_t n_chains,
                                int threads) {
  const int64_t together = std::clamp<int64_t>(n_chains / threads, 1, kBlockChains);
  std::vector<bool> pay;
  for (const double of_layer : shares) pay.push_back(of_layer > share + chains / static_cast<double>(together));
  return pay;
}

}  // namespace

std::vector<bool> dense_layers(const std::vector<double>& shares, int64_t n_chains, int threads) {
  return tables_layers(0.21, 10, shares, n_chains, threads);
}

std::vector<bool> rounded_layers(const std::vector<double>& shares, int64_t n_chains, int threads) {
  return tables_layers(0.15, 4, shares, n_chains, threads);
}

namespace {

std::vector<ValuesView> views(const std::vector<Values>& values) {
  std::vector<ValuesView> out;
  for (const Values& v : values) out.push_back({v.data, v.real});
  return out;
}

}  // namespace
}  // namespace cpu

void layer_means(float* out, const Machine& machine, const Update& update, const std::vector<Values>& values,
                 int64_t n_chains, const float* beta, const std::vector<const float*>& base, int threads) {
  const auto inputs = cpu::views(values);
  cpu::ProgramPlan plan(machine, {{update}});
  threads = cpu::useful_threads(cpu::multiply_adds(plan.view(), n_chains), threads);
  std::vector<bool> is_read(machine.n_layers());
  for (int i = 0; i < plan.view().updates[0].n_inputs; i++) is_read[plan.view().updates[0].inputs[i].layer] = true;
  cpu::check_values(machine, inputs.data(), is_read, n_chains, threads);
  plan.lay_out(cpu::dense_layers(cpu::shares_on(machine, inputs.data(), n_chains), n_chains, threads), threads);
  const cpu::ThreadScratch scratch(machine, threads);
  const cpu::PaddedBase padded(machine, base);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n_chains, t, threads);
    cpu::kernels().layer_means(out, machine.view(), plan.view().updates[0], inputs.data(), {beta, padded.data()},
                               p.first, p.n, scratch[t]);
  }
}

void energy(double* out, const Machine& machine, const std::vector<Values>& values, int64_t n_chains, int threads) {
  const auto states = cpu::views(values);
  Block upward;
  for (int i = 0; i < machine.n_couplings(); i++) upward.push_back({machine.coupling(i).upper, {{i, false, 1.}}});
  cpu::ProgramPlan plan(machine, {upward});
  threads = cpu::useful_threads(cpu::multiply_adds(plan.view(), n_chains), threads);
  cpu::check_values(machine, states.data(), std::vector<bool>(machine.n_layers(), true), n_chains, threads);
  plan.lay_out(std::vector<bool>(machine.n_layers()), threads);
  const cpu::ThreadScratch scratch(machine, threads);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n_chains, t, threads);
    cpu::kernels().energy(out, machine.view(), plan.view(), states.data(), p.first, p.n, scratch[t]);
  }
}

void free_energy(double* out, const Machine& machine, const Block& updates, const std::vector<Values>& values,
                 int64_t n_chains, const float* betas, int64_t n_betas, const std::vector<const float*>& base,
                 int threads) {
  const auto states = cpu::views(values);
  const auto is_summed = std::make_unique<bool[]>(machine.n_layers());
  std::vector<bool> is_read(machine.n_layers(), true);
  for (const Update& update : updates) {
    is_summed[update.layer] = true;
    is_read[update.layer] = false;
  }
  cpu::ProgramPlan plan(machine, {updates});
  threads = cpu::useful_threads(cpu::multiply_adds(plan.view(), n_chains), threads);
  cpu::check_values(machine, states.data(), is_read, n_chains, threads);
  plan.lay_out(std::vector<bool>(machine.n_layers()), threads);
  const cpu::ThreadScratch scratch(machine, threads);
  const cpu::PaddedBase padded(machine, base);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n_chains, t, threads);
    cpu::kernels().free_energy(out, machine.view(), plan.view(), is_summed.get(), states.data(), n_chains, betas,
                               n_betas, padded.data(), p.first, p.n, scratch[t]);
  }
}

namespace cpu {
namespace {

void check_argument(const char* name, Values values, int64_t n) {
  const Kernels& k = kernels();
  const uint8_t largest = values.real ? 0 : k.largest_byte(static_cast<const uint8_t*>(values.data), n);
  if (largest > 1) throw std::invalid_argument(std::string(name) + ": expected 0 or 1, got " + std::to_string(largest));
  if (values.real && k.largest_magnitude(static_cast<const float*>(values.data), n) >= 0x7f800000u)
    throw std::invalid_argument(std::string(name) + ": expected finite numbers, got NaN or infinity");
}

void run_statistics(float* out, ValuesView lower, int64_t n_lower, ValuesView upper, int64_t n_upper, int64_t n_chains,
                    const WeightingView& weighting, int threads) {
  threads = useful_threads(static_cast<double>(n_lower) * n_upper * n_chains, threads);
  if (lower.real && n_lower <= kMostSums && !weighting.factors) {
#pragma omp parallel for num_threads(threads)
    for (int t = 0; t < threads; t++) {
      const Part p = part(n_upper, t, threads, kPad);
      kernels().weighted_sums(out, static_cast<const float*>(lower.data), static_cast<int>(n_lower), upper, n_upper,
                              n_chains, p.first, p.n);
    }
    return;
  }
  std::vector<Array<StatisticsScratch>> scratch;
  std::vector<Array<uint64_t>> bits;
  for (int t = 0; t < threads; t++) {
    scratch.emplace_back(1);
    bits.emplace_back(kCountWords * n_upper);
    scratch[t][0].bits = bits[t].data();
  }
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const Part p = part(n_lower, t, threads);
    kernels().statistics(out, lower, n_lower, upper, n_upper, n_chains, p.first, p.n, weighting, scratch[t][0]);
  }
}

// gradient[units] -= what the other side's offsets take from it: sum of factors (value - offset) over chains, the
// factors being those of the phases times the other side's products with its offsets.
void centre_biases(float* gradient, ValuesView values, int64_t units, const float* offsets, ValuesView others,
                   int64_t n_others, const float* other_offsets, const Phases& phases) {
  std::vector<float> factors(phases.n_chains), sums(units);
  kernels().offset_products(factors.data(), others, n_others, other_offsets, phases.n_chains);
  float total = 0;
  for (int64_t c = 0; c < phases.n_chains; c++) total += factors[c] *= phases.signs[c];
  run_statistics(sums.data(), {factors.data(), true}, 1, values, units, phases.n_chains, {}, 1);
  for (int64_t u = 0; u < units; u++) gradient[u] -= std::fma(-offsets[u], total, sums[u]);
}

}  // namespace
}  // namespace cpu

void statistics(float* out, Values lower, int64_t n_lower, Values upper, int64_t n_upper, int64_t n_chains,
                int threads) {
  cpu::check_argument("lower", lower, n_chains * n_lower);
  cpu::check_argument("upper", upper, n_chains * n_upper);
  cpu::run_statistics(out, {lower.data, lower.real}, n_lower, {upper.data, upper.real}, n_upper, n_chains, {}, threads);
}

void gradient(const Gradient& out, const Phases& phases, Values visible, int64_t n_visible, const float* hidden,
              int64_t n_hidden, int threads) {
  const int64_t n_chains = phases.n_chains;
  cpu::check_argument("visible", visible, n_chains * n_visible);
  cpu::check_argument("hidden", {hidden, true}, n_chains * n_hidden);
  for (int64_t u = 0; u < n_visible; u++)
    out.visible[u] = phases.visible_means[n_visible + u] - phases.visible_means[u];
  for (int64_t u = 0; u < n_hidden; u++) out.hidden[u] = phases.hidden_means[n_hidden + u] - phases.hidden_means[u];
  const cpu::ValuesView lower = {visible.data, visible.real}, upper = {hidden, true};
  const cpu::WeightingView weighting = {phases.signs, phases.hidden_offsets,
                                        phases.hidden_offsets ? out.hidden : nullptr, phases.visible_offsets};
  cpu::run_statistics(out.weight, lower, n_visible, upper, n_hidden, n_chains, weighting, threads);
  if (!phases.visible_offsets) return;
  cpu::centre_biases(out.visible, lower, n_visible, phases.visible_offsets, upper, n_hidden, phases.hidden_offsets,
                     phases);
  cpu::centre_biases(out.hidden, upper, n_hidden, phases.hidden_offsets, lower, n_visible, phases.visible_offsets,
                     phases);
}

void bernoulli(uint8_t* out, const float* probabilities, const int64_t* rows, int64_t n, int64_t units, uint64_t seed,
               uint32_t sweep, uint32_t layer_and_purpose, int threads) {
  const cpu::Kernels& k = cpu::kernels();
  constexpr double kPerDraw = 50;
  threads = cpu::useful_threads(kPerDraw * n * units, threads);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n, t, threads);
    k.bernoulli(out, probabilities, rows, units, seed, sweep, layer_and_purpose, p.first, p.n);
  }
}

float largest_weight(const float* weights, int64_t n, int threads) {
  const cpu::Kernels& k = cpu::kernels();
  uint32_t largest = 0;
  threads = cpu::useful_threads(cpu::kPerWeight * n, threads);
#pragma omp parallel for num_threads(threads) reduction(max : largest)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n, t, threads);
    largest = std::max(largest, k.largest_magnitude(weights + p.first, p.n));  // a thread may have several parts
  }
  float size;
  std::memcpy(&size, &largest, sizeof size);
  return size;
}

void quantise(int16_t* out, const float* weights, int64_t n, int fraction_bits, int threads) {
  const cpu::Kernels& k = cpu::kernels();
  const float scale = std::ldexp(1.f, fraction_bits);
  threads = cpu::useful_threads(cpu::kPerWeight * n, threads);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n, t, threads);
    k.quantise(out + p.first, weights + p.first, p.n, scale);
  }
}

}  // namespace bm
