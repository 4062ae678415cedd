#include "operations.h"

#include <cmath>
#include <map>

#include "arrays.h"
#include "cuda/binary.h"
#include "cuda/gap_biases.h"
#include "cuda/pack.h"
#include "cuda/statistics.h"
#include "cuda/swap.h"

namespace {

void quantise(Reader& in, Writer& out) {
  const auto lower = static_cast<int32_t>(in.one()), upper = static_cast<int32_t>(in.one());
  Buffer<float> weights(in.many<float>(int64_t{lower} * upper));
  Buffer<int16_t> integers(in.many<int16_t>(int64_t{lower} * upper));
  Buffer<float> grid(1);
  Buffer<uint32_t> refused(1), partials(bm::cuda::kGridPartials);
  bm::cuda::choose_grid(grid.data(), refused.data(), partials.data(), weights.data(), int64_t{lower} * upper, nullptr);
  out.add(grid.read());
  out.add(refused.read());
  for (const bool transposed : {false, true}) {
    const int64_t bytes = transposed ? bm::cuda::weight_bytes(upper, lower) : bm::cuda::weight_bytes(lower, upper);
    Buffer<unsigned char> from_reals(bytes), from_integers(bytes);
    bm::cuda::quantise_weights(from_reals.data(), weights.data(), grid.data(), lower, upper, transposed, nullptr);
    bm::cuda::arrange_weights(from_integers.data(), integers.data(), lower, upper, transposed, nullptr);
    out.add(std::vector<uint8_t>{from_reals.read() == from_integers.read()});
  }
}

void statistics(Reader& in, Writer& out) {
  const auto n_chains = static_cast<int32_t>(in.one());
  std::optional<Buffer<uint32_t>> bits[2];
  std::optional<Buffer<float>> numbers[2];
  bm::cuda::Factor factors[2];
  for (int i = 0; i < 2; i++) {
    const auto units = static_cast<int32_t>(in.one());
    const int64_t n = int64_t{n_chains} * units;
    if (in.one()) {
      numbers[i].emplace(in.many<float>(n));
    } else {
      Buffer<uint8_t> bytes(in.many<uint8_t>(n));
      bits[i].emplace(n_chains * bm::cuda::bit_words(units));
      bm::cuda::pack_bits(bits[i]->data(), bytes.data(), n_chains, units, nullptr);
    }
    factors[i] = {address(bits[i]), address(numbers[i]), units};
  }
  Buffer<float> sums(static_cast<size_t>(factors[0].units) * factors[1].units);
  bm::cuda::statistics(sums.data(), factors[0], factors[1], n_chains, nullptr);
  out.add(sums.read());
}

// Biases of layers on the grid that the device chooses.
struct GapBiases {
  explicit GapBiases(Reader& in) : grid(1) {
    for (int64_t n_layers = in.one(); n_layers > 0; n_layers--) {
      const int64_t units = in.one();
      biases.emplace_back(in.many<float>(units));
      bases.push_back(in.maybe<float>(units));
      whole.emplace_back(static_cast<size_t>(units));
      layers.push_back({biases.back().data(), address(bases.back()), whole.back().data(), static_cast<int32_t>(units)});
    }
    Buffer<uint64_t> partials(layers.size() * bm::cuda::kGapPartials);
    bm::cuda::choose_gap_biases(grid.data(), partials.data(), layers, nullptr);
  }

  std::vector<Buffer<float>> biases;
  std::vector<std::optional<Buffer<float>>> bases;
  std::vector<Buffer<int64_t>> whole;
  std::vector<bm::cuda::GapLayer> layers;
  Buffer<float> grid;
};

void gap_biases(Reader& in, Writer& out) {
  GapBiases biases(in);
  out.add(biases.grid.read());
  for (Buffer<int64_t>& whole : biases.whole) out.add(whole.read());
}

void gap(Reader& in, Writer& out) {
  const auto n_chains = static_cast<int32_t>(in.one());
  GapBiases biases(in);
  std::vector<int32_t> units;
  std::vector<Buffer<uint32_t>> bits;
  Buffer<int64_t> sums(n_chains);
  for (const bm::cuda::GapLayer& layer : biases.layers) {
    units.push_back(layer.units);
    Buffer<uint8_t> states(in.many<uint8_t>(int64_t{n_chains} * units.back()));
    bits.emplace_back(static_cast<size_t>(n_chains * bm::cuda::bit_words(units.back())));
    bm::cuda::pack_bits(bits.back().data(), states.data(), n_chains, units.back(), nullptr);
    bm::cuda::add_whole_biases(sums.data(), bits.back().data(), layer.whole, units.back(), n_chains, nullptr);
  }
  Buffer<double> gaps(n_chains);
  for (int64_t n_couplings = in.one(); n_couplings > 0; n_couplings--) {
    const int64_t lower = in.one(), upper = in.one();
    Buffer<float> grid(std::vector<float>{std::ldexp(1.f, -static_cast<int>(in.one()))}), none(units[upper]);
    Buffer<int16_t> weights(in.many<int16_t>(int64_t{units[lower]} * units[upper]));
    Buffer<unsigned char> up(bm::cuda::weight_bytes(units[lower], units[upper]));
    bm::cuda::arrange_weights(up.data(), weights.data(), units[lower], units[upper], false, nullptr);
    bm::cuda::BinaryProduct product{n_chains, units[upper], 1, {}, none.data()};
    product.inputs[0] = {bits[lower].data(), up.data(), grid.data(), 1., units[lower]};
    Buffer<int64_t> partials(static_cast<size_t>(2 * bm::cuda::unit_tiles(units[upper]) * n_chains));
    bm::cuda::add_coupling_energy(gaps.data(), partials.data(), product, bits[upper].data(), nullptr);
  }
  bm::cuda::subtract_sums(gaps.data(), sums.data(), biases.grid.data(), n_chains, nullptr);
  out.add(gaps.read());
}

// The number of the round is counted on the device.
void swap(Reader& in, Writer& out) {
  const auto n_ladders = static_cast<int32_t>(in.one()), n_rungs = static_cast<int32_t>(in.one());
  const int64_t n = int64_t{n_ladders} * n_rungs;
  Buffer<int32_t> rungs(in.many<int32_t>(n));
  Buffer<double> gaps(in.many<double>(n)), trace(n), probabilities(n - n_ladders), acceptances(n_rungs - 1);
  Buffer<float> betas(in.many<float>(n_rungs)), beta(n);
  Buffer<int64_t> attempts(n_rungs - 1), trips(n);
  Buffer<uint8_t> heading(n);
  Buffer<uint32_t> rounds(1);
  bm::cuda::Swap what{};
  what.rungs = rungs.data();
  what.gaps = gaps.data();
  what.betas = betas.data();
  what.beta = beta.data();
  what.trace = trace.data();
  what.probabilities = probabilities.data();
  what.attempts = attempts.data();
  what.acceptances = acceptances.data();
  what.heading = heading.data();
  what.trips = trips.data();
  what.n_ladders = n_ladders;
  what.n_rungs = n_rungs;
  what.rounds_before = rounds.data();
  what.seed = in.one<uint64_t>();
  what.first_ladder = static_cast<uint32_t>(in.one());
  const int64_t n_rounds = in.one();
  for (int64_t i = 0; i < n_rounds; i++) {
    bm::cuda::swap(what, nullptr);
    bm::cuda::advance(rounds.data(), 1, nullptr);
  }
  out.add(rungs.read());
  out.add(beta.read());
  out.add(trace.read());
  out.add(attempts.read());
  out.add(acceptances.read());
  out.add(heading.read());
  out.add(trips.read());
}

}  // namespace

bool run_operation(const std::string& name, const char* from, const char* to) {
  const std::map<std::string, void (*)(Reader&, Writer&)> operations = {
      {"gap", gap},   {"gap_biases", gap_biases}, {"quantise", quantise},    {"statistics", statistics},
      {"swap", swap}, {"real_sweep", real_sweep}, {"mean_field", mean_field}};
  const auto operation = operations.find(name);
  if (operation == operations.end()) return false;
  Reader in(from);
  Writer out(to);
  operation->second(in, out);
  return true;
}
