// The few names that device code takes from CUDA, so that g++ compiles and runs the same kernel
// bodies on a CPU (tests/csrc/host_grid.h walks the grid there). No barriers, no shared memory.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define DYNKERN_DEVICE __device__ __forceinline__

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

}  // namespace dynkern

#else

#include <cstring>

#define DYNKERN_DEVICE inline

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
};

inline thread_local HostThread host_thread;

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
