// Memory itself: how fast it can be read, and 64 bits over what it holds.
#include <algorithm>
#include <vector>

#include "../common/abi.h"
#include "kernels.h"
#include "team.h"

// The same for every thread count and processor. A change of a single 4-byte word, as any other
// change, goes unseen with a chance of 2^-64 at most that the folds of lanes and blocks collide.
DYNKERN_EXPORT uint64_t dynkern_cpu_fingerprint(const void* data, int64_t bytes,
                                                int64_t n_threads) {
  using namespace dynkern;
  constexpr int64_t kBlock = int64_t{1} << 20;
  const auto* from = static_cast<const uint8_t*>(data);
  const Kernels& kernel = kernels();
  const int64_t n_blocks = divide_up(bytes, kBlock);
  std::vector<uint64_t> hashes(static_cast<size_t>(n_blocks));
  TeamLock lock;
  parallel_for(n_threads, n_blocks, [&](int64_t block, int64_t) {
    const int64_t at = block * kBlock;
    hashes[static_cast<size_t>(block)] =
        kernel.fingerprint(from + at, std::min(kBlock, bytes - at));
  });
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (const uint64_t h : hashes) hash = (hash ^ h) * 0x9e3779b97f4a7c15u + (hash >> 31);
  return hash;
}

// Reads n floats on the team and returns their sum: the bandwidth that passes are held against.
DYNKERN_EXPORT float dynkern_cpu_read(const float* data, int64_t n, int64_t n_threads) {
  using namespace dynkern;
  constexpr int64_t kBlock = int64_t{1} << 15;
  const Kernels& kernel = kernels();
  std::vector<float> sums(static_cast<size_t>(divide_up(n, kBlock)));
  TeamLock lock;
  parallel_for(n_threads, static_cast<int64_t>(sums.size()), [&](int64_t block, int64_t) {
    const int64_t at = block * kBlock;
    sums[static_cast<size_t>(block)] = kernel.read_block(data + at, std::min(kBlock, n - at));
  });
  float sum = 0.0f;
  for (const float part : sums) sum += part;
  return sum;
}
