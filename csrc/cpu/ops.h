// The C ABI of the single ops (dynkern/ops) on plain row-major tensors.
//
// Plain data only, mirrored field by field by dynkern/kernels/cpu/structs.py (a change here raises
// kCpuAbi). Floats are float32, bfloat16 or float16, one `dtype` (engine.h) for all of an op unless
// a field says otherwise; sums are float32. A matrix may have its rows apart: `x_stride` elements
// between rows of x, each row contiguous. Other arrays are contiguous. A count (`n_active`) is one
// int32 or null for all rows; rows of an output from it on are not touched. Every function checks
// its indices first: it returns 0, or 1 with `fault` set and nothing written, or kNoMemory.
#pragma once

#include <cstdint>

namespace dynkern {

// What was wrong: argument[at] is `value`, expected from `low` to `high`. low > high: it repeats an
// earlier element, expected distinct ones.
struct Fault {
  const char* argument;
  int64_t at;
  int64_t value;
  int64_t low;
  int64_t high;
};

enum Norm : int64_t { kPreNorm = 0, kPostNorm = 1, kNoNorm = 2 };

struct EmbedOp {
  const int64_t* token_ids;  // [n]
  const int64_t* positions;
  const void* token_weight;  // [vocab, embed]
  int64_t token_stride;
  const void* position_weight;  // [n_positions, hidden]
  int64_t position_stride;
  const void* project_in;  // [hidden, embed], or null where embed == hidden
  int64_t project_stride;
  void* out;  // [n, hidden]
  int64_t n;
  int64_t vocab;
  int64_t embed;
  int64_t hidden;
  int64_t n_positions;
  int64_t position_offset;
  int64_t dtype;
  int64_t n_threads;
};

struct RouteCompactOp {
  const uint8_t* keep;  // [n_layers, n_rows] of 0/1
  int64_t keep_stride;
  int32_t* row_index;  // [n_layers, n_rows]
  int32_t* n_active;   // [n_layers]
  int64_t n_layers;
  int64_t n_rows;
};

struct ResidualBypassLayerNormOp {
  void* h;  // in/out [n_rows, hidden]
  int64_t h_stride;
  const void* delta;  // [delta_capacity, hidden] or null
  int64_t delta_stride;
  const int32_t* delta_rows;  // [delta_capacity], distinct up to n_delta
  const int32_t* n_delta;
  const void* weight;        // [hidden] of weight_dtype, or null
  const void* bias;          // likewise
  const int32_t* row_index;  // [capacity]
  const int32_t* n_active;
  void* out;  // [capacity, hidden]
  int64_t n_rows;
  int64_t delta_capacity;
  int64_t capacity;
  int64_t hidden;
  int64_t dtype;
  int64_t weight_dtype;
  int64_t bias_dtype;
  int64_t norm;  // Norm
  int64_t n_threads;
  double eps;
};

struct RaggedLinearOp {
  const void* x;  // [x_rows, k]
  int64_t x_stride;
  const void* weight;  // [n, k]
  int64_t weight_stride;
  const void* bias;          // [n] or null
  const int32_t* row_index;  // [capacity], or null: row j is x[j], capacity == x_rows
  const int32_t* n_active;
  void* out;  // [capacity, n]
  int64_t x_rows;
  int64_t capacity;
  int64_t n;
  int64_t k;
  int64_t dtype;
  int64_t activation;  // Activation
  int64_t n_threads;
};

struct KvProjectOp {
  const void* x;  // [capacity, k]
  int64_t x_stride;
  const void* weight;  // [2 * n_heads * head_size, k], the k rows above the v rows
  int64_t weight_stride;
  const void* bias;  // [2 * n_heads * head_size] or null
  void* k_cache;     // [n_lanes, n_heads, n_positions, head_size], lanes k_lane_stride apart
  int64_t k_lane_stride;
  void* v_cache;
  int64_t v_lane_stride;
  const int32_t* lane;      // [capacity]
  const int32_t* position;  // [capacity]
  const int32_t* n_active;
  int64_t capacity;
  int64_t k;
  int64_t n_lanes;
  int64_t n_heads;
  int64_t n_positions;
  int64_t head_size;
  int64_t dtype;
  int64_t n_threads;
};

struct LmHeadArgmaxOp {
  const void* x;  // [capacity, k]
  int64_t x_stride;
  const void* weight;  // [vocab, k]
  int64_t weight_stride;
  const int32_t* n_active;
  int64_t* token;  // out [capacity]
  float* top;
  float* margin;
  float* log_sum;
  int64_t capacity;
  int64_t vocab;  // below 2^31
  int64_t k;
  int64_t dtype;
  int64_t n_threads;
};

struct GateOp {
  const void* h;  // [n, widths[0]]
  int64_t h_stride;
  const void* const* weights;  // [n_layers] of [widths[l + 1], widths[l]]
  const int64_t* weight_strides;
  const void* const* biases;  // [n_layers] of [widths[l + 1]]
  const int64_t* widths;      // [n_layers + 1], the last one is 2
  const void* uniform;        // [n] of uniform_dtype, or null: keep the larger logit
  void* logits;               // out [n, 2]
  uint8_t* keep;              // out [n] of 0/1
  int64_t n;
  int64_t n_layers;
  int64_t dtype;
  int64_t uniform_dtype;
  int64_t n_threads;
};

struct AttentionPrefillOp {
  const void* q;  // [n_tokens, n_heads, head_size]
  int64_t q_stride;
  const void* k;
  int64_t k_stride;
  const void* v;
  int64_t v_stride;
  const int32_t* cu_seqlens;  // [n_rows + 1]
  void* out;                  // [n_tokens, n_heads * head_size]
  int64_t n_tokens;
  int64_t n_rows;
  int64_t n_heads;
  int64_t head_size;
  int64_t dtype;
  int64_t n_threads;
  double scale;
};

struct AttentionDecodeOp {
  const void* q;  // [capacity, n_heads, head_size]
  int64_t q_stride;
  const void* k;
  int64_t k_stride;
  const void* v;
  int64_t v_stride;
  void* k_cache;  // in/out [n_lanes, n_heads, n_positions, head_size], lanes k_lane_stride apart
  int64_t k_lane_stride;
  void* v_cache;
  int64_t v_lane_stride;
  const int32_t* lane;       // [n_rows]
  const int32_t* length;     // [n_rows]
  const int32_t* row_index;  // [capacity]
  const int32_t* n_active;
  void* out;  // [capacity, n_heads * head_size]
  int64_t capacity;
  int64_t n_rows;
  int64_t n_lanes;
  int64_t n_heads;
  int64_t n_positions;
  int64_t head_size;
  int64_t dtype;
  int64_t n_threads;
  double scale;
};

struct SampleOp {
  const void* logits;  // [n, vocab]
  int64_t logits_stride;
  const int64_t* history;  // [n, history_length], negative where none; null without a penalty
  int64_t history_stride;
  const int64_t* request;  // [n]
  const int64_t* step;     // [n]
  int64_t* token;          // out [n]
  int64_t n;
  int64_t vocab;  // from 1 to 2^31 - 1
  int64_t history_length;
  int64_t dtype;
  uint64_t seed;
  int64_t top_k;
  int64_t n_threads;
  double temperature;
  double top_p;
  double repetition_penalty;
};

}  // namespace dynkern
