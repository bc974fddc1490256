// kv_copy_forward for a GPU: one launch over all layers and rows, written over shim.h.
//
// Grid: x = row, y = layer, z and thread = piece of the item's heads. Blocks of items that ask for
// nothing leave after two loads.
// Not yet run on a GPU.
#pragma once

#include "../common/kv_copy_forward.h"
#include "shim.h"

namespace dynkern {

// Four warps: an OPT-1.3B item (32 heads of 64 in bf16) is two blocks of 16-byte pieces.
constexpr int kKvCopyThreads = 128;

template <typename Piece>
DYNKERN_DEVICE void kv_copy_forward_body(const KvCopyForward& args) {
  const uint32_t pieces_per_head = static_cast<uint32_t>(args.head_bytes / sizeof(Piece));
  const uint32_t piece = block_index().z * block_size().x + thread_index().x;
  const uint32_t head = piece / pieces_per_head;
  if (head >= args.n_heads) return;
  Move move;
  if (find_move(args, block_index().y, block_index().x, &move) != Item::kMove) return;
  const int64_t offset = head * args.n_positions * args.head_bytes +
                         static_cast<int64_t>(piece % pieces_per_head) * sizeof(Piece);
  // both loads before either store: two requests in flight per thread
  const Piece k = load<Piece>(args.k + move.from + offset);
  const Piece v = load<Piece>(args.v + move.from + offset);
  store<Piece>(args.k + move.to + offset, k);
  store<Piece>(args.v + move.to + offset, v);
}

// Calls launch(Piece{}) with the widest access that divides both caches' addresses and a head.
template <typename Launch>
auto with_widest_piece(const KvCopyForward& args, Launch launch) {
  const uint64_t all = reinterpret_cast<uintptr_t>(args.k) | reinterpret_cast<uintptr_t>(args.v) |
                       static_cast<uint64_t>(args.head_bytes);
  if (all % 16 == 0) return launch(Piece16{});
  if (all % 8 == 0) return launch(uint64_t{});
  if (all % 4 == 0) return launch(uint32_t{});
  if (all % 2 == 0) return launch(uint16_t{});
  return launch(uint8_t{});
}

// Blocks along z for pieces of this size.
inline int64_t kv_copy_forward_chunks(const KvCopyForward& args, int64_t piece_bytes) {
  const int64_t pieces = args.n_heads * (args.head_bytes / piece_bytes);
  return (pieces + kKvCopyThreads - 1) / kKvCopyThreads;
}

}  // namespace dynkern
