// What the runtime is asked about devices and about work under way.
#pragma once

#include <string>

namespace bm::cuda {

// A device by its number, or "none: " and why the kernels cannot run on it; never throws.
std::string gpu(int device);

// The device that the calling thread works on from now on.
void use_device(int device);

// Whether what is launched on this stream is recorded into a graph instead of being run.
bool is_capturing(void* stream);

// A point of a stream's work.
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(void* stream);
  bool has_passed() const;  // whether the work before it is done; throws where that has failed

 private:
  void* event_;
};

}  // namespace bm::cuda
