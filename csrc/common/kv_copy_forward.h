// kv_copy_forward: arguments and index algebra, shared by the CPU and the CUDA kernel.
//
// Semantics: for s = source[l, i] >= 0 and p = position[i],
//   k[lane[l, i], h, p, :] = k[lane[s, i], h, p, :] for every head h, and v alike.
// A negative source or lane leaves (l, i) alone. A source is never itself a target, so the items
// (l, i) may run in any order.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define DYNKERN_HOST_DEVICE __host__ __device__
#else
#define DYNKERN_HOST_DEVICE
#endif

namespace dynkern {

// k, v: [n_lanes, n_heads, n_positions, head_bytes]; lane, source: [n_layers, n_rows];
// position: [n_rows]; all contiguous. Mirrored by native.py: a change here raises both ABIs.
struct KvCopyForward {
  uint8_t* k;
  uint8_t* v;
  const int32_t* lane;
  const int32_t* source;
  const int32_t* position;
  int64_t n_lanes;
  int64_t n_heads;
  int64_t n_positions;
  int64_t head_bytes;
  int64_t n_layers;
  int64_t n_rows;
};

enum class Item { kNothing, kMove, kOutOfRange };

// Byte offsets of head 0; the next head is n_positions * head_bytes further.
struct Move {
  int64_t to;
  int64_t from;
};

// What item (layer, row) asks for; `move` is set for Item::kMove only.
DYNKERN_HOST_DEVICE static inline Item find_move(const KvCopyForward& args, int64_t layer,
                                                 int64_t row, Move* move) {
  const int64_t source = args.source[layer * args.n_rows + row];
  if (source < 0) return Item::kNothing;
  if (source >= args.n_layers) return Item::kOutOfRange;
  const int64_t to = args.lane[layer * args.n_rows + row];
  const int64_t from = args.lane[source * args.n_rows + row];
  if (to < 0 || from < 0 || to == from) return Item::kNothing;
  const int64_t position = args.position[row];
  if (to >= args.n_lanes || from >= args.n_lanes) return Item::kOutOfRange;
  if (position < 0 || position >= args.n_positions) return Item::kOutOfRange;
  const int64_t lane_bytes = args.n_heads * args.n_positions * args.head_bytes;
  move->to = to * lane_bytes + position * args.head_bytes;
  move->from = from * lane_bytes + position * args.head_bytes;
  return Item::kMove;
}

}  // namespace dynkern
