// Mean-field iterations with 8-bit products (vpdpbusd, four times the rate of float32 ones) whose errors fade away.
//
// Fields are sums, so an iteration need not compute them again: it adds the products of the weights with what the means
// have changed by. The change is rounded to 8 bits on a scale of its own for every case and layer; what rounding leaves
// over stays in the difference between means and what the products were given, and is part of the next change. As the
// changes die down so do the errors, and the point where the iterations come to rest is the machine's own.
//
// Weights are treated alike. W_q is a multiple of a step of the output plus a rest, 8 bits each; products with the
// rest, about 1/128 of the whole, are made up for once the changes they have not seen outweigh the present one, however
// small that is: a layer may come to rest at once.
//
// What the products have been given is a multiple of a grid, of which a mean leaves over half a step at most. The grid
// is as fine as the weights ask for, and multiples of it are exact in all but extreme machines, so that errors do not
// add up.
//
// All sums are exact integers, and a case's path is the same beside any others.
#include "cpu/kernels/limbs.h"

namespace bm::cpu::BM_ISA {

using mean_field::Feed;
using mean_field::kCases;

constexpr int kRows = mean_field::kTileCases;  // 16 accumulators, 4 weights
constexpr float kLag = 8.f;                    // changes that the low limb has not seen, in units of the present change
constexpr int kFullRounds = 3;                 // of 8 bits, by which means are given in full
constexpr float kDueChange = 2.f;              // in tolerances: where more is still to be seen, a case is not at rest,
constexpr float kDueLag = 64.f;                // nor where the low limb has more to see

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

// Adds what a layer gives to one of its neighbours over one limb, or leaves that half done where it is asked to stop.
static void add_feed(const mean_field::LayerWork& to_layer, const WeightsView& weights, const uint8_t* panels,
                     const float* steps, const Feed& feed, float factor, const ActiveCases& cases, StopView stop) {
  const int32_t n_quads = (weights.inputs + kQuad - 1) / kQuad, from_stride = padded(weights.inputs);
  float* to[kCases];
  const int8_t* digits[kCases];
  float scales[kCases];
  int32_t totals[kCases], n = 0;
  for (int32_t k = 0; k < cases.n; k++) {
    const int32_t c = cases.rows[k];
    if (feed.scales[c] == 0.f) continue;
    to_layer.is_old[c] = true;
    to[n] = to_layer.fields + c * static_cast<int64_t>(weights.stride);
    digits[n] = feed.digits + c * static_cast<int64_t>(from_stride);
    scales[n] = feed.scales[c] * factor;
    totals[n++] = feed.totals[c];
  }
  const bool slow = static_cast<int64_t>(n_quads) * n > 1 << 16;  // for each panel, or so
  if (stop.requested()) return;
  for (int32_t unit = 0; unit < weights.stride; unit += kPanelUnits) {
    if (slow && stop.requested()) return;
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

static inline Difference compare(const float* a, const float* b, int32_t units) {
  Difference difference;
  for (int32_t u = 0; u < units; u += kLanes) {
    const __mmask16 lanes = lanes_left(units - u);
    difference.note(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, a + u), _mm512_maskz_loadu_ps(lanes, b + u)));
  }
  return difference;
}

// 1 / (1 + exp(-x)), from the polynomial of units.h, an approximation to 14 bits and a step of Newton's method
static inline __m512 logistic(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.f);
  const __m512 t = _mm512_min_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)), _mm512_set1_ps(64.f));
  const __m512 r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0.00132647f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.00967151f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.05550734f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24022242f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.69314698f));
  p = _mm512_fmadd_ps(p, r, one);
  const __m512 d = _mm512_add_ps(one, _mm512_scalef_ps(p, _mm512_sub_ps(t, r))), y = _mm512_rcp14_ps(d);
  return _mm512_fmadd_ps(y, _mm512_fnmadd_ps(d, y, one), y);
}

// body(unit, lanes) for whole registers of units and the rest
template <class Body>
static inline void for_units(int32_t units, const Body& body) {
  int32_t u = 0;
  for (; u + kLanes <= units; u += kLanes) body(u, static_cast<__mmask16>(0xffff));
  if (u < units) body(u, lanes_left(units - u));
}

// step_means and compare to `given` in one pass, for Bernoulli units; without damping, and the change where wanted
template <bool kWantsChange>
static inline float step_bernoulli(float* means, const float* fields, const float* given, int32_t units,
                                   Difference& from_given) {
  __m512 change = _mm512_setzero_ps();
  Difference difference;
  for_units(units, [&](int32_t u, __mmask16 lanes) {
    const __m512 mean = logistic(_mm512_loadu_ps(fields + u));
    if (kWantsChange) {
      const __m512 moved = _mm512_maskz_sub_ps(lanes, mean, _mm512_maskz_loadu_ps(lanes, means + u));
      change = _mm512_max_ps(change, _mm512_abs_ps(moved));
    }
    _mm512_mask_storeu_ps(means + u, lanes, mean);
    difference.note(_mm512_maskz_sub_ps(lanes, mean, _mm512_load_ps(given + u)));
  });
  from_given = difference;
  return _mm512_reduce_max_ps(change);
}

// Gives as much of target - given, at most `largest` in size, as 8 bits hold; what is left over has at most the norm
// that is returned. Less than half a grid step is nothing.
static inline float feed_case(const Feed& feed, int32_t c, const float* target, float largest, int32_t units,
                              float grid) {
  float* given = feed.given + c * static_cast<int64_t>(padded(units));
  int8_t* digits = feed.digits + c * static_cast<int64_t>(padded(units));
  const float step = __builtin_ceilf(largest / 127.f / grid) * grid;
  const __m512 scale = _mm512_set1_ps(step), inverse = _mm512_set1_ps(1.f / step);
  const __m512 magic = _mm512_set1_ps(12582912.f);  // the last bits of its sum with a number are that rounded
  __m512i total = _mm512_setzero_si512();
  for_units(units, [&](int32_t u, __mmask16 lanes) {
    const __m512 before = _mm512_load_ps(given + u);
    const __m512 rest = _mm512_maskz_sub_ps(lanes, _mm512_maskz_loadu_ps(lanes, target + u), before);
    const __m512 shifted = _mm512_fmadd_ps(rest, inverse, magic);
    const __m512i q = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(magic));
    total = _mm512_add_epi32(total, q);
    _mm512_store_ps(given + u, _mm512_fmadd_ps(_mm512_sub_ps(shifted, magic), scale, before));
    _mm_store_si128(reinterpret_cast<__m128i*>(digits + u), _mm512_cvtepi32_epi8(q));
  });
  feed.scales[c] = step;
  feed.totals[c] = _mm512_reduce_add_epi32(total);
  return step / 2 * __builtin_sqrtf(static_cast<float>(units));
}

// Prepares what the neighbours are to see of the means of one case. Returns how much of it the case cannot be at rest
// without, in units of a change of a mean, if that is more than the tolerance.
static float feed_neighbours(const mean_field::LayerWork& work, int32_t c, const float* means, int32_t units,
                             const Difference& change, float tolerance) {
  const Feed &high = work.feeds[kHigh], &low = work.feeds[kLow];
  const int64_t start = c * static_cast<int64_t>(padded(units));
  const float grid = work.grid, most_left = static_cast<float>(mean_field::kMostLeft);
  high.scales[c] = low.scales[c] = 0.f;
  const float largest = _mm512_reduce_max_ps(change.largest);
  const float norm = __builtin_sqrtf(_mm512_reduce_add_ps(change.squares));
  float due = 0.f;
  if (largest > grid / 2 && norm * work.reaches[kHigh] > most_left) {
    work.lags[c] += norm + feed_case(high, c, means, largest, units, grid);
    due = largest / kDueChange;
  }
  if (work.lags[c] > kLag * norm && work.lags[c] * work.reaches[kLow] > most_left) {
    const Difference lag = compare(high.given + start, low.given + start, units);
    const float behind = _mm512_reduce_max_ps(lag.largest);
    work.lags[c] = __builtin_sqrtf(_mm512_reduce_add_ps(lag.squares));
    if (behind > grid / 2 && work.lags[c] > kLag * norm && work.lags[c] * work.reaches[kLow] > most_left) {
      work.lags[c] = feed_case(low, c, high.given + start, behind, units, grid);
      due = behind / kDueLag > due ? behind / kDueLag : due;
    }
  }
  return due > tolerance ? due : 0.f;
}

// --- iterations ------------------------------------------------------------------------------------------------------

// Gives the changes of one layer to those of its neighbours that a range of updates refreshes.
static void push(ProgramView moving, int source, const mean_field::LayerWork* work, const mean_field::LimbsView* limbs,
                 const ActiveCases& cases, int begin, int end, StopView stop) {
  const Feed* feeds = work[source].feeds;
  for (int i = begin; i < end; i++) {
    const UpdateView& update = moving.updates[i];
    for (int j = 0; j < update.n_inputs; j++) {
      const InputView& input = update.inputs[j];
      if (input.layer != moving.updates[source].layer) continue;
      const mean_field::LimbsView& of_input = limbs[update.inputs + j - moving.updates[0].inputs];
      add_feed(work[i], input.weights, of_input.high, of_input.steps, feeds[kHigh], input.scale, cases, stop);
      add_feed(work[i], input.weights, of_input.low, nullptr, feeds[kLow], input.scale, cases, stop);
    }
  }
}

// Whether the layer of an update is read before that refreshes it.
static bool is_read_first(ProgramView moving, int i) {
  for (int before = 0; before < i; before++)
    for (int j = 0; j < moving.updates[before].n_inputs; j++)
      if (moving.updates[before].inputs[j].layer == moving.updates[i].layer) return true;
  return false;
}

static void iterate(MachineView machine, ProgramView moving, float* const* means, const mean_field::LayerWork* work,
                    const mean_field::LimbsView* limbs, const mean_field::Iterations& what, int64_t first, int32_t n,
                    Scratch scratch) {
  ActiveCases cases(n);
  const auto refresh = [&](int i, float scale, float damping, bool wants_change) {
    const LayerView& layer = machine.layers[moving.updates[i].layer];
    for (int32_t k = 0; k < cases.n; k++) {
      const int32_t c = cases.rows[k];
      // the same fields would give the same means, of which there is nothing to feed
      if (!work[i].is_old[c] && work[i].feeds[kHigh].scales[c] == 0.f && work[i].feeds[kLow].scales[c] == 0.f) continue;
      work[i].is_old[c] = damping != 0.f;
      float* to = means[moving.updates[i].layer] + (first + c) * layer.units;
      const int64_t start = c * static_cast<int64_t>(layer.padded);
      const float *fields = work[i].fields + start, *given = work[i].feeds[kHigh].given + start;
      if (scale != 1.f) {
        memcpy(scratch.fields, fields, layer.padded * sizeof(float));
        scale_fields(scratch.fields, layer, scale);
        fields = scratch.fields;
      }
      Difference from_given;
      if (damping != 0.f || layer.kind != Kind::kBernoulli) {
        cases.note(c, step_means(to, fields, layer, damping));
        from_given = compare(to, given, layer.units);
      } else if (wants_change) {
        cases.note(c, step_bernoulli<true>(to, fields, given, layer.units, from_given));
      } else {
        step_bernoulli<false>(to, fields, given, layer.units, from_given);
      }
      const float due = feed_neighbours(work[i], c, to, layer.units, from_given, what.tolerance);
      if (what.tolerance > 0.f) cases.note(c, due);
    }
  };
  const auto feed = [&](int i) {
    const int32_t units = machine.layers[moving.updates[i].layer].units;
    for (int32_t k = 0; k < cases.n; k++) {
      const int32_t c = cases.rows[k];
      const float* from = means[moving.updates[i].layer] + (first + c) * units;
      const float* given = work[i].feeds[kHigh].given + c * static_cast<int64_t>(padded(units));
      feed_neighbours(work[i], c, from, units, compare(from, given, units), what.tolerance);
    }
  };
  // Of a layer that nothing has been given of before its first feed, which is not a change that would fade away.
  const auto give_in_full = [&](int i) {
    push(moving, i, work, limbs, cases, 0, moving.n_updates, what.stop);
    for (int round = 1; round < kFullRounds; round++) {
      feed(i);
      push(moving, i, work, limbs, cases, 0, moving.n_updates, what.stop);
    }
    for (const Feed& of_limb : work[i].feeds) memset(of_limb.scales, 0, n * sizeof(float));
    memset(work[i].is_old, true, n * sizeof(bool));  // there is a rest to be fed yet
  };
  for (int i = 0; i < moving.n_updates; i++) {
    const int32_t units = machine.layers[moving.updates[i].layer].units;
    for (const Feed& of_limb : work[i].feeds) {
      const int64_t size = static_cast<int64_t>(n) * padded(units);
      memset(of_limb.given, 0, size * sizeof(float));
      memset(of_limb.digits, 0, size);
      memset(of_limb.scales, 0, n * sizeof(float));
    }
    memset(work[i].lags, 0, n * sizeof(float));
    memset(work[i].is_old, true, n * sizeof(bool));
    if (what.n_start || !is_read_first(moving, i)) continue;
    feed(i);
    give_in_full(i);
  }
  cases.begin_iteration();
  for (int s = 0; s < what.n_start; s++) {
    refresh(what.start[s].update, what.start[s].scale, 0.f, false);
    memset(work[what.start[s].update].is_old, true, n * sizeof(bool));  // means of the fields as they are
    push(moving, what.start[s].update, work, limbs, cases, 0, moving.n_updates, what.stop);
  }
  for (int64_t iteration = 0; iteration < what.most && cases.n > 0 && !what.stop.requested(); iteration++) {
    cases.begin_iteration();
    const bool wants_change = what.tolerance > 0.f || iteration + 1 == what.most;
    for (int i = 0; iteration > 0 && i < moving.n_updates; i++) push(moving, i, work, limbs, cases, 0, i, what.stop);
    for (int i = 0; i < moving.n_updates; i++) {
      refresh(i, 1.f, what.damping, wants_change);
      if (iteration == 0 && !what.n_start && !is_read_first(moving, i)) {
        give_in_full(i);
      } else {
        push(moving, i, work, limbs, cases, i + 1, moving.n_updates, what.stop);
      }
    }
    cases.end_iteration(what, first, iteration);
  }
}

extern const mean_field::Kernels mean_field_kernels;
const mean_field::Kernels mean_field_kernels = {nullptr, iterate, split};

}  // namespace bm::cpu::BM_ISA
