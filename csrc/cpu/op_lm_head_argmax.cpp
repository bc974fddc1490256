#include <cmath>

#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

bool lm_head_argmax_op(const LmHeadArgmaxOp& args, Fault* fault) {
  int64_t rows;
  if (!read_count("n_active", args.n_active, args.capacity, &rows, fault)) return false;
  if (rows == 0) return true;
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t n_threads = threads_for(args.n_threads, args.vocab * args.k * rows);
  work.grow(n_threads);
  const Rows2d x(args.x, args.x_stride, args.dtype);
  const Matrix w{nullptr, nullptr, nullptr, args.vocab, args.k};
  const Linear linear = plain_linear(w, Rows2d(args.weight, args.weight_stride, args.dtype));
  const int64_t n_panels = panel_count(args.vocab);
  for (int64_t first = 0; first < rows; first += kChunkRows) {
    const int64_t m = std::min(kChunkRows, rows - first);
    const Output output = head_output(work, n_threads, args.vocab, m, true);
    run_linear(kernel, work, n_threads, linear, linear_input(kernel, work, x, args.k, first, m), m,
               output);
    parallel_for(n_threads, m, [&](int64_t j, int64_t) {
      const Best best = best_of_panels(output.parts, n_panels, m, j, true);
      const float top = std::exp(best.top - best.log_sum);
      args.token[first + j] = best.token;
      args.top[first + j] = top;
      args.margin[first + j] = top - std::exp(best.second - best.log_sum);
      args.log_sum[first + j] = best.log_sum;
    });
  }
  return true;
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_lm_head_argmax(const dynkern::LmHeadArgmaxOp* args,
                                                     dynkern::Fault* fault) {
  return dynkern::guarded(
      [&]() -> int64_t { return dynkern::lm_head_argmax_op(*args, fault) ? 0 : 1; });
}
