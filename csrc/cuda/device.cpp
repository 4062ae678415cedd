// The CUDA runtime is linked statically: the module loads without a driver.
#include "cuda/device.h"

#include <cuda_runtime_api.h>

#include <stdexcept>

namespace bm::cuda {
namespace {

constexpr int kOldestMajor = 8;  // compute capability of the oldest GPUs that the kernels are compiled for

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string why_none(cudaError_t error) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (error == cudaErrorInsufficientDriver && driver == 0) return "no NVIDIA driver";
  if (error == cudaErrorInsufficientDriver)
    return "the NVIDIA driver serves CUDA " + version_text(driver) + ", this build needs " +
           std::to_string(runtime / 1000) + ".0 or newer";
  if (error == cudaErrorNoDevice) return "the NVIDIA driver finds no device";
  return cudaGetErrorString(error);
}

}  // namespace

std::string gpu(int device) {
  int n_devices = 0;
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceCount(&n_devices);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    cudaGetLastError();  // the runtime would report it again to whoever asks next
    return "none: " + why_none(error);
  }
  const std::string name = std::string(properties.name) + " (compute capability " + std::to_string(properties.major) +
                           "." + std::to_string(properties.minor) + ", " +
                           std::to_string(properties.totalGlobalMem >> 30) + " GiB)";
  if (properties.major < kOldestMajor)
    return "none: " + name + " is too old, compute capability " + std::to_string(kOldestMajor) + ".0 is needed";
  return name;
}

void use_device(int device) { check(cudaSetDevice(device), "choice of the device"); }

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "state of the stream");
  return status != cudaStreamCaptureStatusNone;
}

Event::Event() {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  event_ = event;
}

Event::~Event() { cudaEventDestroy(static_cast<cudaEvent_t>(event_)); }

void Event::record(void* stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), static_cast<cudaStream_t>(stream)), "event");
}

bool Event::has_passed() const {
  const cudaError_t error = cudaEventQuery(static_cast<cudaEvent_t>(event_));
  if (error == cudaErrorNotReady) {
    cudaGetLastError();  // torch would take it for a failure
    return false;
  }
  check(error, "work on the device");
  return true;
}

}  // namespace bm::cuda
