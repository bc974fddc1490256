#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

bool ragged_linear_op(const RaggedLinearOp& args, Fault* fault) {
  int64_t rows;
  if (!read_count("n_active", args.n_active, args.capacity, &rows, fault)) return false;
  if (args.row_index != nullptr &&
      !in_range("row_index", args.row_index, rows, 0, args.x_rows - 1, fault)) {
    return false;
  }
  if (rows == 0) return true;
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t n_threads = threads_for(args.n_threads, args.n * args.k * rows);
  work.grow(n_threads);
  const Rows2d x(args.x, args.x_stride, args.dtype);
  const Rows2d weight(args.weight, args.weight_stride, args.dtype);
  const float* bias = as_float(kernel, args.bias, args.dtype, args.n, work.before);
  const Matrix w{nullptr, nullptr, bias, args.n, args.k};
  for (int64_t first = 0; first < rows; first += kChunkRows) {
    const int64_t m = std::min(kChunkRows, rows - first);
    Output output{};
    output.sink = Sink::kStore, output.activation = args.activation;
    output.dtype = args.dtype, output.ld = args.n;
    output.out = reinterpret_cast<float*>(static_cast<uint8_t*>(args.out) +
                                          first * args.n * element_bytes(args.dtype));
    const Input input = linear_input(kernel, work, x, args.k, args.row_index, first, m);
    run_linear(kernel, work, n_threads, plain_linear(w, weight), input, m, output);
  }
  return true;
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_ragged_linear(const dynkern::RaggedLinearOp* args,
                                                    dynkern::Fault* fault) {
  return dynkern::guarded(
      [&]() -> int64_t { return dynkern::ragged_linear_op(*args, fault) ? 0 : 1; });
}
