// Launcher of kv_copy_forward. Compiled for sm_80 and sm_90 and its body run on a CPU by
// tests/csrc; not yet run on a GPU.
#include <cuda_runtime.h>

#include "../common/abi.h"
#include "device.h"
#include "kv_copy_forward.cuh"

namespace dynkern {
namespace {

constexpr int64_t kMaxGridYZ = 65535;

template <typename Piece>
__global__ void __launch_bounds__(kKvCopyThreads)
    kv_copy_forward_kernel(const __grid_constant__ KvCopyForward args) {
  kv_copy_forward_body<Piece>(args);
}

}  // namespace
}  // namespace dynkern

// Enqueues one kernel on `stream` of `device`; returns a cudaError_t. Indices out of range are left
// alone: seeing them here would take a host sync.
DYNKERN_EXPORT int dynkern_cuda_kv_copy_forward(const dynkern::KvCopyForward* args, int device,
                                                void* stream) {
  using namespace dynkern;
  if (args->n_rows == 0 || args->n_layers == 0 || args->n_heads == 0 || args->head_bytes == 0) {
    return cudaSuccess;
  }
  const DeviceGuard guard(device);
  if (guard.error() != cudaSuccess) return guard.error();
  return with_widest_piece(*args, [&](auto piece) -> cudaError_t {
    using Piece = decltype(piece);
    const int64_t chunks = kv_copy_forward_chunks(*args, sizeof(Piece));
    if (args->n_layers > kMaxGridYZ || chunks > kMaxGridYZ) return cudaErrorInvalidConfiguration;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(args->n_rows),
                          static_cast<unsigned>(args->n_layers), static_cast<unsigned>(chunks));
    config.blockDim = dim3(kKvCopyThreads);
    config.stream = static_cast<cudaStream_t>(stream);
    // returns this launch's own error, where cudaGetLastError would also report older ones
    return cudaLaunchKernelEx(&config, kv_copy_forward_kernel<Piece>, *args);
  });
}
