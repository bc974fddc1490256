// Whole blocks of memory: read as fast as it comes, or folded to 64 bits by integer arithmetic that
// is the same on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

// A sum of the floats, so that no read is left out.
inline float read_block(const float* data, int64_t n) {
  Vf sum[4] = {vzero(), vzero(), vzero(), vzero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) sum[j] = vadd(sum[j], vload(data + i + j * kLanes));
  }
  float tail = 0.0f;
  for (; i < n; ++i) tail += data[i];
  return vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3]))) + tail;
}

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
  return x ^ (x >> 32);
}

// Every step is a bijection of the lane for each word, and of the word for each lane: a single
// changed word cannot be lost before the lanes are folded.
inline uint64_t fingerprint(const uint8_t* data, int64_t bytes) {
  constexpr int kWords = 64;
  uint32_t lane[kWords], word[kWords];
  for (int i = 0; i < kWords; ++i) lane[i] = 0x85ebca6bu * static_cast<uint32_t>(2 * i + 1);
  const auto step = [&] {
    for (int i = 0; i < kWords; ++i) {
      const uint32_t x = (lane[i] ^ word[i]) * 0x9e3779b1u;
      lane[i] = x ^ (x >> 15);
    }
  };
  int64_t at = 0;
  for (; at + static_cast<int64_t>(sizeof(word)) <= bytes; at += sizeof(word)) {
    std::memcpy(word, data + at, sizeof(word));
    step();
  }
  std::memset(word, 0, sizeof(word));
  std::memcpy(word, data + at, static_cast<size_t>(bytes - at));
  step();
  uint64_t hash = static_cast<uint64_t>(bytes);
  for (const uint32_t x : lane) {
    hash = (hash ^ mix(x)) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
