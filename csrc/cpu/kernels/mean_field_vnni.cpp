// Mean-field iterations with 8-bit products (vpdpbusd, four times the rate of float32 ones) whose errors fade away.
//
// Fields are sums, so an iteration need not compute them again: it adds the products of the weights with what the means
// have changed by. The change is rounded to 8 bits on a scale of its own for every case and layer; what rounding leaves
// over stays in the difference between means and what the products were given, and is part of the next change. As the
// changes die down so do the errors, and the point where the iterations come to rest is the machine's own.
//
// Weights are treated alike. W_q is a multiple of a step of the output plus a rest, 8 bits each; products with the
// rest, about 1/128 of the whole, are made up for once the changes they have not seen outweigh the present one.
//
// All sums are exact integers, and a case's path is the same beside any others.
#include "cpu/kernels/mean_step.h"

namespace bm::cpu::BM_ISA {

using mean_field::Feed;
using mean_field::kCases;
using mean_field::kHigh;
using mean_field::kLow;
using mean_field::kPanelUnits;
using mean_field::kQuad;

constexpr int kLanes = 16, kVectors = kPanelUnits / kLanes;
constexpr int kRows = mean_field::kTileCases;  // 16 accumulators, 4 weights
constexpr float kLag = 8.f;                    // changes that the low limb has not seen, in units of the present change
constexpr float kNothing = 0x1p-60f;           // smaller changes are left for later

// --- weights ---------------------------------------------------------------------------------------------------------

static inline __m512i load_weights(const int16_t* weights) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)));
}

// steps[kLanes]: the least step with which the high limbs of these outputs fit 8 bits; 256 at most, since then
// 32,639 / 256 rounds to 127.
static inline __m512 high_steps(const WeightsView& weights, int32_t unit) {
  __m512i largest = _mm512_setzero_si512();
  const int16_t* row = weights.rows + unit;
  for (int32_t i = 0; i < weights.inputs; i++, row += weights.stride)
    largest = _mm512_max_epi32(largest, _mm512_abs_epi32(load_weights(row)));
  const __m512i step = _mm512_cvttps_epi32(
      _mm512_div_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(largest, _mm512_set1_epi32(126))), _mm512_set1_ps(127.f)));
  return _mm512_cvtepi32_ps(_mm512_max_epi32(_mm512_min_epi32(step, _mm512_set1_epi32(256)), _mm512_set1_epi32(1)));
}

static void split(uint8_t* high, uint8_t* low, float* steps, const WeightsView& weights) {
  const __m512i offset = _mm512_set1_epi32(128);
  for (int32_t unit = 0; unit < weights.stride; unit += kPanelUnits) {
    __m512 step[kVectors];
    for (int v = 0; v < kVectors; v++) {
      step[v] = high_steps(weights, unit + v * kLanes);
      _mm512_store_ps(steps + unit + v * kLanes, step[v]);
    }
    for (int32_t row = 0; row < weights.inputs; row += kQuad) {
      for (int v = 0; v < kVectors; v++) {
        __m512i highs = _mm512_set1_epi32(static_cast<int>(0x80808080u)), lows = highs;
        for (int r = kQuad - 1; r >= 0; r--) {
          __m512i w = _mm512_setzero_si512();
          if (row + r < weights.inputs)
            w = load_weights(weights.rows + (row + r) * static_cast<int64_t>(weights.stride) + unit + v * kLanes);
          // a quarter more: halves round up, so that the low limb of a step of 256 is -128 to 127
          const __m512 x = _mm512_add_ps(_mm512_cvtepi32_ps(w), _mm512_set1_ps(0.25f));
          const __m512i h = _mm512_cvtps_epi32(_mm512_div_ps(x, step[v]));
          const __m512i l = _mm512_sub_epi32(w, _mm512_mullo_epi32(h, _mm512_cvtps_epi32(step[v])));
          highs = _mm512_or_si512(_mm512_slli_epi32(highs, 8), _mm512_add_epi32(h, offset));
          lows = _mm512_or_si512(_mm512_slli_epi32(lows, 8), _mm512_add_epi32(l, offset));
        }
        _mm512_store_si512(high, highs);
        _mm512_store_si512(low, lows);
        high += 64;
        low += 64;
      }
    }
  }
}

// --- products --------------------------------------------------------------------------------------------------------

// fields of kCount cases += scale * step * (digits times one panel of limbs); steps null: 1
template <int kCount>
static inline void add_panel(float* const* fields, const int8_t* const* digits, const uint8_t* panel,
                             const float* steps, int32_t n_quads, const float* scales, const int32_t* totals) {
  __m512i sums[kCount][kVectors];
#pragma GCC unroll 4
  for (int c = 0; c < kCount; c++)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) sums[c][v] = _mm512_setzero_si512();
  for (int64_t q = 0; q < n_quads; q++) {
    __m512i limbs[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) limbs[v] = _mm512_load_si512(panel + (q * kVectors + v) * 64);
#pragma GCC unroll 4
    for (int c = 0; c < kCount; c++) {
      int32_t four;
      memcpy(&four, digits[c] + q * kQuad, sizeof four);
      const __m512i quad = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; v++) sums[c][v] = _mm512_dpbusd_epi32(sums[c][v], limbs[v], quad);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kCount; c++) {
    const __m512i excess = _mm512_set1_epi32(totals[c] * 128);  // of limb + 128 over limb
    const __m512 scale = _mm512_set1_ps(scales[c]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      float* to = fields[c] + v * kLanes;
      __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[c][v], excess));
      if (steps) sum = _mm512_mul_ps(sum, _mm512_load_ps(steps + v * kLanes));
      _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(to)));
    }
  }
}

// Adds what a layer gives to one of its neighbours over one limb.
static void add_feed(float* fields, const WeightsView& weights, const uint8_t* panels, const float* steps,
                     const Feed& feed, float factor, const ActiveCases& cases) {
  const int32_t n_quads = (weights.inputs + kQuad - 1) / kQuad, from_stride = padded(weights.inputs);
  float* to[kCases];
  const int8_t* digits[kCases];
  float scales[kCases];
  int32_t totals[kCases], n = 0;
  for (int32_t k = 0; k < cases.n; k++) {
    const int32_t c = cases.rows[k];
    if (feed.scales[c] == 0.f) continue;
    to[n] = fields + c * static_cast<int64_t>(weights.stride);
    digits[n] = feed.digits + c * static_cast<int64_t>(from_stride);
    scales[n] = feed.scales[c] * factor;
    totals[n++] = feed.totals[c];
  }
  for (int32_t unit = 0; unit < weights.stride; unit += kPanelUnits) {
    int32_t c = 0;
    for (; c + kRows <= n; c += kRows)
      add_panel<kRows>(to + c, digits + c, panels, steps, n_quads, scales + c, totals + c);
    switch (n - c) {
      case 3:
        add_panel<3>(to + c, digits + c, panels, steps, n_quads, scales + c, totals + c);
        break;
      case 2:
        add_panel<2>(to + c, digits + c, panels, steps, n_quads, scales + c, totals + c);
        break;
      case 1:
        add_panel<1>(to + c, digits + c, panels, steps, n_quads, scales + c, totals + c);
    }
    for (int32_t k = 0; k < n; k++) to[k] += kPanelUnits;
    panels += static_cast<int64_t>(n_quads) * kPanelUnits * kQuad;
    if (steps) steps += kPanelUnits;
  }
}

// --- feeds -----------------------------------------------------------------------------------------------------------

static inline __mmask16 lanes_left(int32_t n) { return n >= kLanes ? 0xffff : static_cast<__mmask16>((1 << n) - 1); }

// Of two arrays.
struct Difference {
  __m512 largest = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
  void note(__m512 d) {
    largest = _mm512_max_ps(largest, _mm512_abs_ps(d));
    squares = _mm512_fmadd_ps(d, d, squares);
  }
};

// What the means of one case have changed by: in this step, and since they were last given to the high limb.
struct Step {
  float change;
  Difference from_given;
};

static inline Step compare(const float* means, const float* given, int32_t units, float change) {
  Step step{change, {}};
  for (int32_t u = 0; u < units; u += kLanes) {
    const __mmask16 lanes = lanes_left(units - u);
    step.from_given.note(
        _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, means + u), _mm512_maskz_loadu_ps(lanes, given + u)));
  }
  return step;
}

// step_means and compare in one pass, for Bernoulli units
static inline Step step_bernoulli(float* means, const float* fields, const float* given, int32_t units, float damping) {
  Step step{0.f, {}};
  const __m512 one = _mm512_set1_ps(1.f);
  __m512 change = _mm512_setzero_ps();
  for (int32_t u = 0; u < units; u += kLanes) {
    const __mmask16 lanes = lanes_left(units - u);
    const __m512 old = _mm512_maskz_loadu_ps(lanes, means + u);
    const __m512 fresh = _mm512_div_ps(one, _mm512_add_ps(one, exp_minus(_mm512_loadu_ps(fields + u))));
    const __m512 mean = _mm512_fmadd_ps(_mm512_set1_ps(damping), _mm512_sub_ps(old, fresh), fresh);
    _mm512_mask_storeu_ps(means + u, lanes, mean);
    change = _mm512_mask_max_ps(change, lanes, change, _mm512_abs_ps(_mm512_sub_ps(mean, old)));
    step.from_given.note(_mm512_maskz_sub_ps(lanes, mean, _mm512_maskz_loadu_ps(lanes, given + u)));
  }
  step.change = _mm512_reduce_max_ps(change);
  return step;
}

// Gives as much of target - given as 8 bits hold; returns by how much `behind` is now behind `given`.
static inline Difference feed_case(const Feed& feed, int32_t c, const float* target, float largest, int32_t units,
                                   const float* behind) {
  Difference lag;
  feed.scales[c] = 0.f;
  if (!(largest > kNothing)) return lag;
  float* given = feed.given + c * static_cast<int64_t>(padded(units));
  int8_t* digits = feed.digits + c * static_cast<int64_t>(padded(units));
  const float step = largest / 127.f;
  const __m512 scale = _mm512_set1_ps(step), inverse = _mm512_set1_ps(127.f / largest);
  __m512i total = _mm512_setzero_si512();
  for (int32_t u = 0; u < units; u += kLanes) {
    const __mmask16 lanes = lanes_left(units - u);
    const __m512 before = _mm512_maskz_loadu_ps(lanes, given + u);
    const __m512 rest = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, target + u), before);
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(rest, inverse));
    const __m512 after = _mm512_fmadd_ps(_mm512_cvtepi32_ps(q), scale, before);
    total = _mm512_add_epi32(total, q);
    _mm512_mask_storeu_ps(given + u, lanes, after);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + u), _mm512_cvtsepi32_epi8(q));
    if (behind) lag.note(_mm512_sub_ps(after, _mm512_maskz_loadu_ps(lanes, behind + u)));
  }
  feed.scales[c] = step;
  feed.totals[c] = _mm512_reduce_add_epi32(total);
  return lag;
}

// Prepares what the neighbours are to see of the means of one case.
static void feed_neighbours(const mean_field::LayerWork& work, int32_t c, const float* means, int32_t units,
                            const Difference& change) {
  const Feed &high = work.feeds[kHigh], &low = work.feeds[kLow];
  const int64_t start = c * static_cast<int64_t>(padded(units));
  const Difference lag = feed_case(high, c, means, _mm512_reduce_max_ps(change.largest), units, low.given + start);
  const bool due = _mm512_reduce_add_ps(lag.squares) > kLag * kLag * _mm512_reduce_add_ps(change.squares);
  feed_case(low, c, high.given + start, due ? _mm512_reduce_max_ps(lag.largest) : 0.f, units, nullptr);
}

// --- iterations ------------------------------------------------------------------------------------------------------

static int update_of(ProgramView program, int layer) {
  int i = 0;
  while (program.updates[i].layer != layer) i++;
  return i;
}

static void add_inputs(ProgramView moving, int i, const mean_field::LayerWork* work, const mean_field::LimbsView* limbs,
                       const ActiveCases& cases, bool earlier_only) {
  const UpdateView& update = moving.updates[i];
  for (int j = 0; j < update.n_inputs; j++) {
    const InputView& input = update.inputs[j];
    const int source = update_of(moving, input.layer);
    if (earlier_only && source > i) continue;
    const mean_field::LimbsView& of_input = limbs[update.inputs + j - moving.updates[0].inputs];
    const Feed* feeds = work[source].feeds;
    add_feed(work[i].fields, input.weights, of_input.high, of_input.steps, feeds[kHigh], input.scale, cases);
    add_feed(work[i].fields, input.weights, of_input.low, nullptr, feeds[kLow], input.scale, cases);
  }
}

static void iterate(MachineView machine, ProgramView moving, float* const* means, const mean_field::LayerWork* work,
                    const mean_field::LimbsView* limbs, const mean_field::Iterations& what, int64_t first, int32_t n,
                    Scratch) {
  ActiveCases cases(n);
  for (int i = 0; i < moving.n_updates; i++) {
    const int layer = moving.updates[i].layer;
    const int32_t units = machine.layers[layer].units;
    bool seen = false;  // by an update that comes before the layer's own
    for (int before = 0; before < i; before++)
      for (int j = 0; j < moving.updates[before].n_inputs; j++) seen |= moving.updates[before].inputs[j].layer == layer;
    for (const Feed& feed : work[i].feeds) {
      const int64_t size = static_cast<int64_t>(n) * padded(units);
      memset(feed.given, 0, size * sizeof(float));
      memset(feed.digits, 0, size);
      memset(feed.scales, 0, n * sizeof(float));
    }
    for (int32_t c = 0; seen && c < n; c++) {
      const float* start = means[layer] + (first + c) * units;
      const float* given = work[i].feeds[kHigh].given + c * static_cast<int64_t>(padded(units));
      feed_neighbours(work[i], c, start, units, compare(start, given, units, 0.f).from_given);
    }
  }
  // Each state of a layer is given to its neighbours between two of its updates, and this is the first.
  for (int i = 0; i < moving.n_updates; i++) add_inputs(moving, i, work, limbs, cases, true);
  for (int64_t iteration = 0; iteration < what.most && cases.n > 0; iteration++) {
    cases.begin_iteration();
    for (int i = 0; i < moving.n_updates; i++) {
      const LayerView& layer = machine.layers[moving.updates[i].layer];
      add_inputs(moving, i, work, limbs, cases, false);
      for (int32_t k = 0; k < cases.n; k++) {
        const int32_t c = cases.rows[k];
        float* to = means[moving.updates[i].layer] + (first + c) * layer.units;
        const int64_t start = c * static_cast<int64_t>(layer.padded);
        const float *fields = work[i].fields + start, *given = work[i].feeds[kHigh].given + start;
        const Step step = layer.kind == Kind::kBernoulli
                              ? step_bernoulli(to, fields, given, layer.units, what.damping)
                              : compare(to, given, layer.units, step_means(to, fields, layer, what.damping));
        cases.note(c, step.change);
        feed_neighbours(work[i], c, to, layer.units, step.from_given);
      }
    }
    cases.end_iteration(what, first, iteration);
  }
}

extern const mean_field::Kernels mean_field_kernels;
const mean_field::Kernels mean_field_kernels = {nullptr, iterate, split};

}  // namespace bm::cpu::BM_ISA
