// The back end of hopper.h without nvcc. The blocks of a cluster run together, and it is as strict as emulation.h:
//   - A bulk copy spoils its target when it is issued and lands when its barrier is waited for. One that nobody waits
//     for, and a barrier that was never initialised, stop the program.
//   - A product reads the operand in shared memory when it is waited for, so that a stage that is used again too early
//     shows, and leaves scrambled sums until then. Operands in registers that changed before stop the program.
//   - Where cells lie is taken from the bits of `operand`, as PTX describes them.
//   - A store to another block lands at once; lanes of all blocks of a cluster run in the order that SIMT_ORDER says.
//   - The device is of compute capability 9.0, or of SIMT_COMPUTE_CAPABILITY in the environment (80 for 8.0), and has 8
//     multiprocessors, or SIMT_MULTIPROCESSORS: few, so that few chains fill it.
#pragma once

#include <string.h>

namespace simt {

namespace emulation {

void begin_multiply(int32_t* acc, const uint32_t* a, uint64_t b, unsigned columns, bool add, int line);
void wait_multiply(unsigned open, int line);
void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier, bool to_all);
void* in_block(void* here, unsigned rank);  // the same place in the shared memory of a block of the cluster
// blocks of a cluster; and of those that run together, which is more where clusters wait for each other
void run_cluster(void (*lane)(const void* context), const void* context, const Size& size, unsigned blocks,
                 unsigned together);

}  // namespace emulation

unsigned cluster_rank();
void sync_cluster(int line = __builtin_LINE());
void sync_threads_of(int id, int n, int line = __builtin_LINE());
void arrive_threads_of(int id, int n);
void barrier_init(Barrier* barrier, int count);
void barriers_ready();
void barrier_arrive(Barrier* barrier, unsigned rank);
void barrier_expect(Barrier* barrier, int bytes);
void barrier_wait(Barrier* barrier, unsigned parity, int line = __builtin_LINE());
uint64_t operand(const void* cells, int next_inputs, int next_columns);
void multiply_begin(int line = __builtin_LINE());
void multiply_commit(int line = __builtin_LINE());
int multiprocessors();
int compute_capability();

template <int kRegisters>
SIMT_DEVICE void give_registers() {}
template <int kRegisters>
SIMT_DEVICE void take_registers() {}

// All memory is ordered here.
SIMT_DEVICE void barrier_arrive_after_stores(Barrier* barrier, unsigned rank) { barrier_arrive(barrier, rank); }
SIMT_DEVICE void barrier_wait_for_stores(Barrier* barrier, unsigned parity, int line = __builtin_LINE()) {
  barrier_wait(barrier, parity, line);
}

SIMT_DEVICE void store_remote(uint32_t* to, unsigned rank, uint32_t value) {
  if (reinterpret_cast<uintptr_t>(to) % 4 != 0) emulation::fail("store_remote: the address is no multiple of 4");
  *static_cast<emulation::Word32*>(emulation::in_block(to, rank)) = value;
}

SIMT_DEVICE void store_remote(uint8_t* to, unsigned rank, uint8_t value) {
  *static_cast<uint8_t*>(emulation::in_block(to, rank)) = value;
}

SIMT_DEVICE void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
  emulation::copy_bulk(to, from, bytes, barrier, false);
}

SIMT_DEVICE void copy_bulk_to_all(void* to, const void* from, int bytes, Barrier* barrier) {
  emulation::copy_bulk(to, from, bytes, barrier, true);
}

template <int kOpen>
SIMT_DEVICE void multiply_wait(int line = __builtin_LINE()) {
  emulation::wait_multiply(kOpen, line);
}

template <int kColumns, int n>
SIMT_DEVICE void multiply(int32_t (&acc)[n], const uint32_t (&a)[4], uint64_t b, bool add,
                          int line = __builtin_LINE()) {
  static_assert(kColumns % 16 == 0 && kColumns >= 16 && kColumns <= 64 && kColumns / 2 <= n);
  emulation::begin_multiply(acc, a, b, kColumns, add, line);
}

SIMT_DEVICE void keep_order() {}

template <int n>
SIMT_DEVICE void settle(int32_t (&)[n]) {}

template <class Arguments>
void launch_cluster(void (*kernel)(Arguments), const Size& size, unsigned blocks, void* /* stream */,
                    const Arguments& arguments) {
  check_size(size);
  struct Call {
    void (*kernel)(Arguments);
    const Arguments& arguments;
  } call{kernel, arguments};
  emulation::run_cluster(
      [](const void* context) {
        const Call& c = *static_cast<const Call*>(context);
        c.kernel(c.arguments);
      },
      &call, size, blocks, blocks);
}

}  // namespace simt
