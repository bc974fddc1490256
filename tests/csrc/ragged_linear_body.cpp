// The CUDA body of ragged_linear with the launcher's grid, run on the CPU.
#include "../../csrc/common/abi.h"
#include "../../csrc/cuda/ragged_linear.cuh"
#include "host_warp.h"

// counts: accesses, misaligned accesses, bytes. Returns whether every warp's exchanges met.
DYNKERN_EXPORT bool run_ragged_linear_body(const dynkern::RaggedLinear* args, uint64_t seed,
                                           int64_t* counts) {
  using namespace dynkern;
  bool converged = true;
  const HostThread seen = with_linear_shape(*args, [&](auto number, auto rows, auto wide) {
    const Index3 grid{static_cast<unsigned>(ragged_linear_blocks(*args)), 1, 1};
    return run_warps(grid, kLinearWarps * 32, seed, &converged, [&] {
      ragged_linear_body<decltype(number), decltype(rows)::value, decltype(wide)::value>(*args);
    });
  });
  counts[0] = seen.accesses;
  counts[1] = seen.misaligned;
  counts[2] = seen.bytes;
  return converged;
}

// to_float and from_float: all 65536 patterns out, and n floats in.
DYNKERN_EXPORT void run_number(int32_t number, float* all, const float* values, int64_t n,
                               uint16_t* rounded) {
  using namespace dynkern;
  const bool is_half = number == static_cast<int32_t>(Number::kHalf);
  for (int i = 0; i < 65536; ++i) {
    const uint16_t bits = static_cast<uint16_t>(i);
    all[i] = is_half ? to_float(Half{bits}) : to_float(Bf16{bits});
  }
  for (int64_t i = 0; i < n; ++i) {
    rounded[i] = is_half ? from_float<Half>(values[i]).bits : from_float<Bf16>(values[i]).bits;
  }
}
