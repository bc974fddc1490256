// Memory itself: how fast it can be read, and 64 bits over what it holds.
#include <algorithm>

#include "../common/abi.h"
#include "kernels.h"
#include "team.h"

namespace dynkern {
namespace {

// Calls one(start, size) of every block of n on the team, and fold of the results in order. The
// results of so many blocks at a time lie on the stack: nothing here can run out of memory.
template <class Result, class One, class Fold>
void in_blocks(int64_t n, int64_t block_size, int64_t n_threads, One&& one, Fold&& fold) {
  constexpr int64_t kMost = 512;
  const int64_t n_blocks = divide_up(n, block_size);
  TeamLock lock;
  for (int64_t first = 0; first < n_blocks; first += kMost) {
    Result results[kMost];
    const int64_t count = std::min(kMost, n_blocks - first);
    parallel_for(n_threads, count, [&](int64_t i, int64_t) {
      const int64_t at = (first + i) * block_size;
      results[i] = one(at, std::min(block_size, n - at));
    });
    for (int64_t i = 0; i < count; ++i) fold(results[i]);
  }
}

}  // namespace
}  // namespace dynkern

// The same for every thread count and processor. A change of a single 4-byte word, as any other
// change, goes unseen with a chance of 2^-64 at most that the folds of lanes and blocks collide.
DYNKERN_EXPORT uint64_t dynkern_cpu_fingerprint(const void* data, int64_t bytes,
                                                int64_t n_threads) {
  using namespace dynkern;
  constexpr int64_t kBlock = int64_t{1} << 20;
  const auto* from = static_cast<const uint8_t*>(data);
  const Kernels& kernel = kernels();
  uint64_t hash = static_cast<uint64_t>(bytes);
  in_blocks<uint64_t>(
      bytes, kBlock, n_threads,
      [&](int64_t at, int64_t size) { return kernel.fingerprint(from + at, size); },
      [&](uint64_t own) { hash = (hash ^ own) * 0x9e3779b97f4a7c15u + (hash >> 31); });
  return hash;
}

// Reads n floats on the team and returns their sum: the bandwidth that passes are held against.
DYNKERN_EXPORT float dynkern_cpu_read(const float* data, int64_t n, int64_t n_threads) {
  using namespace dynkern;
  constexpr int64_t kBlock = int64_t{1} << 15;
  const Kernels& kernel = kernels();
  float sum = 0.0f;
  in_blocks<float>(
      n, kBlock, n_threads,
      [&](int64_t at, int64_t size) { return kernel.read_block(data + at, size); },
      [&](float own) { sum += own; });
  return sum;
}
