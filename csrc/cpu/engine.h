// The C ABI of the CPU engine: a packed model, a prefill pass, and decode passes in one call.
//
// Plain data only, mirrored field by field by dynkern/kernels/native_engine.py (a change here
// raises kCpuAbi). Pointers are borrowed for the length of a call. Sizes are in elements unless
// they say bytes; a shape [A, B] is row-major and contiguous.
#pragma once

#include <cstdint>

namespace dynkern {

// What a function that allocates returns where there was no memory, else 0 or what it says. Outputs
// are then not to be read, and the rows of a Decode stand in the middle of a pass: start them
// again. Everything else goes on as before.
constexpr int64_t kNoMemory = -1;

// Storage of linear weights; sums are float32 in all of them. Activations are float32, rounded to
// bfloat16 ahead of a bfloat16 linear, and to int8 with a scale for every 128 inputs ahead of int8.
enum Format : int64_t { kF32 = 0, kBF16 = 1, kI8 = 2 };

// Element types of plain arrays.
enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

enum Activation : int64_t { kNone = 0, kRelu = 1, kGelu = 2 };

// kNoFill: planned routes. The rest as dynkern/runtime/executors/kv_fill.py.
enum KvFill : int64_t { kNoFill = 0, kProject = 1, kCopy = 2, kDeferred = 3, kMask = 4 };

enum ProgramKind : int64_t {
  kPlanned = 0,
  kBernoulli = 1,
  kSubset = 2,
  kConfidence = 3,
  kController = 4
};

// What a controller's gates read: the residual ahead of their layer, or the embedding of the row's
// position or token.
enum GateInput : int64_t { kGateHidden = 0, kGatePosition = 1, kGateToken = 2 };

enum Measure : int64_t { kTopProb = 0, kMargin = 1, kCosine = 2 };

// kHidden: no head runs; the final hidden states are handed out and Python picks.
enum Pick : int64_t { kGreedy = 0, kSample = 1, kHidden = 2 };

// A linear [n, k] packed by dynkern_cpu_pack. scale: float32 [n] (kI8), else null. bias: float32
// [n] or null. n is a multiple of 64 for stacked parts (q, k and v, each padded to 64 rows of
// zeros).
struct Matrix {
  const uint8_t* data;
  const float* scale;
  const float* bias;
  int64_t n;
  int64_t k;
};

// Norm weights and biases: float32 [hidden], null without affine parts.
struct Layer {
  const float* attn_norm_weight;
  const float* attn_norm_bias;
  const float* ffn_norm_weight;
  const float* ffn_norm_bias;
  Matrix qkv;  // [3 * round_up(hidden, 64), hidden]: q, k, v, each padded with zero rows
  Matrix out;  // [hidden, hidden]
  Matrix fc1;  // [ffn, hidden]
  Matrix fc2;  // [hidden, ffn]
};

struct Model {
  int64_t num_layers;
  int64_t hidden;
  int64_t num_heads;
  int64_t head_size;
  int64_t ffn;
  int64_t vocab;
  int64_t embed;
  int64_t n_positions;  // rows of `position`: position_offset included
  int64_t position_offset;
  int64_t pre_norm;    // 0 or 1
  int64_t final_norm;  // 0 or 1
  int64_t activation;  // Activation
  int64_t format;      // Format of every Matrix
  int64_t kv_dtype;    // kFloat32 or kBFloat16
  double norm_eps;
  double attention_scale;
  const float* position;           // [n_positions, hidden]
  const float* final_norm_weight;  // [hidden] or null
  const float* final_norm_bias;
  Matrix token;         // [vocab, embed]; bias null
  Matrix head;          // [vocab, embed]; the same pointers as token where tied; bias null
  Matrix project_in;    // [hidden, embed]; data null where embed == hidden
  Matrix project_out;   // [embed, hidden]; likewise
  const Layer* layers;  // [num_layers]
};

// A linear layer of a gate: weight float32 [n, k], bias float32 [n].
struct Gate {
  const float* weight;
  const float* bias;
};

// One pass over packed prompts. With routes, a row's tokens run only its layers, and only their K/V
// is written.
struct Prefill {
  int64_t n_threads;
  int64_t n_rows;
  const int64_t* ids;     // [bounds[n_rows]]
  const int64_t* bounds;  // [n_rows + 1], bounds[0] = 0; positions run from 0 within each row
  const uint8_t* routes;  // [n_rows, num_layers] of 0/1, or null for full depth
  void* keys;             // out [num_layers, tokens, num_heads, head_size] in kv_dtype
  void* values;           // out, likewise
  float* hidden;          // out [n_rows, embed]: last token of each row as the head reads it
};

// Copies K/V of prompts: keys and values of from_layer[i] to where to_layer[i] lies. Strides are in
// bytes; a head's entries are contiguous on both sides.
struct CopyKv {
  int64_t n_threads;
  int64_t n_layers, n_tokens, n_heads, head_bytes;
  const int64_t* from_layer;  // [n_layers]
  const int64_t* to_layer;    // [n_layers], distinct
  const uint8_t* keys;
  const uint8_t* values;
  int64_t from_layer_stride, from_token_stride, from_head_stride;
  uint8_t* to_keys;
  uint8_t* to_values;
  int64_t to_layer_stride, to_token_stride, to_head_stride;
};

// Decode passes of one batch. "in/out" arrays are advanced unless `advance` is 0.
struct Decode {
  int64_t n_threads;
  int64_t n_slots;      // B
  int64_t max_passes;   // P, at least 1
  int64_t advance;      // 0: one pass, and token, position, step and alive stay as they are;
                        // 2: no further pass starts once a row has ended
  double max_seconds;   // no further pass starts after that
  const int32_t* stop;  // no further pass starts once *stop != 0; null for never

  int64_t* token;             // in/out [B]
  int64_t* position;          // in/out [B]: index in the row
  int64_t* step;              // in/out [B]: tokens generated so far
  const int64_t* request;     // [B]
  uint8_t* alive;             // in/out [B] of 0/1
  const uint8_t* route;       // [num_layers, B] of 0/1
  int64_t* remaining;         // in/out [B]: tokens that the row may still generate
  const int64_t* eos_bounds;  // [B + 1] into eos_ids: the ids that end a row
  const int64_t* eos_ids;

  void* k;  // [n_lanes, num_heads, capacity, head_size] in kv_dtype
  void* v;
  int64_t n_lanes;
  int64_t capacity;
  const int32_t* lane;  // [num_layers, slot_stride]
  int32_t* length;      // in/out [num_layers, slot_stride]
  int64_t slot_stride;

  int64_t kv_fill;         // KvFill
  float* waiting;          // kDeferred: [num_layers, B, waiting_tokens, hidden]
  int64_t* waiting_count;  // kDeferred: in/out [num_layers, B]
  int64_t waiting_tokens;

  int64_t program;           // ProgramKind
  const float* probability;  // kBernoulli: [num_layers]
  int64_t budget;            // kSubset
  int64_t force_first;       // kSubset
  int64_t measure;           // kConfidence: Measure
  double threshold;          // kConfidence
  const uint8_t* exits;      // kConfidence: [num_layers] of 0/1
  const Gate* gates;         // kController: [num_layers, gate_depth]; null weights: always run
  int64_t gate_depth;        // linear layers of a gate, with ReLU between
  int64_t gate_width;        // outputs of all but the last, which has 2: skip, run
  int64_t gate_input;        // GateInput
  int64_t gate_sampled;      // 0: the larger logit; 1: drawn by its probability

  int64_t pick;  // Pick
  uint64_t seed;
  double temperature;         // 0: arg-max (of penalised logits)
  int64_t top_k;              // 0: off
  double top_p;               // 1: off
  double repetition_penalty;  // 1: off
  int64_t* history;           // in/out [B, history_stride], -1 where none; null without a penalty
  int64_t history_stride;     // the pass writes a row's new token at position + 1

  int64_t* out_token;      // [P, B]; valid where the row was alive in that pass
  uint8_t* out_alive;      // [P, B]: alive when the pass began
  uint8_t* out_ran;        // [P, num_layers, B]: where a layer's body ran
  int64_t* out_filled;     // [P, num_layers]: tokens projected without running the layer
  int64_t* out_head_rows;  // [P]: rows through the head beyond one of each live row
  float* out_hidden;       // kHidden: [B, embed], valid for live rows; else null
  double* out_seconds;     // [P]: wall-clock seconds of each pass
};

}  // namespace dynkern
