// Energies and free energies where layers or their inputs are real: float64 sums of the float fields of real_product.h.
#include <math.h>

#include "cuda/partials.h"
#include "cuda/real.h"
#include "cuda/real_product.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr unsigned kThreads = 128;

// --- kernels ---------------------------------------------------------------------------------------------------------

struct FloatBiases {
  const float* biases;
  SIMT_DEVICE_MEMBER double at(int64_t unit) const { return static_cast<double>(biases[unit]); }
};

struct WholeBiases {
  const int64_t* biases;
  const float* grid;
  SIMT_DEVICE_MEMBER double at(int64_t unit) const {
    return static_cast<double>(biases[unit]) * static_cast<double>(*grid);
  }
};

template <class Biases>
struct BiasEnergy {
  double* out;
  RealLayer layer;
  Biases biases;
  int32_t n_chains, n_betas;
  const float* betas;
};

// A warp takes a chain, each lane every 32nd unit.
template <class Biases>
SIMT_KERNEL void real_bias_kernel(SIMT_PARAMETER BiasEnergy<Biases> p) {
  const int64_t chain = static_cast<int64_t>(simt::block_x()) * (kThreads / 32) + simt::thread_x() / 32;
  const unsigned lane = simt::thread_x() % 32;
  const bool exists = chain < p.n_chains;
  double model = 0, base = 0, quadratic = 0;
  for (int64_t unit = lane; exists && unit < p.layer.units; unit += 32) {
    const double x = static_cast<double>(p.layer.numbers[chain * p.layer.units + unit]);
    model += p.biases.at(unit) * x;
    if (p.layer.base) base += static_cast<double>(p.layer.base[unit]) * x;
    if (p.layer.precisions) quadratic += static_cast<double>(p.layer.precisions[unit]) / 2 * (x * x);
  }
  for (unsigned mask = 16; mask > 0; mask /= 2) {
    model += exchanged(model, mask);
    base += exchanged(base, mask);
    quadratic += exchanged(quadratic, mask);
  }
  if (!exists) return;
  for (int64_t k = lane; k < p.n_betas; k += 32) {
    const double beta = p.betas ? static_cast<double>(p.betas[k]) : 1.;
    const double linear = beta * model + (1. - beta) * base;
    p.out[k * p.n_chains + chain] -= linear - (p.layer.base ? quadratic : beta * quadratic);
  }
}

struct CouplingEnergy {
  RealProduct product;
  double* partials;
  const uint32_t* bits;
  const float* numbers;
};

SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kRealBlocks) real_coupling_kernel(SIMT_PARAMETER CouplingEnergy p) {
  const RealPlace place;
  RealFields fields;
  make_fields(p.product, place, fields);
  const int32_t n_chains = p.product.n_chains, units = p.product.units;
  const int64_t words = bit_words(units), column = place.first_unit() / 32;
  SIMT_UNROLL
  for (int row = 0; row < 2; row++) {
    const int64_t chain = place.chain(row);
    const uint32_t bits = p.bits && chain < n_chains ? p.bits[chain * words + column] : 0;
    double sum = 0;
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      SIMT_UNROLL
      for (int i = 0; i < 2; i++) {
        const int unit = place.unit(n, i);
        if (chain >= n_chains || unit >= units) continue;
        const float x = p.numbers ? p.numbers[chain * units + unit] : static_cast<float>(bits >> unit % 32 & 1);
        sum += static_cast<double>(fields[n][row * 2 + i]) * static_cast<double>(x);
      }
    }
    sum += exchanged(sum, 1);
    sum += exchanged(sum, 2);
    if (row == place.t() && chain < n_chains) p.partials[partial_at(place.first_unit(), chain, n_chains)] = sum;
  }
}

struct FreeEnergy {
  RealProduct product;
  double* partials;
  const float *precisions, *betas, *base;
  int32_t n_betas;
};

// log(1 + exp(x)), or for a Gaussian unit the log of its integral.
SIMT_DEVICE double log_sum(const FreeEnergy& p, float x, float beta, int unit) {
  const double field = static_cast<double>(x);
  if (!p.precisions) return (field > 0 ? field : 0.) + log(1. + exp(field < 0 ? field : -field));
  constexpr double kTwoPi = 6.283185307179586;
  const double precision = static_cast<double>(p.base ? p.precisions[unit] : beta * p.precisions[unit]);
  return field * field / (2. * precision) + log(kTwoPi / precision) / 2.;
}

SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kRealBlocks) real_free_energy_kernel(SIMT_PARAMETER FreeEnergy p) {
  const RealPlace place;
  RealFields fields;
  make_fields(p.product, place, fields);
  const int32_t n_chains = p.product.n_chains, units = p.product.units;
  for (int64_t k = 0; k < p.n_betas; k++) {
    const float beta = p.betas[k];
    SIMT_UNROLL
    for (int row = 0; row < 2; row++) {
      double sum = 0;
      SIMT_UNROLL
      for (int n = 0; n < 4; n++) {
        SIMT_UNROLL
        for (int i = 0; i < 2; i++) {
          const int unit = place.unit(n, i);
          if (unit < units) sum += log_sum(p, tempered(fields[n][row * 2 + i], beta, true, p.base, unit), beta, unit);
        }
      }
      sum += exchanged(sum, 1);
      sum += exchanged(sum, 2);
      const int64_t chain = place.chain(row);
      if (row == place.t() && chain < n_chains)
        p.partials[k * 2 * unit_tiles(units) * n_chains + partial_at(place.first_unit(), chain, n_chains)] = sum;
    }
  }
}

// --- launchers -------------------------------------------------------------------------------------------------------

template <class Biases>
void add_biases(const BiasEnergy<Biases>& p, void* stream) {
  simt::launch(real_bias_kernel<Biases>, {blocks_for(p.n_chains, kThreads / 32), 1, kThreads, 0}, stream, p);
}

}  // namespace

void add_real_bias_energy(double* out, const RealLayer& layer, int32_t n_chains, const float* betas, int32_t n_betas,
                          void* stream) {
  add_biases(BiasEnergy<FloatBiases>{out, layer, {layer.biases}, n_chains, n_betas, betas}, stream);
}

void add_real_whole_biases(double* out, const RealLayer& layer, const int64_t* biases, const float* grid,
                           int32_t n_chains, void* stream) {
  add_biases(BiasEnergy<WholeBiases>{out, layer, {biases, grid}, n_chains, 1, nullptr}, stream);
}

void add_real_coupling_energy(double* out, double* partials, const RealProduct& product, const uint32_t* bits,
                              const float* numbers, void* stream) {
  simt::launch(real_coupling_kernel, product_size(product), stream, CouplingEnergy{product, partials, bits, numbers});
  subtract(Subtraction<double>{out, partials, 2 * unit_tiles(product.units), 1, product.n_chains, 1., nullptr}, stream);
}

void add_real_free_energy(double* out, double* partials, const RealProduct& product, const float* precisions,
                          const float* betas, int32_t n_betas, const float* base, void* stream) {
  simt::launch(real_free_energy_kernel, product_size(product), stream,
               FreeEnergy{product, partials, precisions, betas, base, n_betas});
  subtract(Subtraction<double>{out, partials, 2 * unit_tiles(product.units), n_betas, product.n_chains, 1., nullptr},
           stream);
}

}  // namespace bm::cuda
