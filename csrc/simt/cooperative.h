// What kernels whose blocks all run at the same time, and wait for each other through memory, are written with beside
// hopper.h. Two back ends, as there: PTX, or the emulation of cooperative_emulation.h.
//
//   blocks_together(kernel, threads, shared_bytes)
//                                       how many blocks of a kernel the current device runs at the same time; 0 where
//                                       it promises that of none
//   launch_together(kernel, size, stream, arguments)
//                                       like launch; throws where the device cannot run so many blocks at the same time
//
// What a block stores for others goes from one thread to all threads of another block in this order, in which sync is
// any barrier of the block or the warp:
//   store1, sync, publish, count  ->  load_now, refresh, sync, load4 or load16 or copy_async16
//   store1(to, value)                   stores a byte
//   publish()                           what the calling thread has stored, and what other threads had before they met
//                                       it at a barrier, is seen by whoever refreshes after a count that follows
//   count(counter)                      adds 1 to a word; orders nothing
//   load_now(counter)                   the word as it is, past all caches; orders nothing
//   pause()                             in a loop that waits for a count
//   refresh()                           the other half of publish, after the count has been seen
#pragma once

#include "simt/hopper.h"

#if !defined(__CUDACC__)
#include "simt/cooperative_emulation.h"
#else

namespace simt {

SIMT_DEVICE void store1(uint8_t* to, uint8_t value) { *to = value; }

SIMT_DEVICE void publish() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
SIMT_DEVICE void refresh() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

SIMT_DEVICE void count(uint32_t* counter) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter)) : "memory");
}

SIMT_DEVICE uint32_t load_now(const uint32_t* counter) {
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(counter)) : "memory");
  return value;
}

SIMT_DEVICE void pause() {}  // a load from the L2 cache is pause enough

template <class Arguments>
int blocks_together(void (*kernel)(Arguments), unsigned threads, size_t shared_bytes) {
  if (!device_attribute(cudaDevAttrCooperativeLaunch, "cooperative launches")) return 0;
  allow_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
  int of_multiprocessor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_multiprocessor, kernel, static_cast<int>(threads),
                                                      shared_bytes),
        "occupancy of a kernel");
  return of_multiprocessor * multiprocessors();
}

template <class Arguments>
void launch_together(void (*kernel)(Arguments), const Size& size, void* stream, const Arguments& arguments) {
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  launch_with(together, kernel, size, stream, arguments, "launch of a cooperative kernel");
}

}  // namespace simt
#endif
