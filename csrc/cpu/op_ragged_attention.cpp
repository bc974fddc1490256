#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

bool prefill_op(const AttentionPrefillOp& args, Fault* fault) {
  const int32_t* ends = args.cu_seqlens;
  if (!in_range("cu_seqlens", ends, 1, 0, 0, fault)) return false;
  for (int64_t r = 1; r <= args.n_rows; ++r) {
    // the last row ends where the tokens do
    const int64_t low = r == args.n_rows ? args.n_tokens : ends[r - 1];
    if (ends[r] < ends[r - 1] || ends[r] < low || ends[r] > args.n_tokens) {
      *fault = {"cu_seqlens", r, ends[r], low, args.n_tokens};
      return false;
    }
  }
  if (args.n_rows == 0 && args.n_tokens > 0) {
    *fault = {"cu_seqlens", 0, 0, args.n_tokens, args.n_tokens};
    return false;
  }
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t size = args.head_size, hidden = args.n_heads * size;
  const int64_t element = element_bytes(args.dtype);
  const int64_t n_threads = threads_for(args.n_threads, args.n_tokens * hidden);
  work.grow(n_threads);
  const Rows2d q(args.q, args.q_stride, args.dtype), k(args.k, args.k_stride, args.dtype),
      v(args.v, args.v_stride, args.dtype);
  parallel_for(n_threads, args.n_rows * args.n_heads, [&](int64_t item, int64_t thread) {
    const int64_t first = ends[item / args.n_heads], n = ends[item / args.n_heads + 1] - first;
    if (n == 0) return;
    const int64_t at = item % args.n_heads * size * element;
    auto& own = *work.threads[static_cast<size_t>(thread)];
    float* rows = own.tile.need(n * size);
    for (int64_t t = 0; t < n; ++t) {
      kernel.widen(q.row(first + t) + at, args.dtype, size, rows + t * size);
    }
    kernel.prefill_attention(rows, k.row(first) + at, v.row(first) + at, args.dtype, n, size,
                             args.k_stride, args.v_stride, size, static_cast<float>(args.scale),
                             own.scratch.need(kernel.prefill_scratch(n, size)));
    uint8_t* out = static_cast<uint8_t*>(args.out) + first * hidden * element + at;
    for (int64_t t = 0; t < n; ++t) {
      kernel.narrow(rows + t * size, args.dtype, size, out + t * hidden * element);
    }
  });
  return true;
}

bool decode_op(const AttentionDecodeOp& args, Fault* fault) {
  int64_t n;
  if (!read_count("n_active", args.n_active, args.capacity, &n, fault) ||
      !in_range("row_index", args.row_index, n, 0, args.n_rows - 1, fault)) {
    return false;
  }
  for (int64_t j = 0; j < n; ++j) {
    const int64_t i = args.row_index[j];
    // of the rows that run: a row may hold no lane of a layer that it skips
    if (!in_range("lane", args.lane + i, 1, 0, args.n_lanes - 1, fault) ||
        !in_range("length", args.length + i, 1, 0, args.n_positions - 1, fault)) {
      fault->at = i;
      return false;
    }
  }
  if (n == 0) return true;
  const TeamLock lock;
  const Kernels& kernel = kernels();
  Workspace& work = workspace();
  const int64_t size = args.head_size, hidden = args.n_heads * size;
  const int64_t element = element_bytes(args.dtype);
  work.k_row.resize(static_cast<size_t>(n));
  work.v_row.resize(static_cast<size_t>(n));
  work.length.resize(static_cast<size_t>(n));
  int64_t longest = 0, entries = 0;
  for (int64_t j = 0; j < n; ++j) {
    const int64_t i = args.row_index[j], lane = args.lane[i];
    work.k_row[static_cast<size_t>(j)] =
        static_cast<uint8_t*>(args.k_cache) + lane * args.k_lane_stride * element;
    work.v_row[static_cast<size_t>(j)] =
        static_cast<uint8_t*>(args.v_cache) + lane * args.v_lane_stride * element;
    work.length[static_cast<size_t>(j)] = args.length[i] + 1;
    longest = std::max<int64_t>(longest, args.length[i] + 1);
    entries += args.length[i] + 1;
  }
  const int64_t n_threads = threads_for(args.n_threads, entries * hidden);
  work.grow(n_threads);
  for (int64_t t = 0; t < n_threads; ++t) {
    work.threads[static_cast<size_t>(t)]->scratch.need(round_up(longest, 64));
  }
  const bool in_place = args.dtype == kFloat32;
  float* rows = in_place ? static_cast<float*>(args.out) : work.q.need(n * hidden);
  const int64_t head_stride = args.n_positions * size;
  const DecodeAttention job{rows,
                            rows,
                            hidden,
                            size,
                            args.dtype,
                            work.k_row.data(),
                            work.v_row.data(),
                            head_stride,
                            size,
                            work.length.data(),
                            static_cast<float>(args.scale)};
  const Rows2d q(args.q, args.q_stride, args.dtype), k(args.k, args.k_stride, args.dtype),
      v(args.v, args.v_stride, args.dtype);
  parallel_for(n_threads, n * args.n_heads, [&](int64_t item, int64_t thread) {
    const int64_t j = item / args.n_heads, head = item % args.n_heads, at = head * size;
    const auto slot = static_cast<size_t>(j);
    const auto bytes = static_cast<size_t>(size * element);
    const int64_t entry = (head * head_stride + (work.length[slot] - 1) * size) * element;
    std::memcpy(work.k_row[slot] + entry, k.row(j) + at * element, bytes);
    std::memcpy(work.v_row[slot] + entry, v.row(j) + at * element, bytes);
    float* row = rows + j * hidden + at;
    kernel.widen(q.row(j) + at * element, args.dtype, size, row);
    kernel.decode_attention(job, j, head,
                            work.threads[static_cast<size_t>(thread)]->scratch.data());
    if (!in_place) {
      uint8_t* out = static_cast<uint8_t*>(args.out) + (j * hidden + at) * element;
      kernel.narrow(row, args.dtype, size, out);
    }
  });
  return true;
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_ragged_attention_prefill(
    const dynkern::AttentionPrefillOp* args, dynkern::Fault* fault) {
  return dynkern::guarded([&]() -> int64_t { return dynkern::prefill_op(*args, fault) ? 0 : 1; });
}

DYNKERN_EXPORT int64_t dynkern_cpu_op_ragged_attention_decode(
    const dynkern::AttentionDecodeOp* args, dynkern::Fault* fault) {
  return dynkern::guarded([&]() -> int64_t { return dynkern::decode_op(*args, fault) ? 0 : 1; });
}
