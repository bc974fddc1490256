// What the CUDA library says of itself and of the machine it runs on.
#include <cuda_runtime.h>

#include "../common/abi.h"

DYNKERN_EXPORT int dynkern_cuda_abi() { return dynkern::kCudaAbi; }

// Number of devices into *count; returns a cudaError_t (no driver, driver too old, no device).
DYNKERN_EXPORT int dynkern_cuda_device_count(int* count) { return cudaGetDeviceCount(count); }

DYNKERN_EXPORT const char* dynkern_cuda_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
