#include "team.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#else
#include <condition_variable>
#endif

namespace dynkern {
namespace {

// Serial stretches inside a pass last a few microseconds, Python between two passes a hundred; a
// wake-up through the kernel costs tens. Spinning longer would take a neighbour's core for nothing.
constexpr auto kSpin = std::chrono::microseconds(150);

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#endif
}

// Spins until `ready` holds or the time is up; says whether it holds.
template <class Ready>
bool spin_until(Ready&& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return ready();
}

// A counter that threads can sleep on until it moves.
class Epoch {
 public:
  uint32_t now() const { return count_.load(std::memory_order_acquire); }

  void advance() {
    count_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&count_), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr,
            nullptr, 0);
#else
    std::lock_guard<std::mutex> guard(mutex_);
    moved_.notify_all();
#endif
  }

  // Sleeps while the counter still reads `seen`; may return early.
  void sleep(uint32_t seen) {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
#if defined(__linux__)
    // the kernel compares again, so an advance between the look and the sleep is not missed
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&count_), FUTEX_WAIT_PRIVATE, seen, nullptr,
            nullptr, 0);
#else
    std::unique_lock<std::mutex> guard(mutex_);
    moved_.wait(guard, [&] { return now() != seen; });
#endif
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  std::atomic<uint32_t> count_{0};
  std::atomic<uint32_t> sleepers_{0};
#if !defined(__linux__)
  std::mutex mutex_;
  std::condition_variable moved_;
#endif
};

class Team {
 public:
  static constexpr uint64_t kClosed = 0xffffffff;

  void run(int64_t n_threads, int64_t n_items, Work work, void* context) {
    grow(n_threads - 1);
    // closed before the fields change: a thread that came late must not match the old ticket
    // against the new job's number of items
    const uint64_t tag = ticket_.load(std::memory_order_relaxed) >> 32;
    ticket_.store(tag << 32 | kClosed, std::memory_order_relaxed);
    items_.store(static_cast<uint32_t>(n_items), std::memory_order_release);
    work_.store(work, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    members_.store(n_threads, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store((tag + 1) << 32, std::memory_order_release);
    started_.advance();
    take_items(0);
    wait_done(n_items);
  }

 private:
  // Takes items of the current job until none is left. A ticket holds the job's number and its next
  // item, so a thread that comes late fails the exchange instead of taking an item of a later job.
  void take_items(int64_t thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    const uint64_t tag = ticket >> 32;
    for (;;) {
      const auto next = static_cast<uint32_t>(ticket);
      const uint32_t items = items_.load(std::memory_order_acquire);
      if (ticket >> 32 != tag || next >= items) return;
      // a quarter of an even share of what is left: few claims at first, single items at the end
      const auto members = static_cast<uint32_t>(members_.load(std::memory_order_relaxed));
      const uint32_t end = next + std::max<uint32_t>(1, (items - next) / (4 * members));
      if (!ticket_.compare_exchange_weak(ticket, tag << 32 | end, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
        continue;
      }
      // the job cannot end before these items are done, so what is read here is still its own
      work_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), next, end,
                                            thread);
      const int64_t before = done_.fetch_add(end - next, std::memory_order_acq_rel);
      if (before + (end - next) == items) finished_.advance();
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  void wait_done(int64_t n_items) {
    const auto ready = [&] { return done_.load(std::memory_order_acquire) == n_items; };
    while (!spin_until(ready)) {
      const uint32_t seen = finished_.now();
      if (ready()) return;
      finished_.sleep(seen);
    }
  }

  void serve(int64_t thread) {
    uint32_t seen = 0;
    for (;;) {
      if (!spin_until([&] { return started_.now() != seen; })) started_.sleep(seen);
      seen = started_.now();
      if (thread < members_.load(std::memory_order_relaxed)) take_items(thread);
    }
  }

  void grow(int64_t workers) {
    while (n_workers_ < workers) {
      const int64_t thread = ++n_workers_;
      std::thread([this, thread] { serve(thread); }).detach();
    }
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<Work> work_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<uint32_t> items_{0};
  std::atomic<int64_t> members_{1};
  alignas(64) Epoch started_;
  alignas(64) Epoch finished_;
  int64_t n_workers_ = 0;
};

std::mutex team_mutex;
Team* team = nullptr;
pid_t team_owner = 0;

}  // namespace

void run_job(int64_t n_threads, int64_t n_items, Work work, void* context) {
  if (n_items <= 0) return;
  if (n_threads <= 1 || n_items == 1) {
    work(context, 0, n_items, 0);
  } else {
    team->run(n_threads, n_items, work, context);
  }
}

TeamLock::TeamLock() {
  team_mutex.lock();
  // workers do not survive a fork, and the child must not wait for them: it gets a team of its own.
  // No team is ever freed, since detached workers look at it until the process ends
  if (team == nullptr || team_owner != getpid()) {
    team = new Team;
    team_owner = getpid();
  }
}

TeamLock::~TeamLock() { team_mutex.unlock(); }

}  // namespace dynkern
