// csrc/cpu/sample.h and its headers for ctypes, compiled for one instruction set.
#include "../../csrc/common/abi.h"
#include "../../csrc/cpu/sample.h"

using namespace dynkern::DYNKERN_ISA;

DYNKERN_EXPORT void run_philox(const uint32_t* counters, int64_t n, uint64_t seed, uint32_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t* c = counters + 4 * i;
    const Philox4 drawn = philox(c[0], c[1], c[2], c[3], seed);
    for (int w = 0; w < 4; ++w) out[4 * i + w] = drawn.word[w];
  }
}

DYNKERN_EXPORT void run_layer_uniforms(uint64_t seed, int64_t request, int64_t token,
                                       int64_t num_layers, uint32_t stream, float* out) {
  layer_uniforms(seed, request, token, num_layers, stream, out);
}

DYNKERN_EXPORT void run_program_keep(uint64_t seed, int64_t request, int64_t token,
                                     int64_t num_layers, const float* probability, int64_t budget,
                                     int32_t force_first, float* scratch, uint8_t* keep) {
  program_keep(seed, request, token, num_layers, probability, budget, force_first != 0, scratch,
               keep);
}

DYNKERN_EXPORT int64_t run_draw_chunk() { return kDrawChunk; }

// out: [n_chunks * kDrawChunk]
DYNKERN_EXPORT void run_vocabulary_uniforms(uint64_t seed, int64_t request, int64_t step,
                                            int64_t n_chunks, float* out) {
  for (int64_t c = 0; c < n_chunks; ++c) {
    vocabulary_uniforms(seed, request, step, c * kDrawChunk, out + c * kDrawChunk);
  }
}

DYNKERN_EXPORT void run_exp(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = exp_approx(x[i]);
}

DYNKERN_EXPORT void run_log(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = log_approx(x[i]);
}

DYNKERN_EXPORT int64_t run_scratch_floats(int64_t vocab) { return sample_scratch_floats(vocab); }
DYNKERN_EXPORT int64_t run_scratch_indices(int64_t vocab) { return sample_scratch_indices(vocab); }

DYNKERN_EXPORT int64_t run_sample(const SampleRow* row, float* scratch, int32_t* index_scratch) {
  return sample_row(*row, scratch, index_scratch);
}
