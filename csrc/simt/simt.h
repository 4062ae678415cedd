// What a kernel is written with, and all that it may use of CUDA: one interface with two back ends.
//
// Under nvcc these are thin wrappers over CUDA and PTX; under any other compiler, the emulation of emulation.h, which
// runs the same kernels in the tests of a machine without a GPU. Kernels never say <<<>>>, threadIdx or __shared__.
//
//   block_x() block_y() thread_x()      indices; blocks are one-dimensional and whole warps
//   dynamic_shared()                    the block's shared memory, aligned to 16 bytes, not initialised
//   sync_block()  sync_warp()           barriers of the block and of the warp; both order memory
//   shuffle_xor(value, mask)            the value of lane ^ mask
//   ballot(flag)                        bit i: the flag of lane i
//   mma_m16n8k32(acc, a, b)             acc += A B of a whole warp
//   mma_m16n8k32_signed(acc, a, b)      the same with signed A
//                                       collectives of all 32 lanes of a warp; they do not order memory
//   copy_async16(to, from, bytes)       16 bytes from global to shared memory; those beyond `bytes` become 0
//   copy_commit()  copy_wait<N>()       closes a group of copies; waits until at most N groups are open, which concerns
//                                       the calling thread's own copies only
//   load4(from)  load16(from)           4 and 16 aligned bytes at once
//   atomic_max(at, value)               *at becomes the larger of both; lanes and blocks may meet at one word
//   launch(kernel, size, stream, arguments)
//                                       one structure is the kernel's only parameter; throws std::runtime_error
//
// mma_m16n8k32: A 16x32 unsigned bytes, B 32x8 signed bytes, acc 16x8 int32, wrapping. With g = lane / 4, t = lane % 4
// a lane holds, the lowest index in the lowest byte,
//   a[0] A[g][4t..4t+3]   a[1] A[g+8][4t..4t+3]   a[2] A[g][16+4t..16+4t+3]   a[3] A[g+8][16+4t..16+4t+3]
//   b[0] B[4t..4t+3][g]   b[1] B[16+4t..16+4t+3][g]
//   acc[0] C[g][2t]       acc[1] C[g][2t+1]       acc[2] C[g+8][2t]           acc[3] C[g+8][2t+1]
// (PTX ISA, "Matrix fragments for mma.m16n8k32").
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace simt {

struct Size {
  unsigned blocks_x, blocks_y;
  unsigned threads;     // of a block: whole warps
  size_t shared_bytes;  // of a block
};

struct alignas(16) Words4 {
  uint32_t word[4];
};

constexpr unsigned kMaxThreads = 1024, kMaxBlocksY = 65535;
constexpr size_t kPlainSharedBytes = 48 * 1024;  // more has to be asked for, and not every GPU has it

inline void check_size(const Size& size) {
  if (size.threads == 0 || size.threads % 32 != 0 || size.threads > kMaxThreads)
    throw std::runtime_error("launch: expected whole warps of at most 1024 threads, got " +
                             std::to_string(size.threads));
  if (size.blocks_x == 0 || size.blocks_x > 0x7fffffffu || size.blocks_y == 0 || size.blocks_y > kMaxBlocksY)
    throw std::runtime_error("launch: expected 1 to 2^31 - 1 times 1 to 65535 blocks, got " +
                             std::to_string(size.blocks_x) + " times " + std::to_string(size.blocks_y));
}

}  // namespace simt

#if !defined(__CUDACC__)
#include "simt/emulation.h"
#else

#define SIMT_KERNEL static __global__
#define SIMT_DEVICE static __device__ __forceinline__
#define SIMT_DEVICE_MEMBER __device__ __forceinline__
#define SIMT_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)  // and blocks that a multiprocessor shall hold
#define SIMT_PARAMETER const __grid_constant__
#define SIMT_UNROLL _Pragma("unroll")  // before loops whose counter indexes registers

namespace simt {

SIMT_DEVICE unsigned block_x() { return blockIdx.x; }
SIMT_DEVICE unsigned block_y() { return blockIdx.y; }
SIMT_DEVICE unsigned thread_x() { return threadIdx.x; }

SIMT_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return shared_bytes;
}

SIMT_DEVICE void sync_block() { __syncthreads(); }
SIMT_DEVICE void sync_warp() { __syncwarp(); }
SIMT_DEVICE uint32_t shuffle_xor(uint32_t value, unsigned mask) { return __shfl_xor_sync(~0u, value, mask); }
SIMT_DEVICE uint32_t ballot(bool flag) { return __ballot_sync(~0u, flag); }

SIMT_DEVICE void mma_m16n8k32(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

SIMT_DEVICE void mma_m16n8k32_signed(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

SIMT_DEVICE void atomic_max(uint32_t* at, uint32_t value) { atomicMax(at, value); }

SIMT_DEVICE void copy_async16(void* to, const void* from, int bytes) {
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(__cvta_generic_to_global(from)),
               "r"(bytes)
               : "memory");
}

SIMT_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kOpen>
SIMT_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

SIMT_DEVICE uint32_t load4(const void* from) { return *static_cast<const uint32_t*>(from); }

SIMT_DEVICE Words4 load16(const void* from) {
  const uint4 loaded = *static_cast<const uint4*>(from);
  return {{loaded.x, loaded.y, loaded.z, loaded.w}};
}

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

inline void allow_shared(const void* kernel, size_t bytes) {
  if (bytes > kPlainSharedBytes)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
          "shared memory of a kernel");
}

template <class Arguments>
void launch(void (*kernel)(Arguments), const Size& size, void* stream, const Arguments& arguments) {
  check_size(size);
  allow_shared(reinterpret_cast<const void*>(kernel), size.shared_bytes);
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  check(cudaLaunchKernel(kernel, dim3(size.blocks_x, size.blocks_y), dim3(size.threads), parameters, size.shared_bytes,
                         static_cast<cudaStream_t>(stream)),
        "launch of a kernel");
}

}  // namespace simt
#endif
