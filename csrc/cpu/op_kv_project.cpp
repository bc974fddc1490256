#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

bool kv_project_op(const KvProjectOp& args, Fault* fault) {
  int64_t rows;
  if (!read_count("n_active", args.n_active, args.capacity, &rows, fault) ||
      !in_range("lane", args.lane, rows, 0, args.n_lanes - 1, fault) ||
      !in_range("position", args.position, rows, 0, args.n_positions - 1, fault)) {
    return false;
  }
  if (rows == 0) return true;
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t hidden = args.n_heads * args.head_size, stacked = round_up(hidden, kPanel);
  const int64_t n_threads = threads_for(args.n_threads, 2 * hidden * args.k * rows);
  work.grow(n_threads);
  // as packed weights have it: q, k and v, each from a whole panel on
  float* bias = nullptr;
  if (args.bias != nullptr) {
    bias = work.before.need(3 * stacked);
    const Rows2d parts(args.bias, hidden, args.dtype);
    for (int64_t part = 0; part < 2; ++part) {
      kernel.widen(parts.row(part), args.dtype, hidden, bias + (part + 1) * stacked);
    }
  }
  const Matrix w{nullptr, nullptr, bias, 3 * stacked, args.k};
  Linear linear = plain_linear(w, Rows2d(args.weight, args.weight_stride, args.dtype));
  linear.plain.first_part = 1;
  linear.first_panel = panel_count(hidden);
  work.k_row.resize(static_cast<size_t>(rows));
  work.v_row.resize(static_cast<size_t>(rows));
  const int64_t element = element_bytes(args.dtype);
  for (int64_t j = 0; j < rows; ++j) {
    const int64_t at = args.position[j] * args.head_size, lane = args.lane[j];
    work.k_row[static_cast<size_t>(j)] =
        static_cast<uint8_t*>(args.k_cache) + (lane * args.k_lane_stride + at) * element;
    work.v_row[static_cast<size_t>(j)] =
        static_cast<uint8_t*>(args.v_cache) + (lane * args.v_lane_stride + at) * element;
  }
  const Rows2d x(args.x, args.x_stride, args.dtype);
  for (int64_t first = 0; first < rows; first += kChunkRows) {
    const int64_t m = std::min(kChunkRows, rows - first);
    Output output{};
    output.sink = Sink::kQkv;
    output.hidden = hidden, output.head_size = args.head_size, output.kv_dtype = args.dtype;
    output.k_row = work.k_row.data() + first, output.v_row = work.v_row.data() + first;
    output.head_stride = args.n_positions * args.head_size;
    run_linear(kernel, work, n_threads, linear, linear_input(kernel, work, x, args.k, first, m), m,
               output);
  }
  return true;
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_kv_project(const dynkern::KvProjectOp* args,
                                                 dynkern::Fault* fault) {
  return dynkern::guarded(
      [&]() -> int64_t { return dynkern::kv_project_op(*args, fault) ? 0 : 1; });
}
