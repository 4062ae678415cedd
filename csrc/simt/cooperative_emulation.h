// The back end of cooperative.h without nvcc. All blocks of a launch run together, lanes of all of them in the order
// that SIMT_ORDER says, and memory is as late as a device may make it:
//   - What store1 stores is seen by nobody before its block publishes it, or the launch ends.
//   - A block that has loaded a word by load4, load16 or copy_async16 sees the same value again until it refreshes.
//   - copy_async16 reads when it is issued.
//   - A lane that pauses goes on after the next count. Where no lane is left to count, the program stops with a list of
//     who waits where.
// The device runs a block on each of its multiprocessors; none at the same time if SIMT_COOPERATIVE is 0 in the
// environment.
#pragma once

namespace simt {

namespace emulation {

int room_together();
void run_together(void (*lane)(const void* context), const void* context, const Size& size);

}  // namespace emulation

void store1(uint8_t* to, uint8_t value);
void publish();
void refresh();
void count(uint32_t* counter);
uint32_t load_now(const uint32_t* counter);
void pause(int line = __builtin_LINE());

template <class Arguments>
int blocks_together(void (* /* kernel */)(Arguments), unsigned /* threads */, size_t /* shared_bytes */) {
  return emulation::room_together();
}

template <class Arguments>
void launch_together(void (*kernel)(Arguments), const Size& size, void* /* stream */, const Arguments& arguments) {
  check_size(size);
  struct Call {
    void (*kernel)(Arguments);
    const Arguments& arguments;
  } call{kernel, arguments};
  emulation::run_together(
      [](const void* context) {
        const Call& c = *static_cast<const Call*>(context);
        c.kernel(c.arguments);
      },
      &call, size);
}

}  // namespace simt
