// What kernels for compute capability 9.0 are written with beside simt.h: clusters of blocks, barriers in shared
// memory, bulk copies and the products of warpgroups. Two back ends, as there: PTX, or the emulation of
// hopper_emulation.h. Warps 4 i to 4 i + 3 of a block are a warpgroup.
//
//   launch_cluster(kernel, size, blocks, stream, arguments)
//                                       blocks of a cluster in a row of blocks_x; like launch
//   multiprocessors()  compute_capability()
//                                       of the current device, for launchers; 90 is 9.0
//   cluster_rank()  sync_cluster()      number of the block in its cluster; barrier of all its threads, orders memory
//   store_remote(to, rank, value)       stores a word or a byte at `to` in the shared memory of block `rank`
//   sync_threads_of(id, n)  arrive_threads_of(id, n)
//                                       named barrier of n threads of a block, of which some only arrive; id 1 to 15
//   give_registers<N>()  take_registers<N>()
//                                       all warps of a warpgroup: how many registers a thread has from here on
//
// Barriers in shared memory, 8 bytes each, go through phases: a phase ends when `count` threads have arrived and all
// bytes that were announced have been copied.
//   barrier_init(barrier, count)        by one thread; then barriers_ready() by it and sync_cluster() by all
//   barrier_arrive(barrier, rank)       at the barrier of block `rank` of the cluster
//   barrier_expect(barrier, bytes)      arrives and announces bytes
//   barrier_wait(barrier, parity)       until the phase of this parity has ended, and what was copied is there
//   barrier_arrive_after_stores(barrier, rank)  barrier_wait_for_stores(barrier, parity)
//                                       the same, which also order loads and stores of the whole cluster: the one waits
//                                       for its warp's stores, the other one empties the cache of its multiprocessor
//   copy_bulk(to, from, bytes, barrier) from global memory to shared memory by one thread, told to the barrier; all
//                                       multiples of 16
//   copy_bulk_to_all(...)               the same into every block of a cluster of two, told to its own barrier there
//
// Products of a warpgroup: acc[64 x N] += A[64 x 32] B[32 x N], u8 times s8, int32, wrapping; N is 16 to 64 in steps
// of 16. A is in registers: warp w of the warpgroup holds rows 16 w to 16 w + 15 as for mma_m16n8k32. So it
// is for acc, [4 c + i] of columns 8 c to 8 c + 7. B is in shared memory in cells of 8 columns times 16 inputs, 128
// bytes with the inputs of a column together; `operand` makes what says where: the distance of two cells that are
// neighbours in inputs, and of those that are neighbours in columns.
//   multiply_begin()                    before the first product, and after registers of operands were written
//   multiply<N>(acc, a, operand, add)   begins a product; add = false sets acc instead
//   multiply_commit()  multiply_wait<N>()
//                                       closes a group; waits until at most N groups are open. Until then acc and a
//                                       belong to the products
//   keep_order()                        the compiler moves no load or store across this
//   settle(acc)                         after waiting: acc may be read from here on
#pragma once

#include "simt/simt.h"

namespace simt {

using Barrier = uint64_t;

// Where B lies. Bits 0-13 its address in shared memory, 16-29 the distance of neighbours in inputs, 32-45 in columns,
// all without their last four bits; no swizzling.
SIMT_DEVICE uint64_t operand_of(uint32_t address, uint32_t next_inputs, uint32_t next_columns) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(next_inputs >> 4) << 16 |
         static_cast<uint64_t>(next_columns >> 4) << 32;
}

}  // namespace simt

#if !defined(__CUDACC__)
#include "simt/hopper_emulation.h"
#else

namespace simt {

SIMT_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

SIMT_DEVICE uint32_t remote_address(const void* p, unsigned rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(p)), "r"(rank));
  return there;
}

SIMT_DEVICE unsigned cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

SIMT_DEVICE void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

SIMT_DEVICE void store_remote(uint32_t* to, unsigned rank, uint32_t value) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(remote_address(to, rank)), "r"(value) : "memory");
}

SIMT_DEVICE void store_remote(uint8_t* to, unsigned rank, uint8_t value) {
  asm volatile("st.shared::cluster.u8 [%0], %1;" ::"r"(remote_address(to, rank)), "r"(static_cast<uint32_t>(value))
               : "memory");
}

SIMT_DEVICE void sync_threads_of(int id, int n) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n) : "memory"); }
SIMT_DEVICE void arrive_threads_of(int id, int n) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(n) : "memory"); }

template <int kRegisters>
SIMT_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
SIMT_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

SIMT_DEVICE void barrier_init(Barrier* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// For the other blocks, and for the copies, which are of another proxy.
SIMT_DEVICE void barriers_ready() {
  asm volatile(
      "fence.mbarrier_init.release.cluster;\n"
      "fence.proxy.async.shared::cta;" ::
          : "memory");
}

SIMT_DEVICE void barrier_arrive(Barrier* barrier, unsigned rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote_address(barrier, rank)) : "memory");
}

SIMT_DEVICE void barrier_arrive_after_stores(Barrier* barrier, unsigned rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(remote_address(barrier, rank))
               : "memory");
}

SIMT_DEVICE void barrier_expect(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

SIMT_DEVICE void barrier_wait(Barrier* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

SIMT_DEVICE void barrier_wait_for_stores(Barrier* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

SIMT_DEVICE void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

SIMT_DEVICE void copy_bulk_to_all(void* to, const void* from, int bytes, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier)), "h"(static_cast<uint16_t>(3))
      : "memory");
}

SIMT_DEVICE uint64_t operand(const void* cells, int next_inputs, int next_columns) {
  return operand_of(shared_address(cells), static_cast<uint32_t>(next_inputs), static_cast<uint32_t>(next_columns));
}

SIMT_DEVICE void multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SIMT_DEVICE void multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kOpen>
SIMT_DEVICE void multiply_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kOpen) : "memory");
}

SIMT_DEVICE void keep_order() { asm volatile("" ::: "memory"); }

template <int n>
SIMT_DEVICE void settle(int32_t (&acc)[n]) {
  SIMT_UNROLL
  for (int i = 0; i < n; i++) asm volatile("" : "+r"(acc[i])::"memory");
}

// Eight registers of acc: their names in the instruction, and what they are bound to.
#define SIMT_NAMES_0 "%0,%1,%2,%3,%4,%5,%6,%7"
#define SIMT_NAMES_1 SIMT_NAMES_0 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define SIMT_NAMES_2 SIMT_NAMES_1 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define SIMT_NAMES_3 SIMT_NAMES_2 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define SIMT_EIGHT(i)                                                                                       \
  "+r"(acc[8 * i]), "+r"(acc[8 * i + 1]), "+r"(acc[8 * i + 2]), "+r"(acc[8 * i + 3]), "+r"(acc[8 * i + 4]), \
      "+r"(acc[8 * i + 5]), "+r"(acc[8 * i + 6]), "+r"(acc[8 * i + 7])
#define SIMT_BOUND_0 SIMT_EIGHT(0)
#define SIMT_BOUND_1 SIMT_BOUND_0, SIMT_EIGHT(1)
#define SIMT_BOUND_2 SIMT_BOUND_1, SIMT_EIGHT(2)
#define SIMT_BOUND_3 SIMT_BOUND_2, SIMT_EIGHT(3)
#define SIMT_MULTIPLY(columns, last, a_names, b_name, add_name)                                                   \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_name ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns \
               "k32.s32.u8.s8 {" SIMT_NAMES_##last "}, {" a_names "}, " b_name ", add;\n}"                        \
               : SIMT_BOUND_##last                                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<uint32_t>(add)))

template <int kColumns, int n>
SIMT_DEVICE void multiply(int32_t (&acc)[n], const uint32_t (&a)[4], uint64_t b, bool add) {
  static_assert(kColumns % 16 == 0 && kColumns >= 16 && kColumns <= 64 && kColumns / 2 <= n);
  if constexpr (kColumns == 16) SIMT_MULTIPLY("16", 0, "%8,%9,%10,%11", "%12", "%13");
  if constexpr (kColumns == 32) SIMT_MULTIPLY("32", 1, "%16,%17,%18,%19", "%20", "%21");
  if constexpr (kColumns == 48) SIMT_MULTIPLY("48", 2, "%24,%25,%26,%27", "%28", "%29");
  if constexpr (kColumns == 64) SIMT_MULTIPLY("64", 3, "%32,%33,%34,%35", "%36", "%37");
}

template <class Arguments>
void launch_with(const cudaLaunchAttribute& attribute, void (*kernel)(Arguments), const Size& size, void* stream,
                 const Arguments& arguments, const char* what) {
  check_size(size);
  allow_shared(reinterpret_cast<const void*>(kernel), size.shared_bytes);
  cudaLaunchAttribute attributes[] = {attribute};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(size.blocks_x, size.blocks_y);
  config.blockDim = dim3(size.threads);
  config.dynamicSmemBytes = size.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = 1;
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  check(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), parameters), what);
}

template <class Arguments>
void launch_cluster(void (*kernel)(Arguments), const Size& size, unsigned blocks, void* stream,
                    const Arguments& arguments) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  launch_with(cluster, kernel, size, stream, arguments, "launch of a cluster kernel");
}

inline int device_attribute(cudaDeviceAttr attribute, const char* what) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&value, attribute, device), what);
  return value;
}

inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount, "number of multiprocessors"); }

inline int compute_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor, "compute capability") +
         device_attribute(cudaDevAttrComputeCapabilityMinor, "compute capability");
}

}  // namespace simt
#endif
