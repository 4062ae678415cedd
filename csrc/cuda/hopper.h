// Block Gibbs sweeps of binary layers for compute capability 9.0: the same operations and the same bits as binary.h,
// where `choose` says so. All addresses are on the device; bits are as in layout.h. Launchers take the caller's stream,
// allocate nothing, wait for nothing, and throw std::runtime_error where a launch fails.
#pragma once

#include <optional>

#include "cuda/binary.h"
#include "cuda/hopper_layout.h"

namespace bm::cuda::hopper {

// --- which kernel ----------------------------------------------------------------------------------------------------

enum class Kernel { kPortable, kResident, kPersistent, kStreamed };

struct Task {
  int32_t units;  // of the layer that is updated
  int32_t other;  // units of the only other layer, where a program updates two layers in turn; else 0
  int32_t n_chains;
  int32_t room;  // where a whole program is to run: chains that its persistent kernel takes; else 0
};

// Two layers whose weights fit into a cluster stay there. Else programs whose weights fit into the device stay in as
// many blocks as they need, for as many chains as these are quick for. Else layers of at least 64 units stream, from
// 256 chains on: a tile. What is smaller, and every other device, is left to the portable kernels.
Kernel choose(const Task& task);

// --- many sweeps in one launch ---------------------------------------------------------------------------------------

struct SweptLayer {
  uint32_t* bits;         // updated in place
  const uint32_t* clamp;  // bits, set where a unit keeps its value; or null
  const float* biases;    // [units]
  const float* base;      // [units], the biases at beta = 0, or null: none
  float* means;           // [n_chains, units] for the means of the last sweep, or null
  int32_t units;
  uint32_t layer_and_purpose;  // of the random counter
};

struct Sweeps {
  const float* beta;              // [n_chains], or null: 1
  const uint32_t* sweeps_before;  // [1], added to `first_sweep`, so that a CUDA graph can go on; or null
  uint64_t seed;
  int32_t n_chains;
  uint32_t n_sweeps, first_chain, first_sweep;
};

// --- two layers whose weights stay in the shared memory of a cluster -------------------------------------------------

struct ResidentLayer : SweptLayer {
  const void* weights;  // [weight_bytes], of the direction that leads to this layer
  double scale;         // of the input, beside 2^-f
};

// Sweeps of two coupled layers: layers[first] given the other one, then the other one.
struct ResidentSweeps : Sweeps {
  ResidentLayer layers[2];
  const float* grid;  // [1], 2^-f of the coupling
  int32_t first;
};

// Whether both directions of the coupling and the states of 64 chains fit into the shared memory of a cluster.
bool fits_cluster(int32_t lower, int32_t upper);

void sweep_resident(const ResidentSweeps& sweeps, void* stream);

// --- programs whose weights stay in the shared memory of many blocks -------------------------------------------------

constexpr int32_t kMostUpdates = 16, kMostSources = 32;  // of a program

struct PersistentUpdate : SweptLayer {
  int32_t first_input, end_input;  // among all inputs: those of the layer, in the order in which their fields are added
  bool ends_block;                 // of the program, and so that of the last update
};

// Sweeps of a program. Updates of a block read no layer that the block updates.
struct PersistentSweeps : Sweeps {
  int32_t n_updates;
  PersistentUpdate updates[kMostUpdates];
  BinaryInput inputs[kMostSources];  // of all updates, with their weights as [streamed_bytes]
  uint32_t* arrivals;                // [arrival_words(n_chains)], which the launch uses as it likes
};

int64_t arrival_words(int32_t n_chains);

// Chains that the kernel takes of a program on the current device; 0 where the weights do not fit, or where the device
// does not promise to run blocks at the same time. `arrivals` need not be there yet.
int32_t persistent_room(const PersistentSweeps& sweeps);

void sweep_persistent(const PersistentSweeps& sweeps, void* stream);

// --- layers of any size ----------------------------------------------------------------------------------------------

// The same as bm::cuda::update_binary, with the weights of each input as [streamed_bytes].
void update_streamed(const BinaryUpdate& update, void* stream);

// --- weights ---------------------------------------------------------------------------------------------------------

enum class Layout { kResident, kStreamed };

// The order in which a machine holds a direction of a coupling for these kernels; none where they are not for its
// device.
std::optional<Layout> layout_of(int32_t inputs, int32_t outputs, bool is_only_coupling);

// Of one direction of a coupling.
int64_t weight_bytes(Layout layout, int32_t inputs, int32_t outputs);

// to[weight_bytes] from W_q [lower, upper]: the direction to the upper layer, or to the lower one if transposed
void arrange_weights(Layout layout, void* to, const int16_t* weights, int32_t lower, int32_t upper, bool transposed,
                     void* stream);

// The same from weights [lower, upper] that are rounded to their grid.
void quantise_weights(Layout layout, void* to, const float* weights, const float* grid, int32_t lower, int32_t upper,
                      bool transposed, void* stream);

}  // namespace bm::cuda::hopper
