// Walks a grid on the CPU for kernel bodies written over csrc/cuda/shim.h: one thread at a time,
// blocks and the threads of a block in an order drawn from a seed.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "../../csrc/cuda/shim.h"

namespace dynkern {

inline std::vector<unsigned> shuffled(unsigned count, std::mt19937_64& random) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  for (unsigned left = count; left > 1; --left) {
    std::swap(order[left - 1], order[random() % left]);
  }
  return order;
}

// Calls body() once per thread of the grid; returns what its loads and stores were.
template <typename Body>
HostThread run_grid(Index3 grid, unsigned block_size, uint64_t seed, Body body) {
  std::mt19937_64 random(seed);
  host_thread = HostThread{};
  host_thread.size = Index3{block_size, 1, 1};
  for (const unsigned block : shuffled(grid.x * grid.y * grid.z, random)) {
    host_thread.block = Index3{block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    for (const unsigned thread : shuffled(block_size, random)) {
      host_thread.thread = Index3{thread, 0, 0};
      body();
    }
  }
  return host_thread;
}

}  // namespace dynkern
