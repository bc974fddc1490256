// What an instruction set provides: the kernels over rows, panels and heads, as a table of
// functions.
//
// Every kernel fixes its order of summation by the shape of one row alone; row counts, threads and
// the share of columns that a call gets never change a result by a bit.
#pragma once

#include <cstdint>
#include <type_traits>

#include "engine.h"

namespace dynkern {

// Packed weights: panels of 64 outputs; in a panel, for every group of inputs, the 64 outputs side
// by side. A group is what one 32-bit lane holds: 1 float32, 2 bfloat16 or 4 int8 (stored plus
// 128).
constexpr int64_t kPanel = 64;
constexpr int64_t kGroupBytes = kPanel * 4;
// Rows that a kernel takes at a time.
constexpr int64_t kMaxRows = 6;
// int8 activations have a scale for every so many inputs.
constexpr int64_t kScaleBlock = 128;

// A float16, so that functions can be told apart; a plain uint16_t is a bfloat16.
struct Half {
  uint16_t bits;
};

constexpr int64_t element_bytes(int64_t dtype) {
  return dtype == kFloat32 ? 4 : dtype == kFloat64 ? 8 : 2;
}

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t divide_up(int64_t n, int64_t step) { return (n + step - 1) / step; }

constexpr int64_t group_size(int64_t format) {
  return format == kF32 ? 1 : format == kBF16 ? 2 : 4;
}
// Groups of one output, padding included.
constexpr int64_t group_count(int64_t format, int64_t k) {
  return format == kI8 ? round_up(k, kScaleBlock) / 4 : divide_up(k, group_size(format));
}
// Groups summed before the sum goes to the total: short sums keep rounding errors small, and a
// block of weights (16 KiB at most) stays in the first cache for the next rows.
constexpr int64_t block_groups(int64_t format) { return format == kI8 ? kScaleBlock / 4 : 64; }
constexpr int64_t panel_count(int64_t n) { return divide_up(n, kPanel); }
constexpr int64_t panel_bytes(int64_t format, int64_t k) {
  return group_count(format, k) * kGroupBytes;
}

// Rows ready for a linear of `format`: groups of 32 bits, `stride` bytes between rows. For kI8 also
// the scale of every block and -128 times the sum of its values, which undoes the 128 in the
// weights.
struct Input {
  uint8_t* data;
  int64_t stride;
  float* scale;
  int32_t* correction;
  int64_t n_blocks;
};

// Groups that are not zero in any row of a block of rows; offsets by block of groups.
struct ActiveGroups {
  const uint32_t* groups;
  const uint32_t* offsets;
};

// Rows of a block: m rows are cut into equal blocks of at most kMaxRows.
constexpr int64_t row_block_count(int64_t m) { return divide_up(m, kMaxRows); }
constexpr int64_t row_block_begin(int64_t m, int64_t block) {
  return block * m / row_block_count(m);
}

// Row-major weights, as single ops have them: row r of [n, k] is at data + r * row_bytes. The input
// of such a linear holds rows of `dtype`, but of float32 for float16 weights.
struct PlainWeights {
  const uint8_t* data;  // null: the weights are packed
  int64_t row_bytes;
  int64_t dtype;       // kFloat16: widened to the groups of kF32
  int64_t first_part;  // kQkv: which of q, k and v the rows begin with
};

// Groups that all rows go through before the next ones: whole blocks of groups, 16 KiB of a panel.
constexpr int64_t kStretchGroups = 64;
// Bytes between the words of a widened stretch: all groups' words of one step, then those of the
// next.
constexpr int64_t kPlane = kStretchGroups * 4;

// Blocks of rows whose totals a thread holds at a time.
constexpr int64_t kTileBlocks = 16;

enum class Sink { kStore, kInput, kAddRows, kQkv, kHead };

// Where a linear's outputs go.
struct Output {
  Sink sink;
  int64_t activation;
  float* out;  // kStore: [m, ld] in `dtype`; kAddRows: h, out[rows[j], ld] += y
  int64_t ld;
  Input input;          // kInput: the next linear's rows, in bfloat16
  const int32_t* rows;  // kAddRows: row of h; kQkv: slot of each row
  // kQkv: q goes to `out`, k and v to a place for each row
  int64_t hidden;
  int64_t head_size;
  int64_t kv_dtype;
  uint8_t* const* k_row;  // [m]: where head 0 of the row's k goes
  uint8_t* const* v_row;
  int64_t head_stride;  // elements between heads
  // kHead: best entries of every panel
  struct HeadPart* parts;  // [panels, m]
  bool log_sum;
  int64_t dtype;  // kStore: of `out`
};

// The largest entries of a panel for one row. token is -1 where an earlier panel holds a larger
// one; sum is over exp(logit - top).
struct HeadPart {
  float top;
  float second;
  float sum;
  int32_t token;
};

struct LinearJob {
  const Matrix* w;
  int64_t format;
  Input x;
  int64_t m;
  int64_t first_panel;         // of the panels that this job covers
  int64_t splits;              // items of a panel: 1, 2 or 4
  const ActiveGroups* active;  // one for each block of rows, or null
  Output output;
  float* const* tiles;  // scratch for each thread: [kTileBlocks * kMaxRows, 64]; plain:
                        // [m + kStretchGroups, 64]
  float* const* best;   // kHead: for each thread [m], -inf at the start
  PlainWeights plain;
};

struct DecodeAttention {
  const float* q;  // [m, ld]; the output replaces it
  float* out;
  int64_t ld;
  int64_t head_size;
  int64_t kv_dtype;
  const uint8_t* const* k_row;  // [m]: entry 0 of head 0
  const uint8_t* const* v_row;
  int64_t head_stride;    // elements between heads
  int64_t entry_stride;   // elements between entries of one head
  const int32_t* length;  // [m]: entries to attend to, the new one included
  float scale;
};

struct Kernels {
  const char* name;
  // item of n_panels * splits
  void (*linear)(const LinearJob& job, int64_t item, int64_t thread);
  // Row of float32 `src` [k] into row j of `x`, after a layer norm where `normalise`; temp: [k].
  void (*to_input)(const float* src, int64_t k, int64_t format, bool normalise, const float* weight,
                   const float* bias, float eps, float* temp, const Input& x, int64_t j);
  void (*layer_norm)(const float* src, int64_t k, const float* weight, const float* bias, float eps,
                     float* dst);
  // Groups that are not zero in rows [begin, end) of x; returns their number, offsets by block.
  int64_t (*active_groups)(const Input& x, int64_t format, int64_t k, int64_t begin, int64_t end,
                           uint32_t* groups, uint32_t* offsets);
  // Row j, head h; scores: scratch for the longest length, rounded up to 64.
  void (*decode_attention)(const DecodeAttention& job, int64_t j, int64_t head, float* scores);
  // One head of one prompt: q [n, ld] (replaced by the output), k [n, k_ld], v [n, v_ld] in
  // kv_dtype; scratch of prefill_scratch floats.
  void (*prefill_attention)(float* q, const uint8_t* k, const uint8_t* v, int64_t kv_dtype,
                            int64_t n, int64_t ld, int64_t k_ld, int64_t v_ld, int64_t head_size,
                            float scale, float* scratch);
  int64_t (*prefill_scratch)(int64_t n, int64_t head_size);
  float (*dot)(const float* a, const float* b, int64_t n);
  // n elements of a 16 or 32-bit float dtype to float32, and back, rounded to nearest even.
  void (*widen)(const void* src, int64_t dtype, int64_t n, float* dst);
  void (*narrow)(const float* src, int64_t dtype, int64_t n, void* dst);
  // dst = a + b, n elements of such a dtype each; dst may be either of them where it is float32.
  void (*add)(const void* a, const void* b, int64_t dtype, int64_t n, float* dst);
  // Keep bits [n_layers] of a row for a drawn program; scratch: [n_layers].
  void (*draw_layers)(const Decode& args, int64_t n_layers, int64_t row, float* scratch,
                      uint8_t* keep);
  // Uniforms [n_layers] of a row's sampled gates.
  void (*draw_gates)(uint64_t seed, int64_t request, int64_t step, int64_t n_layers, float* out);
  // The token that a row's sampling parameters pick from its logits.
  int64_t (*sample)(const Decode& args, int64_t row, const float* logits, int64_t vocab,
                    float* scratch, int32_t* index);
  int64_t (*sample_floats)(int64_t vocab);  // sizes of the scratch of `sample`
  int64_t (*sample_indices)(int64_t vocab);
  // 64 bits over bytes; the same on every level.
  uint64_t (*fingerprint)(const uint8_t* data, int64_t bytes);
  float (*read_block)(const float* data, int64_t n);
};

// The kernels in use: the best that this processor runs, or those that were set.
const Kernels& kernels();

const Kernels* portable_kernels();
#if defined(__x86_64__)
const Kernels* avx2_kernels();
const Kernels* avx2_vnni_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_vnni_kernels();
const Kernels* avx512_bf16_kernels();
#endif

}  // namespace dynkern
