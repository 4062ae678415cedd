// These layers are small beside what they are coupled to, so that latency counts: the thread of a chain goes over its
// fields three times, from the cache after the first time, and makes each term anew instead of keeping it.
#include <math.h>

#include "cuda/real_product.h"
#include "cuda/softmax.h"
#include "simt/simt.h"

namespace bm::cuda {
namespace {

constexpr unsigned kThreads = 64;  // few: 100 chains shall have two multiprocessors

simt::Size size_for(int64_t n_threads) {
  return {static_cast<unsigned>((n_threads + kThreads - 1) / kThreads), 1, kThreads, 0};
}

SIMT_DEVICE int64_t thread_of_grid() { return static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x(); }

// --- fields ----------------------------------------------------------------------------------------------------------

struct SoftmaxFields {
  RealProduct product;
  float* fields;
  const uint32_t* settled;  // [n_chains], not 0 where a chain's fields are not wanted; or null
};

SIMT_KERNEL void SIMT_BOUNDS(kProductThreads, kRealBlocks) softmax_fields_kernel(SIMT_PARAMETER SoftmaxFields p) {
  const int32_t n_chains = p.product.n_chains, units = p.product.units;
  if (all_settled(p.settled, n_chains)) return;
  const RealPlace place;
  RealFields fields;
  make_fields(p.product, place, fields);
  SIMT_UNROLL
  for (int row = 0; row < 2; row++) {
    const int64_t chain = place.chain(row);
    SIMT_UNROLL
    for (int n = 0; n < 4; n++) {
      SIMT_UNROLL
      for (int i = 0; i < 2; i++) {
        const int64_t unit = place.unit(n, i);
        if (chain < n_chains && unit < units) p.fields[unit * n_chains + chain] = fields[n][row * 2 + i];
      }
    }
  }
}

void make_softmax_fields(float* fields, const RealProduct& product, const uint32_t* settled, void* stream) {
  simt::launch(softmax_fields_kernel, product_size(product), stream, SoftmaxFields{product, fields, settled});
}

// --- the units of a chain --------------------------------------------------------------------------------------------

struct Column {
  SIMT_DEVICE_MEMBER float field(int64_t unit) const { return fields[unit * n_chains]; }
  SIMT_DEVICE_MEMBER bool is_held(int64_t unit) const { return held && (held[unit / 32] >> unit % 32 & 1); }
  // What a unit weighs beside the one with the largest field, see units.h.
  SIMT_DEVICE_MEMBER float term(int64_t unit, float largest) const {
    return is_held(unit) ? 0.f : units::softmax_term(field(unit), largest);
  }
  const float* fields;   // of unit 0
  const uint32_t* held;  // bits of this chain; or null
  int64_t n_chains, n_units;
};

// What tells the probabilities of the units: the largest field of those that are not held, and the sum of all terms.
struct Softmax {
  float largest, total;
};

SIMT_DEVICE Softmax softmax_of(const Column& column) {
  Softmax softmax = {units::float_of(0xff800000u), 0.f};  // minus infinity
  for (int64_t unit = 0; unit < column.n_units; unit++) {
    const float x = column.field(unit);
    if (x > softmax.largest && !column.is_held(unit)) softmax.largest = x;
  }
  for (int64_t unit = 0; unit < column.n_units; unit++) softmax.total += column.term(unit, softmax.largest);
  return softmax;
}

// The first unit whose cumulative sum reaches u times the sum of all.
SIMT_DEVICE int64_t choose_unit(const Column& column, const Softmax& softmax, uint32_t word) {
  const float threshold = units::uniform(word) * softmax.total;
  float sum = 0.f;
  for (int64_t unit = 0; unit + 1 < column.n_units; unit++) {
    sum += column.term(unit, softmax.largest);
    if (!(sum < threshold)) return unit;
  }
  return column.n_units - 1;
}

// --- draws, means and free energies ----------------------------------------------------------------------------------

SIMT_KERNEL void SIMT_BOUNDS(kThreads, 1) update_softmax_kernel(SIMT_PARAMETER SoftmaxUpdate p) {
  const int64_t chain = thread_of_grid();
  const int32_t n_chains = p.product.n_chains, n_units = p.product.units;
  if (chain >= n_chains) return;
  const int64_t words = bit_words(n_units);
  uint32_t* state = p.states ? p.states + chain * words : nullptr;
  float* means = p.means ? p.means + chain * n_units : nullptr;
  const Column column{p.fields + chain, p.clamp ? p.clamp + chain * words : nullptr, n_chains, n_units};
  uint32_t kept = 0;
  for (int64_t word = 0; column.held && word < words; word++) kept |= state[word] & column.held[word];
  if (kept != 0) {
    for (int64_t unit = 0; means && unit < n_units; unit++)
      means[unit] = static_cast<float>(state[unit / 32] >> unit % 32 & 1);
    return;
  }
  const Softmax softmax = softmax_of(column);
  for (int64_t unit = 0; means && unit < n_units; unit++)
    means[unit] = column.term(unit, softmax.largest) / softmax.total;
  if (!state) return;
  uint32_t random[4] = {0, p.first_chain + static_cast<uint32_t>(chain),
                        p.sweep + (p.sweeps_before ? *p.sweeps_before : 0), p.layer_and_purpose};
  units::philox(random[0], random[1], random[2], random[3], p.seed);
  const int64_t on = choose_unit(column, softmax, random[0]);
  for (int64_t word = 0; word < words; word++) state[word] = word == on / 32 ? 1u << on % 32 : 0;
}

// What an update leaves as means; `settle` and the operands of the next products are the same as of other layers.
SIMT_KERNEL void SIMT_BOUNDS(kThreads, 1) softmax_means_kernel(SIMT_PARAMETER MeanUpdate p) {
  const int64_t chain = thread_of_grid();
  const int32_t n_chains = p.product.n_chains, n_units = p.product.units;
  if (chain >= n_chains || (p.settled && p.settled[chain] != 0)) return;
  const Column column{p.fields + chain, nullptr, n_chains, n_units};
  const Softmax softmax = softmax_of(column);
  float* means = p.means + chain * n_units;
  uint32_t largest = units::bits_of(p.changes[chain]);
  for (int64_t unit = 0; unit < n_units; unit++) {
    const float old = means[unit], given = column.term(unit, softmax.largest) / softmax.total;
    const float next = units::fma(p.damping, old - given, given);
    const uint32_t change = units::bits_of(next - old) & 0x7fffffffu;
    largest = change > largest ? change : largest;
    means[unit] = next;
  }
  p.changes[chain] = units::float_of(largest);
}

struct SoftmaxFreeEnergy {
  double* out;
  const float* fields;
  int32_t n_chains, units;
  const float *betas, *base;
  int32_t n_betas;
};

SIMT_KERNEL void SIMT_BOUNDS(kThreads, 1) softmax_free_energy_kernel(SIMT_PARAMETER SoftmaxFreeEnergy p) {
  const int64_t index = thread_of_grid(), chain = index % p.n_chains, k = index / p.n_chains;
  if (k >= p.n_betas) return;
  const Column column{p.fields + chain, nullptr, p.n_chains, p.units};
  const float beta = p.betas[k];
  const auto field = [&](int64_t unit) {
    return static_cast<double>(tempered(column.field(unit), beta, true, p.base, unit));
  };
  double largest = field(0), total = 0;
  for (int64_t unit = 1; unit < p.units; unit++) {
    const double x = field(unit);
    largest = x > largest ? x : largest;
  }
  for (int64_t unit = 0; unit < p.units; unit++) {
    const double x = field(unit);
    total += x < largest ? exp(x - largest) : 1.;  // both may be infinite
  }
  p.out[index] -= largest + log(total);
}

}  // namespace

// --- launchers -------------------------------------------------------------------------------------------------------

void update_softmax(const SoftmaxUpdate& update, void* stream) {
  make_softmax_fields(update.fields, update.product, nullptr, stream);
  simt::launch(update_softmax_kernel, size_for(update.product.n_chains), stream, update);
}

void update_softmax_means(const MeanUpdate& update, void* stream) {
  const RealProduct& product = update.product;
  make_softmax_fields(update.fields, product, update.settled, stream);
  simt::launch(softmax_means_kernel, size_for(product.n_chains), stream, update);
  if (update.values) pack_means(update.values, update.means, product.n_chains, product.units, stream);
}

void add_softmax_free_energy(double* out, float* fields, const RealProduct& product, const float* betas,
                             int32_t n_betas, const float* base, void* stream) {
  make_softmax_fields(fields, product, nullptr, stream);
  simt::launch(softmax_free_energy_kernel, size_for(int64_t{n_betas} * product.n_chains), stream,
               SoftmaxFreeEnergy{out, fields, product.n_chains, product.units, betas, base, n_betas});
}

}  // namespace bm::cuda
