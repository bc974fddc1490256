// The CUDA body of kv_copy_forward with the launcher's grid, run on the CPU.
#include "../../csrc/common/abi.h"
#include "../../csrc/cuda/kv_copy_forward.cuh"
#include "host_grid.h"

// counts: accesses, misaligned accesses, bytes.
DYNKERN_EXPORT void run_kv_copy_forward_body(const dynkern::KvCopyForward* args, uint64_t seed,
                                             int64_t* counts) {
  using namespace dynkern;
  const HostThread seen = with_widest_piece(*args, [&](auto piece) {
    using Piece = decltype(piece);
    const Index3 grid{static_cast<unsigned>(args->n_rows), static_cast<unsigned>(args->n_layers),
                      static_cast<unsigned>(kv_copy_forward_chunks(*args, sizeof(Piece)))};
    return run_grid(grid, kKvCopyThreads, seed, [&] { kv_copy_forward_body<Piece>(*args); });
  });
  counts[0] = seen.accesses;
  counts[1] = seen.misaligned;
  counts[2] = seen.bytes;
}
