// Energies and free energies of binary layers, in float64 but for the float fields and exact integer sums that they are
// made of.
#include <math.h>

#include "cuda/binary.h"
#include "cuda/partials.h"
#include "cuda/product.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr unsigned kThreads = 128;

// --- kernels ---------------------------------------------------------------------------------------------------------

struct BiasEnergy {
  double* out;
  BinaryLayer layer;
  int32_t n_chains, n_betas;
  const float* betas;
};

// A warp takes a chain, each lane one bit of every word.
SIMT_KERNEL void bias_energy_kernel(SIMT_PARAMETER BiasEnergy p) {
  const int64_t chain = static_cast<int64_t>(simt::block_x()) * (kThreads / 32) + simt::thread_x() / 32;
  const unsigned lane = simt::thread_x() % 32;
  const bool exists = chain < p.n_chains;
  double model = 0, base = 0;
  for (int64_t unit = lane; exists && unit < p.layer.units; unit += 32) {
    if ((p.layer.bits[chain * bit_words(p.layer.units) + unit / 32] >> lane & 1) == 0) continue;
    model += static_cast<double>(p.layer.biases[unit]);
    if (p.layer.base) base += static_cast<double>(p.layer.base[unit]);
  }
  for (unsigned mask = 16; mask > 0; mask /= 2) {
    model += exchanged(model, mask);
    base += exchanged(base, mask);
  }
  if (!exists) return;
  for (int64_t k = lane; k < p.n_betas; k += 32) {
    const double beta = p.betas ? static_cast<double>(p.betas[k]) : 1.;
    p.out[k * p.n_chains + chain] -= beta * model + (1. - beta) * base;
  }
}

struct Cleared {
  double* out;
  int64_t* sums;
  int32_t n_chains;
};

SIMT_KERNEL void clear_gap_kernel(SIMT_PARAMETER Cleared p) {
  const int64_t chain = static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x();
  if (chain >= p.n_chains) return;
  p.out[chain] = 0;
  p.sums[chain] = 0;
}

struct WholeBiases {
  int64_t* sums;
  const uint32_t* bits;
  const int64_t* biases;
  int32_t units, n_chains;
};

SIMT_KERNEL void whole_biases_kernel(SIMT_PARAMETER WholeBiases p) {
  const int64_t chain = static_cast<int64_t>(simt::block_x()) * (kThreads / 32) + simt::thread_x() / 32;
  const unsigned lane = simt::thread_x() % 32;
  int64_t sum = 0;
  for (int64_t unit = lane; chain < p.n_chains && unit < p.units; unit += 32)
    if (p.bits[chain * bit_words(p.units) + unit / 32] >> lane & 1) sum += p.biases[unit];
  for (unsigned mask = 16; mask > 0; mask /= 2) sum += exchanged(sum, mask);
  if (chain < p.n_chains && lane == 0) p.sums[chain] += sum;
}

struct CouplingEnergy {
  BinaryProduct product;
  int64_t* partials;
  const uint32_t* bits;
};

SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kProductBlocks) coupling_energy_kernel(SIMT_PARAMETER CouplingEnergy p) {
  const TilePlace place;
  const int32_t n_chains = p.product.n_chains;
  const int64_t words = bit_words(p.product.units), column = place.first_unit() / 32;
  multiply_inputs(p.product, [&](int, const Sums& high, const Sums& low) {
    SIMT_UNROLL
    for (int row = 0; row < 4; row++) {
      const int64_t chain = place.chain(row);
      const uint32_t bits = chain < n_chains ? p.bits[chain * words + column] : 0;
      int64_t sum = 0;
      SIMT_UNROLL
      for (int n = 0; n < 4; n++) {
        SIMT_UNROLL
        for (int i = 0; i < 2; i++) {
          const int32_t product = high[row / 2][n][row % 2 * 2 + i] * 256 + low[row / 2][n][row % 2 * 2 + i];
          sum += bits >> place.unit(n, i) % 32 & 1 ? product : 0;
        }
      }
      sum += exchanged(sum, 1);
      sum += exchanged(sum, 2);
      if (row == place.t() && chain < n_chains) p.partials[partial_at(place.first_unit(), chain, n_chains)] = sum;
    }
  });
}

struct FreeEnergy {
  BinaryProduct product;
  double* partials;
  const float *betas, *base;
  int32_t n_betas;
};

// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)). The factors 1 + exp(-|x|) lie in [1, 2], so the eight of a lane are
// multiplied before one logarithm is taken.
SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kProductBlocks) free_energy_kernel(SIMT_PARAMETER FreeEnergy p) {
  const TilePlace place;
  Fields fields;
  make_fields(p.product, place, fields);
  const int32_t n_chains = p.product.n_chains;
  for (int64_t k = 0; k < p.n_betas; k++) {
    const float beta = p.betas[k];
    SIMT_UNROLL
    for (int row = 0; row < 4; row++) {
      double factors = 1, sum = 0;
      SIMT_UNROLL
      for (int n = 0; n < 4; n++) {
        SIMT_UNROLL
        for (int i = 0; i < 2; i++) {
          const int unit = place.unit(n, i);
          if (unit >= p.product.units) continue;
          const double x = static_cast<double>(tempered(fields[row / 2][n][row % 2 * 2 + i], beta, true, p.base, unit));
          factors *= 1. + exp(x < 0 ? x : -x);
          sum += x > 0 ? x : 0.;
        }
      }
      sum += log(factors);
      sum += exchanged(sum, 1);
      sum += exchanged(sum, 2);
      const int64_t chain = place.chain(row);
      if (row == place.t() && chain < n_chains)
        p.partials[k * 2 * unit_tiles(p.product.units) * n_chains + partial_at(place.first_unit(), chain, n_chains)] =
            sum;
    }
  }
}

// --- launchers -------------------------------------------------------------------------------------------------------

}  // namespace

void add_bias_energy(double* out, const BinaryLayer& layer, int32_t n_chains, const float* betas, int32_t n_betas,
                     void* stream) {
  simt::launch(bias_energy_kernel, {blocks_for(n_chains, kThreads / 32), 1, kThreads, 0}, stream,
               BiasEnergy{out, layer, n_chains, n_betas, betas});
}

void add_coupling_energy(double* out, int64_t* partials, const BinaryProduct& product, const uint32_t* bits,
                         void* stream) {
  simt::launch(coupling_energy_kernel, product_size(product), stream, CouplingEnergy{product, partials, bits});
  subtract(Subtraction<int64_t>{out, partials, 2 * unit_tiles(product.units), 1, product.n_chains,
                                product.inputs[0].scale, product.inputs[0].grid},
           stream);
}

void clear_gap(double* out, int64_t* sums, int32_t n_chains, void* stream) {
  simt::launch(clear_gap_kernel, {blocks_for(n_chains, kThreads), 1, kThreads, 0}, stream,
               Cleared{out, sums, n_chains});
}

void add_whole_biases(int64_t* sums, const uint32_t* bits, const int64_t* biases, int32_t units, int32_t n_chains,
                      void* stream) {
  simt::launch(whole_biases_kernel, {blocks_for(n_chains, kThreads / 32), 1, kThreads, 0}, stream,
               WholeBiases{sums, bits, biases, units, n_chains});
}

void subtract_sums(double* out, const int64_t* sums, const float* grid, int32_t n_chains, void* stream) {
  subtract(Subtraction<int64_t>{out, sums, 1, 1, n_chains, 1., grid}, stream);
}

void add_free_energy(double* out, double* partials, const BinaryProduct& product, const float* betas, int32_t n_betas,
                     const float* base, void* stream) {
  simt::launch(free_energy_kernel, product_size(product), stream, FreeEnergy{product, partials, betas, base, n_betas});
  subtract(Subtraction<double>{out, partials, 2 * unit_tiles(product.units), n_betas, product.n_chains, 1., nullptr},
           stream);
}

}  // namespace bm::cuda
