#include <cmath>

#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

void gate_op(const GateOp& args) {
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t element = element_bytes(args.dtype);
  // a layer's outputs are in the op's dtype, as the next one reads them
  int64_t widest = 0;
  for (int64_t l = 1; l < args.n_layers; ++l) widest = std::max(widest, args.widths[l]);
  for (int64_t first = 0; first < args.n; first += kChunkRows) {
    const int64_t m = std::min(kChunkRows, args.n - first);
    float* inner = work.inner.need(2 * m * widest);
    Rows2d x(args.h, args.h_stride, args.dtype);
    x.data = x.row(first);
    for (int64_t l = 0; l < args.n_layers; ++l) {
      const int64_t k = args.widths[l], n = args.widths[l + 1];
      const bool is_last = l + 1 == args.n_layers;
      const int64_t n_threads = threads_for(args.n_threads, n * k * m);
      work.grow(n_threads);
      const Matrix w{nullptr, nullptr, as_float(kernel, args.biases[l], args.dtype, n, work.before),
                     n, k};
      Output output{};
      output.sink = Sink::kStore, output.dtype = args.dtype, output.ld = n;
      output.activation = is_last ? kNone : kRelu;
      output.out =
          is_last
              ? reinterpret_cast<float*>(static_cast<uint8_t*>(args.logits) + first * 2 * element)
              : inner + (l & 1) * m * widest;
      const Rows2d weight(args.weights[l], args.weight_strides[l], args.dtype);
      run_linear(kernel, work, n_threads, plain_linear(w, weight),
                 linear_input(kernel, work, x, k, 0, m), m, output);
      x = Rows2d(output.out, n, args.dtype);
    }
  }
  for (int64_t j = 0; j < args.n; ++j) {
    // from the logits as they are handed out
    float logit[2], uniform;
    kernel.widen(static_cast<uint8_t*>(args.logits) + 2 * j * element, args.dtype, 2, logit);
    if (args.uniform == nullptr) {
      args.keep[j] = logit[1] > logit[0];
      continue;
    }
    const Rows2d draws(args.uniform, 1, args.uniform_dtype);
    kernel.widen(draws.row(j), args.uniform_dtype, 1, &uniform);
    const double apart = static_cast<double>(logit[1]) - static_cast<double>(logit[0]);
    args.keep[j] = uniform < static_cast<float>(1.0 / (1.0 + std::exp(-apart)));
  }
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_gate(const dynkern::GateOp* args, dynkern::Fault*) {
  return dynkern::guarded([&]() -> int64_t {
    dynkern::gate_op(*args);
    return 0;
  });
}
