// Launcher of ragged_linear for few rows. Compiled for sm_80 and sm_90 and its body run on a CPU by
// tests/csrc; not yet run on a GPU.
#include <cuda_runtime.h>

#include <type_traits>

#include "../common/abi.h"
#include "device.h"
#include "ragged_linear.cuh"

namespace dynkern {
namespace {

template <typename T, int kRows, bool kWide>
__global__ void __launch_bounds__(kLinearWarps * 32)
    ragged_linear_kernel(const __grid_constant__ RaggedLinear args) {
  ragged_linear_body<T, kRows, kWide>(args);
}

}  // namespace
}  // namespace dynkern

// Enqueues one kernel on `stream` of `device`; returns a cudaError_t.
DYNKERN_EXPORT int dynkern_cuda_ragged_linear(const dynkern::RaggedLinear* args, int device,
                                              void* stream) {
  using namespace dynkern;
  if (args->capacity == 0 || args->n_out == 0) return cudaSuccess;
  if (args->capacity > kLinearMostRows) return cudaErrorInvalidValue;
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  return with_linear_shape(*args, [&](auto number, auto rows, auto wide) -> cudaError_t {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(ragged_linear_blocks(*args)));
    config.blockDim = dim3(kLinearWarps * 32);
    config.stream = static_cast<cudaStream_t>(stream);
    const auto kernel =
        ragged_linear_kernel<decltype(number), decltype(rows)::value, decltype(wide)::value>;
    return cudaLaunchKernelEx(&config, kernel, *args);
  });
}
