// In place of the CUDA runtime: one GPU, whose compute capability comes from the command line. Prints what
// csrc/cuda/device.cpp says of it and of a second one.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/device.h"

static int major, minor;

extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return cudaErrorInvalidDevice;
  *properties = {};
  std::strcpy(properties->name, "A GPU");
  properties->major = major;
  properties->minor = minor;
  properties->totalGlobalMem = size_t{8} << 30;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "invalid device ordinal"; }

// What is not asked here.
cudaError_t cudaSetDevice(int) { std::abort(); }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus*) { std::abort(); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t*, unsigned) { std::abort(); }
cudaError_t cudaEventDestroy(cudaEvent_t) { std::abort(); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { std::abort(); }
cudaError_t cudaEventQuery(cudaEvent_t) { std::abort(); }
}

int main(int, char** arguments) {
  major = std::atoi(arguments[1]);
  minor = std::atoi(arguments[2]);
  for (const int device : {0, 1}) std::puts(bm::cuda::gpu(device).c_str());
}
