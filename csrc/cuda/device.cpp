// What GPU there is, asked of the CUDA runtime, which is linked statically: the module loads without a driver.
#include <cuda_runtime_api.h>

#include <string>

#include "ops.h"

namespace bm {
namespace {

constexpr int kOldestMajor = 8;  // compute capability of the oldest GPUs that the kernels are compiled for

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

std::string gpu() {
  int n_devices = 0, device = 0;
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceCount(&n_devices);
  if (error == cudaSuccess) error = cudaGetDevice(&device);
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

}  // namespace bm
