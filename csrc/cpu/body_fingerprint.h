// 64 bits over a block of memory: integer arithmetic, the same on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

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
