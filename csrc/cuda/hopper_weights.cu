// Weights on the integer grid as operands of the products of warpgroups (hopper_layout.h). Plain: what they cost is
// moving each array once.
#include "cuda/grid.h"
#include "cuda/hopper.h"
#include "simt/hopper.h"

namespace bm::cuda::hopper {
namespace {

constexpr unsigned kThreads = 128;

// Outputs come in groups, blocks of a cluster or tiles: [groups][steps][limbs][octets of a group][kOctetBytes].
struct Form {
  Layout layout;
  int32_t inputs, outputs, n_groups, n_octets, n_steps;
};

Form form_of(Layout layout, int32_t inputs, int32_t outputs) {
  if (layout == Layout::kResident)
    return {layout, inputs, outputs, kClusterBlocks, octets_of_block(outputs), steps(inputs)};
  return {layout,      inputs,
          outputs,     static_cast<int32_t>(unit_tiles(outputs)),
          kTileOctets, static_cast<int32_t>(stages(inputs)) * kStepsOfStage};
}

SIMT_DEVICE int64_t first_output(const Form& form, int32_t group, int32_t octet) {
  return int64_t{8} *
         (form.layout == Layout::kResident ? octet_of_layer(form.outputs, group, octet) : group * kTileOctets + octet);
}

// --- kernels ---------------------------------------------------------------------------------------------------------

template <class Weights>
struct Arranged {
  unsigned char* to;
  Weights weights;
  Form form;
  int32_t upper, transposed;
};

// A thread makes the 16 bytes of one output and half a step, for both limbs.
template <class Weights>
SIMT_KERNEL void arrange_kernel(SIMT_PARAMETER Arranged<Weights> p) {
  const Form& form = p.form;
  int64_t index = static_cast<int64_t>(simt::block_x()) * kThreads + simt::thread_x();
  const auto column = static_cast<int32_t>(index % 8), half = static_cast<int32_t>(index / 8 % 2);
  index /= 16;
  const auto octet = static_cast<int32_t>(index % form.n_octets);
  index /= form.n_octets;
  const int64_t step = index % form.n_steps;
  const auto group = static_cast<int32_t>(index / form.n_steps);
  if (group >= form.n_groups) return;
  const int64_t output = first_output(form, group, octet) + column;
  simt::Words4 high{}, low{};
  SIMT_UNROLL
  for (int i = 0; i < 16; i++) {
    const int64_t input = step * kStepInputs + input_of_row(half * 16 + i);
    if (input >= form.inputs || output >= form.outputs) continue;
    const int32_t weight = p.weights.at(p.transposed ? output * p.upper + input : input * p.upper + output);
    high.word[i / 4] |= high_byte(weight) << i % 4 * 8;
    low.word[i / 4] |= low_byte(weight) << i % 4 * 8;
  }
  unsigned char* to = p.to + ((group * int64_t{form.n_steps} + step) * 2 * form.n_octets + octet) * kOctetBytes +
                      half * kCellBytes + column * 16;
  *reinterpret_cast<simt::Words4*>(to) = high;
  *reinterpret_cast<simt::Words4*>(to + form.n_octets * kOctetBytes) = low;
}

// --- launchers -------------------------------------------------------------------------------------------------------

template <class Weights>
void arrange(Layout layout, void* to, const Weights& weights, int32_t lower, int32_t upper, bool transposed,
             void* stream) {
  const Form form = transposed ? form_of(layout, upper, lower) : form_of(layout, lower, upper);
  const int64_t threads = weight_bytes(layout, form.inputs, form.outputs) / 32;
  simt::launch(arrange_kernel<Weights>, {static_cast<unsigned>((threads + kThreads - 1) / kThreads), 1, kThreads, 0},
               stream, Arranged<Weights>{static_cast<unsigned char*>(to), weights, form, upper, transposed});
}

}  // namespace

std::optional<Layout> layout_of(int32_t inputs, int32_t outputs, bool is_only_coupling) {
  if (simt::compute_capability() != 90) return std::nullopt;
  return is_only_coupling && fits_cluster(inputs, outputs) ? Layout::kResident : Layout::kStreamed;
}

int64_t weight_bytes(Layout layout, int32_t inputs, int32_t outputs) {
  const Form form = form_of(layout, inputs, outputs);
  return int64_t{form.n_groups} * form.n_steps * 2 * form.n_octets * kOctetBytes;
}

void arrange_weights(Layout layout, void* to, const int16_t* weights, int32_t lower, int32_t upper, bool transposed,
                     void* stream) {
  arrange(layout, to, Integers{weights}, lower, upper, transposed, stream);
}

void quantise_weights(Layout layout, void* to, const float* weights, const float* grid, int32_t lower, int32_t upper,
                      bool transposed, void* stream) {
  arrange(layout, to, Reals{weights, grid}, lower, upper, transposed, stream);
}

}  // namespace bm::cuda::hopper
