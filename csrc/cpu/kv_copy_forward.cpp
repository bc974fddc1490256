// kv_copy_forward on the CPU. memcpy is the vector path: libc picks its ISA at run time, and one
// copy is a whole head (128 bytes for bf16 heads of 64).
#include "../common/kv_copy_forward.h"

#include <cstring>

#include "../common/abi.h"

namespace dynkern {
namespace {

void copy_heads(const KvCopyForward& args, uint8_t* cache, const Move& move) {
  const int64_t stride = args.n_positions * args.head_bytes;
  for (int64_t head = 0; head < args.n_heads; ++head) {
    std::memcpy(cache + move.to + head * stride, cache + move.from + head * stride,
                static_cast<size_t>(args.head_bytes));
  }
}

// Items [begin, end) of the n_layers * n_rows items, layer by layer.
void kv_copy_forward_range(const KvCopyForward& args, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    Move move;
    if (find_move(args, item / args.n_rows, item % args.n_rows, &move) != Item::kMove) continue;
    copy_heads(args, args.k, move);
    copy_heads(args, args.v, move);
  }
}

// The first item with an index outside its range, or -1.
int64_t first_out_of_range(const KvCopyForward& args) {
  Move move;
  for (int64_t item = 0; item < args.n_layers * args.n_rows; ++item) {
    if (find_move(args, item / args.n_rows, item % args.n_rows, &move) == Item::kOutOfRange) {
      return item;
    }
  }
  return -1;
}

}  // namespace
}  // namespace dynkern

// For callers that share the items out among threads; indices out of range are left alone.
DYNKERN_EXPORT void dynkern_kv_copy_forward_range(const dynkern::KvCopyForward* args, int64_t begin,
                                                  int64_t end) {
  dynkern::kv_copy_forward_range(*args, begin, end);
}

// Returns -1, or the first item with an index out of range; then nothing was written.
DYNKERN_EXPORT int64_t dynkern_kv_copy_forward(const dynkern::KvCopyForward* args) {
  const int64_t bad = dynkern::first_out_of_range(*args);
  if (bad < 0) dynkern::kv_copy_forward_range(*args, 0, args->n_layers * args->n_rows);
  return bad;
}
