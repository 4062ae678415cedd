// What parts of the emulation need of its scheduler, which is emulation.cpp.
#pragma once

#include <vector>

#include "simt/simt.h"

namespace simt::emulation {

struct Lane;

// Runs all blocks, `together` of them at a time: a cluster, or a grid that waits for itself.
void run(void (*lane)(const void* context), const void* context, const Size& size, unsigned together);

Lane* running_lane();
Lane* lane_of_warp(unsigned lane);  // of the running one's
unsigned running_block();           // among those that run together
unsigned blocks_together();
unsigned char* shared_of(unsigned block);
size_t shared_bytes();

// The running lane waits for all lanes of its warp, its warpgroup of 128, its block or all blocks that run together.
// `place` and `line` say where, and must be the same for all.
enum class Who { kWarp, kWarpgroup, kBlock, kAll };
void meet(Who who, const char* place, int line);

// Publishes up to six words of the running lane and waits for those of its warp, which can be read until its next
// collective but one. Only units that ThreadSanitizer does not see may read them: a collective orders no memory.
unsigned publish(const uint32_t* words, unsigned n, const char* place, int line);
const uint32_t* published(unsigned lane_of_warp, unsigned turn);

// The running lane waits until another one wakes it.
void park(std::vector<Lane*>& waiting, const char* place, int line);
void wake(std::vector<Lane*>& waiting);

}  // namespace simt::emulation
