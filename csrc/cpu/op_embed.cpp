#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

bool embed_op(const EmbedOp& args, Fault* fault) {
  if (!in_range("token_ids", args.token_ids, args.n, 0, args.vocab - 1, fault) ||
      !in_range("positions", args.positions, args.n, std::max<int64_t>(0, -args.position_offset),
                args.n_positions - 1 - args.position_offset, fault)) {
    return false;
  }
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t d = args.hidden, e = args.embed, element = element_bytes(args.dtype);
  const bool projected = args.project_in != nullptr;
  const int64_t n_threads = threads_for(args.n_threads, args.n * d * (projected ? e : 1));
  work.grow(n_threads);
  const Rows2d tokens(args.token_weight, args.token_stride, args.dtype);
  const Rows2d positions(args.position_weight, args.position_stride, args.dtype);
  for (int64_t first = 0; first < args.n; first += kChunkRows) {
    const int64_t m = std::min(kChunkRows, args.n - first);
    float* h = nullptr;
    if (projected) {
      h = work.h.need(m * d);
      const Matrix w{nullptr, nullptr, nullptr, d, e};
      Output output{};
      output.sink = Sink::kStore, output.out = h, output.ld = d;
      const Rows2d project(args.project_in, args.project_stride, args.dtype);
      run_linear(kernel, work, n_threads, plain_linear(w, project),
                 linear_input(kernel, work, tokens, e, args.token_ids, first, m), m, output);
    }
    float* temp = work.temp.need(n_threads * 2 * d);
    parallel_for(n_threads, m, [&](int64_t j, int64_t thread) {
      const uint8_t* position = positions.row(args.positions[first + j] + args.position_offset);
      uint8_t* out = static_cast<uint8_t*>(args.out) + (first + j) * d * element;
      float* row = args.dtype == kFloat32 ? reinterpret_cast<float*>(out) : temp + 2 * thread * d;
      if (projected) {
        float* place = temp + (2 * thread + 1) * d;
        kernel.widen(position, args.dtype, d, place);
        kernel.add(h + j * d, place, kFloat32, d, row);
      } else {
        kernel.add(tokens.row(args.token_ids[first + j]), position, args.dtype, d, row);
      }
      if (args.dtype != kFloat32) kernel.narrow(row, args.dtype, d, out);
    });
  }
  return true;
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_embed(const dynkern::EmbedOp* args, dynkern::Fault* fault) {
  return dynkern::guarded([&]() -> int64_t { return dynkern::embed_op(*args, fault) ? 0 : 1; });
}
