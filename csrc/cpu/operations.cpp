// The operations other than sweeps: check the numbers, cut the work into one part per thread, call the kernels.
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
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
      largest = values[i].real ? k.largest_magnitude(static_cast<const float*>(values[i].data) + p.first, p.n)
                               : k.largest_byte(static_cast<const uint8_t*>(values[i].data) + p.first, p.n);
    }
    const std::string& name = machine.name(i);
    if (values[i].real && largest >= 0x7f800000u)
      throw std::invalid_argument("values of layer '" + name + "': expected finite numbers, got NaN or infinity");
    if (!values[i].real && largest > 1)
      throw std::invalid_argument("values of layer '" + name + "': expected 0 or 1, got " + std::to_string(largest));
  }
}

std::vector<bool> dense_layers(const Machine& machine, const ValuesView* values, int64_t n_chains, int threads) {
  // measured: docs/kernels.md
  constexpr double kFewestOnes = 0.4;
  constexpr int64_t kFewestChains = 40, kSample = 64;
  std::vector<bool> is_dense(machine.n_layers());
  if (n_chains < kFewestChains * threads) return is_dense;
  for (int i = 0; i < machine.n_layers(); i++) {
    if (values[i].real) continue;
    const auto* states = static_cast<const uint8_t*>(values[i].data);
    const int64_t n = std::min(n_chains, kSample) * machine.layer(i).units;
    is_dense[i] = static_cast<double>(std::count(states, states + n, 1)) > kFewestOnes * static_cast<double>(n);
  }
  return is_dense;
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
  plan.lay_out(cpu::dense_layers(machine, inputs.data(), n_chains, threads), threads);
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

void statistics(float* out, Values lower, int64_t n_lower, Values upper, int64_t n_upper, int64_t n_chains,
                int threads) {
  const cpu::Kernels& k = cpu::kernels();
  threads = cpu::useful_threads(static_cast<double>(n_lower) * n_upper * n_chains, threads);
  const struct {
    const char* name;
    const Values& values;
    int64_t units;
  } arguments[] = {{"lower", lower, n_lower}, {"upper", upper, n_upper}};
  for (const auto& a : arguments) {
    const uint8_t* states = static_cast<const uint8_t*>(a.values.data);
    const uint8_t largest = a.values.real ? 0 : k.largest_byte(states, n_chains * a.units);
    if (largest > 1)
      throw std::invalid_argument(std::string(a.name) + ": expected 0 or 1, got " + std::to_string(largest));
    if (a.values.real &&
        k.largest_magnitude(static_cast<const float*>(a.values.data), n_chains * a.units) >= 0x7f800000u)
      throw std::invalid_argument(std::string(a.name) + ": expected finite numbers, got NaN or infinity");
  }
  std::vector<cpu::Array<float>> panels;
  std::vector<cpu::Array<cpu::PanelColumns>> columns;
  std::vector<cpu::Array<uint64_t>> bits;
  for (int t = 0; t < threads; t++) {
    panels.emplace_back(cpu::panel_size(n_chains, n_upper));
    columns.emplace_back(1);
    bits.emplace_back(cpu::kCountWords * n_upper);
  }
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n_lower, t, threads);
    k.statistics(out, {lower.data, lower.real}, n_lower, {upper.data, upper.real}, n_upper, n_chains, p.first, p.n,
                 {panels[t].data(), columns[t].data(), bits[t].data()});
  }
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
  threads = cpu::useful_threads(static_cast<double>(n), threads);
#pragma omp parallel for num_threads(threads) reduction(max : largest)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n, t, threads);
    largest = k.largest_magnitude(weights + p.first, p.n);
  }
  float size;
  std::memcpy(&size, &largest, sizeof size);
  return size;
}

void quantise(int16_t* out, const float* weights, int64_t n, int fraction_bits, int threads) {
  const cpu::Kernels& k = cpu::kernels();
  const float scale = std::ldexp(1.f, fraction_bits);
  threads = cpu::useful_threads(static_cast<double>(n), threads);
#pragma omp parallel for num_threads(threads)
  for (int t = 0; t < threads; t++) {
    const cpu::Part p = cpu::part(n, t, threads);
    k.quantise(out + p.first, weights + p.first, p.n, scale);
  }
}

}  // namespace bm
