// Block Gibbs sweeps of binary layers for compute capability 9.0: the same operations and the same bits as binary.h,
// where `choose` says so. All addresses are on the device; bits are as in layout.h. Launchers take the caller's stream,
// allocate nothing, wait for nothing, and throw std::runtime_error where a launch fails.
#pragma once

#include "cuda/binary.h"
#include "cuda/hopper_layout.h"

namespace bm::cuda::hopper {

// --- which kernel ----------------------------------------------------------------------------------------------------

enum class Kernel { kPortable, kResident, kStreamed };

struct Task {
  int32_t units;  // of the layer that is updated
  int32_t other;  // units of the only other layer, where a program updates two layers in turn; else 0
  int32_t n_chains;
};

// Two layers whose weights fit into a cluster stay there. Else layers of at least 64 units stream, from 256 chains on:
// a tile. What is smaller, and every other device, is left to the portable kernels.
Kernel choose(const Task& task);

// --- two layers whose weights stay in shared memory
// -------------------------------------------------------------------

struct ResidentLayer {
  uint32_t* bits;         // updated in place
  const uint32_t* clamp;  // bits, set where a unit keeps its value; or null
  const void* weights;    // [weight_bytes], of the direction that leads to this layer
  const float* biases;    // [units]
  const float* base;      // [units], the biases at beta = 0, or null: none
  float* means;           // [n_chains, units] for the means of the last sweep, or null
  double scale;           // of the input, beside 2^-f
  int32_t units;
  uint32_t layer_and_purpose;  // of the random counter
};

// Sweeps of two coupled layers: layers[first] given the other one, then the other one.
struct ResidentSweeps {
  ResidentLayer layers[2];
  const float* grid;  // [1], 2^-f of the coupling
  const float* beta;  // [n_chains], or null: 1
  uint64_t seed;
  int32_t n_chains, first;
  uint32_t n_sweeps, first_chain, first_sweep;
  const uint32_t* sweeps_before;  // [1], added to `first_sweep`, so that a CUDA graph can go on; or null
};

// Whether both directions of the coupling and the states of 64 chains fit into the shared memory of a cluster.
bool fits_cluster(int32_t lower, int32_t upper);

void sweep_resident(const ResidentSweeps& sweeps, void* stream);

// --- layers of any size ----------------------------------------------------------------------------------------------

// The same as bm::cuda::update_binary, with the weights of each input as [streamed_bytes].
void update_streamed(const BinaryUpdate& update, void* stream);

// --- weights ---------------------------------------------------------------------------------------------------------

enum class Layout { kResident, kStreamed };

// Of one direction of a coupling.
int64_t weight_bytes(Layout layout, int32_t inputs, int32_t outputs);

// to[weight_bytes] from W_q [lower, upper]: the direction to the upper layer, or to the lower one if transposed
void arrange_weights(Layout layout, void* to, const int16_t* weights, int32_t lower, int32_t upper, bool transposed,
                     void* stream);

// The same from weights [lower, upper] that are rounded to their grid.
void quantise_weights(Layout layout, void* to, const float* weights, const float* grid, int32_t lower, int32_t upper,
                      bool transposed, void* stream);

}  // namespace bm::cuda::hopper
