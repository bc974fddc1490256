// What randomness decides: layers of drawn programs, and sampled tokens.
#pragma once

#include "kernels.h"
#include "philox.h"
#include "sample.h"

namespace dynkern {
namespace DYNKERN_ISA {

inline void draw_layers(const Decode& args, int64_t n_layers, int64_t row, float* scratch,
                        uint8_t* keep) {
  const float* probability = args.program == kBernoulli ? args.probability : nullptr;
  program_keep(args.seed, args.request[row], args.step[row], n_layers, probability, args.budget,
               args.force_first != 0, scratch, keep);
}

inline void draw_gates(uint64_t seed, int64_t request, int64_t step, int64_t n_layers, float* out) {
  layer_uniforms(seed, request, step, n_layers, kStreamGate, out);
}

inline int64_t sample(const Decode& args, int64_t row, const float* logits, int64_t vocab,
                      float* scratch, int32_t* index) {
  const int64_t* history =
      args.history == nullptr ? nullptr : args.history + row * args.history_stride;
  const SampleRow own{logits,
                      vocab,
                      history,
                      args.history_stride,
                      args.request[row],
                      args.step[row],
                      args.seed,
                      args.temperature,
                      args.top_k,
                      args.top_p,
                      args.repetition_penalty};
  return sample_row(own, scratch, index);
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
