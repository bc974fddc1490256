// K/V of prompts into the lanes of a cache, or into tensors of their own, on the engine's threads.
// torch's copies would wake its own: these spin for some milliseconds after each, and the passes
// that follow find their cores taken (a refilled batch of an 11M model decoded 1.27 times slower).
#include <cstring>

#include "../common/abi.h"
#include "engine.h"
#include "guard.h"
#include "team.h"

namespace dynkern {
namespace {

// below this a copy is over before another thread has woken
constexpr int64_t kSharedBytes = 128 << 10;

// one head of one token: constant sizes become a few moves, where a call took 8 ns for 128 bytes
inline void copy_head(const uint8_t* from, uint8_t* to, int64_t bytes) {
  constexpr int64_t kPiece = 64;
  int64_t at = 0;
  for (; at + kPiece <= bytes; at += kPiece) std::memcpy(to + at, from + at, kPiece);
  if (at < bytes) std::memcpy(to + at, from + at, static_cast<size_t>(bytes - at));
}

void copy_layer(const CopyKv& args, const uint8_t* from, uint8_t* to) {
  const int64_t token = args.n_heads * args.head_bytes;
  const bool dense = args.from_head_stride == args.head_bytes &&
                     args.to_head_stride == args.head_bytes && args.from_token_stride == token &&
                     args.to_token_stride == token;
  if (dense) {
    std::memcpy(to, from, static_cast<size_t>(args.n_tokens * token));
    return;
  }
  // a lane holds one head after the other: written in order, read in strides
  for (int64_t h = 0; h < args.n_heads; ++h) {
    for (int64_t t = 0; t < args.n_tokens; ++t) {
      copy_head(from + t * args.from_token_stride + h * args.from_head_stride,
                to + t * args.to_token_stride + h * args.to_head_stride, args.head_bytes);
    }
  }
}

void copy_kv(const CopyKv& args) {
  const int64_t bytes = 2 * args.n_layers * args.n_tokens * args.n_heads * args.head_bytes;
  const int64_t n_threads = bytes < kSharedBytes ? 1 : args.n_threads;
  parallel_for(n_threads, 2 * args.n_layers, [&](int64_t i, int64_t) {
    const int64_t from = args.from_layer[i / 2] * args.from_layer_stride;
    const int64_t to = args.to_layer[i / 2] * args.to_layer_stride;
    if (i % 2 == 0) {
      copy_layer(args, args.keys + from, args.to_keys + to);
    } else {
      copy_layer(args, args.values + from, args.to_values + to);
    }
  });
}

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_copy_kv(const dynkern::CopyKv* args) {
  return dynkern::guarded([&]() -> int64_t {
    dynkern::TeamLock lock;
    dynkern::copy_kv(*args);
    return 0;
  });
}
