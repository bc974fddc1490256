// The current device for the length of a scope.
#pragma once

#include <cuda_runtime.h>

namespace dynkern {

// Makes `device` current and puts the former one back: PyTorch's idea of the current device, on
// the same thread, must survive a launch elsewhere.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    error_ = cudaGetDevice(&former_);
    if (error_ == cudaSuccess && former_ != device_) error_ = cudaSetDevice(device_);
  }
  ~DeviceGuard() {
    if (error_ == cudaSuccess && former_ != device_) cudaSetDevice(former_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t error() const { return error_; }

 private:
  int device_;
  int former_ = 0;
  cudaError_t error_;
};

}  // namespace dynkern
