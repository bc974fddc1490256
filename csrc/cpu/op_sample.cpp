#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

bool sample_op(const SampleOp& args, Fault* fault) {
  const int64_t* history = args.repetition_penalty == 1.0 ? nullptr : args.history;
  for (int64_t j = 0; history != nullptr && j < args.n; ++j) {
    const int64_t* row = history + j * args.history_stride;
    if (!in_range("history", row, args.history_length, INT64_MIN, args.vocab - 1, fault)) {
      fault->at += j * args.history_length;
      return false;
    }
  }
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t n_threads = threads_for(args.n_threads, args.n * args.vocab);
  work.grow(n_threads);
  const int64_t floats = kernel.sample_floats(args.vocab), widened = round_up(args.vocab, 64);
  for (int64_t t = 0; t < n_threads; ++t) {
    auto& own = *work.threads[static_cast<size_t>(t)];
    own.scratch.need(floats + widened);
    own.index.need(kernel.sample_indices(args.vocab));
  }
  const Rows2d logits(args.logits, args.logits_stride, args.dtype);
  parallel_for(n_threads, args.n, [&](int64_t j, int64_t thread) {
    auto& own = *work.threads[static_cast<size_t>(thread)];
    const float* row = reinterpret_cast<const float*>(logits.row(j));
    if (args.dtype != kFloat32) {
      float* to = own.scratch.data() + floats;
      kernel.widen(logits.row(j), args.dtype, args.vocab, to);
      row = to;
    }
    Decode one{};
    one.request = args.request + j, one.step = const_cast<int64_t*>(args.step) + j;
    one.seed = args.seed, one.temperature = args.temperature;
    one.top_k = args.top_k, one.top_p = args.top_p;
    one.repetition_penalty = args.repetition_penalty;
    if (history != nullptr) {
      one.history = const_cast<int64_t*>(history) + j * args.history_stride;
      one.history_stride = args.history_length;
    }
    args.token[j] = kernel.sample(one, 0, row, args.vocab, own.scratch.data(), own.index.data());
  });
  return true;
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_sample(const dynkern::SampleOp* args, dynkern::Fault* fault) {
  return dynkern::guarded([&]() -> int64_t { return dynkern::sample_op(*args, fault) ? 0 : 1; });
}
