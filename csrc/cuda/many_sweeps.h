// Many sweeps of a program in one launch, by a kernel that keeps the weights in shared memory.
#pragma once

#include <optional>
#include <variant>
#include <vector>

#include "cuda/hopper.h"
#include "cuda/launch.h"

namespace bm::cuda {

using ManySweeps = std::variant<hopper::ResidentSweeps, hopper::PersistentSweeps>;

// The sweeps of a call on packed states; none where its updates are to be launched one by one.
std::optional<ManySweeps> many_sweeps(const Machine& machine, const Program& program, const Views& views,
                                      const std::vector<const uint32_t*>& clamp, const Sweep& what,
                                      const uint32_t* sweeps_before, const Place& place);

// Sweeps `first` to `end` of the call, which has the same program.
void run(ManySweeps& sweeps, const Program& program, const Sweep& what, int64_t first, int64_t end, void* stream);

}  // namespace bm::cuda
