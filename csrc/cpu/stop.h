// How the threads of a long call learn that the user has pressed Ctrl-C.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>

namespace bm::cpu {

constexpr double kPollSeconds = 0.1;  // between questions whether the user has pressed Ctrl-C

// One per thread: kernels ask it; that of the calling thread polls.
struct StopState {
  using Clock = std::chrono::steady_clock;

  std::atomic<bool>* stop;
  const std::function<bool()>* interrupted;  // null in other threads
  Clock::time_point last_poll;

  static bool ask(void* context) {
    auto& self = *static_cast<StopState*>(context);
    if (self.interrupted && std::chrono::duration<double>(Clock::now() - self.last_poll).count() > kPollSeconds) {
      if ((*self.interrupted)()) self.stop->store(true, std::memory_order_relaxed);
      self.last_poll = Clock::now();
    }
    return self.stop->load(std::memory_order_relaxed);
  }
};

}  // namespace bm::cpu
