// Walks a grid on the CPU for kernel bodies whose warps exchange values: the 32 lanes of a warp are
// fibers of one thread, each run up to its next exchange, in an order drawn from a seed.
#pragma once

#include <ucontext.h>

#include <functional>

#include "host_grid.h"

namespace dynkern {

constexpr unsigned kLanes = 32;
constexpr size_t kFiberStack = 256 << 10;

class HostWarp {
 public:
  HostWarp() : stacks_(kLanes * kFiberStack) {}

  // Runs body() as all lanes of the warp whose first thread is `first`. False where some lanes
  // waited for an exchange that others had left out: undefined on a GPU.
  bool run(unsigned first, std::mt19937_64& random, const std::function<void()>& body) {
    current_ = this;
    body_ = &body;
    host_thread.exchange = [](float value, int mask) { return current_->exchange(value, mask); };
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      done_[lane] = false;
      getcontext(&lanes_[lane]);
      lanes_[lane].uc_stack.ss_sp = stacks_.data() + lane * kFiberStack;
      lanes_[lane].uc_stack.ss_size = kFiberStack;
      lanes_[lane].uc_link = &scheduler_;
      makecontext(&lanes_[lane], enter, 0);
    }
    for (round_ = 0;; ++round_) {
      unsigned finished = 0;
      for (const unsigned lane : shuffled(kLanes, random)) {
        lane_ = lane;
        host_thread.thread = Index3{first + lane, 0, 0};
        swapcontext(&scheduler_, &lanes_[lane]);
        finished += done_[lane];
      }
      if (finished == kLanes) return true;
      if (finished != 0) return false;
    }
  }

 private:
  static void enter() {
    (*current_->body_)();
    current_->done_[current_->lane_] = true;
  }

  float exchange(float value, int mask) {
    const unsigned lane = lane_;
    // two sets of values: a lane may give away its next one before another has read this one
    const unsigned set = round_ % 2;
    values_[set][lane] = value;
    swapcontext(&lanes_[lane], &scheduler_);
    return values_[set][lane ^ static_cast<unsigned>(mask)];
  }

  static inline thread_local HostWarp* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::vector<char> stacks_;
  ucontext_t scheduler_, lanes_[kLanes];
  float values_[2][kLanes];
  bool done_[kLanes];
  unsigned lane_ = 0, round_ = 0;
};

// As run_grid, for blocks of whole warps; `converged` says whether every warp's exchanges met.
inline HostThread run_warps(Index3 grid, unsigned block_size, uint64_t seed, bool* converged,
                            const std::function<void()>& body) {
  std::mt19937_64 random(seed);
  HostWarp warp;
  host_thread = HostThread{};
  host_thread.size = Index3{block_size, 1, 1};
  *converged = true;
  for (const unsigned block : shuffled(grid.x * grid.y * grid.z, random)) {
    host_thread.block = Index3{block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    for (const unsigned first : shuffled(block_size / kLanes, random)) {
      *converged = warp.run(first * kLanes, random, body) && *converged;
    }
  }
  return host_thread;
}

}  // namespace dynkern
