// The few names that device code takes from CUDA, so that g++ compiles and runs the same kernel
// bodies on a CPU (tests/csrc/host_grid.h walks the grid there). Lanes of a warp can exchange
// values; no barriers, no shared memory.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define DYNKERN_DEVICE __device__ __forceinline__
#define DYNKERN_UNROLL _Pragma("unroll")
#define DYNKERN_UNROLL_TWICE _Pragma("unroll 2")

namespace dynkern {

using Piece16 = uint4;

DYNKERN_DEVICE uint3 block_index() { return blockIdx; }
DYNKERN_DEVICE uint3 thread_index() { return threadIdx; }
DYNKERN_DEVICE dim3 block_size() { return blockDim; }

template <typename T>
DYNKERN_DEVICE T load(const uint8_t* at) {
  return *reinterpret_cast<const T*>(at);
}

template <typename T>
DYNKERN_DEVICE void store(uint8_t* at, T value) {
  *reinterpret_cast<T*>(at) = value;
}

// Lane ^ mask's value; all lanes of the warp must take part.
DYNKERN_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

template <typename To, typename From>
DYNKERN_DEVICE void copy_bits(To* to, const From* from) {
  static_assert(sizeof(To) <= sizeof(From));
  memcpy(to, from, sizeof(To));
}

}  // namespace dynkern

#else

#include <cmath>
#include <cstring>
#include <type_traits>

#define DYNKERN_DEVICE inline
#define DYNKERN_UNROLL
#define DYNKERN_UNROLL_TWICE

namespace dynkern {

struct alignas(16) Piece16 {
  uint64_t low, high;
};

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

// Where the one simulated thread stands, and what its accesses were.
struct HostThread {
  Index3 block, thread, size;
  int64_t accesses = 0;
  int64_t misaligned = 0;  // a fault on a GPU
  int64_t bytes = 0;
  // set where threads may exchange values: gives a value away and waits for the other one
  float (*exchange)(float value, int mask) = nullptr;
};

inline thread_local HostThread host_thread;

inline float shuffle_xor(float value, int mask) { return host_thread.exchange(value, mask); }

template <typename To, typename From>
void copy_bits(To* to, const From* from) {
  static_assert(sizeof(To) <= sizeof(From));
  std::memcpy(to, from, sizeof(To));
}

inline Index3 block_index() { return host_thread.block; }
inline Index3 thread_index() { return host_thread.thread; }
inline Index3 block_size() { return host_thread.size; }

template <typename T>
void count_access(const uint8_t* at) {
  ++host_thread.accesses;
  host_thread.misaligned += reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0;
  host_thread.bytes += sizeof(T);
}

template <typename T>
T load(const uint8_t* at) {
  count_access<T>(at);
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <typename T>
void store(uint8_t* at, T value) {
  count_access<T>(at);
  std::memcpy(at, &value, sizeof(T));
}

}  // namespace dynkern

#endif
