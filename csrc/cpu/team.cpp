#include "team.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
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
    if (n_workers_ < n_threads - 1 && !refused_) grow(n_threads - 1);
    // closed before the fields change: a thread that came late must not match the old ticket
    // against the new job's number of items
    const uint64_t tag = ticket_.load(std::memory_order_relaxed) >> 32;
    ticket_.store(tag << 32 | kClosed, std::memory_order_relaxed);
    items_.store(static_cast<uint32_t>(n_items), std::memory_order_release);
    work_.store(work, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    members_.store(n_threads, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    ticket_.store((tag + 1) << 32, std::memory_order_release);
    started_.advance();
    take_items(0);
    wait_done(n_items);
    if (failed_.load(std::memory_order_relaxed)) {
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

  // Workers that the system refused are asked for again.
  void ask_again() { refused_ = false; }

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
      // read behind the ticket: a member of an earlier job may be none of this one
      const auto members = static_cast<uint32_t>(members_.load(std::memory_order_relaxed));
      if (thread >= members) return;
      // a quarter of an even share of what is left: few claims at first, single items at the end
      const uint32_t end = next + std::max<uint32_t>(1, (items - next) / (4 * members));
      if (!ticket_.compare_exchange_weak(ticket, tag << 32 | end, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
        continue;
      }
      // the job cannot end before these items are done, so what is read here is still its own
      do_items(next, end, thread);
      const int64_t before = done_.fetch_add(end - next, std::memory_order_acq_rel);
      if (before + (end - next) == items) finished_.advance();
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  // After a failure the rest of the job is passed over: it ends, and its caller learns why. The
  // exception is let go of here, ahead of the count of done items, so that the caller frees it.
  void do_items(int64_t begin, int64_t end, int64_t thread) {
    if (failed_.load(std::memory_order_relaxed)) return;
    try {
      work_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), begin, end,
                                            thread);
    } catch (...) {
      if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
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
      take_items(thread);
    }
  }

  // A job can do with fewer workers, so a refusal is no error.
  void grow(int64_t workers) {
    try {
      for (; n_workers_ < workers; ++n_workers_) {
        std::thread([this, thread = n_workers_ + 1] { serve(thread); }).detach();
      }
    } catch (const std::exception&) {
      refused_ = true;
    }
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<Work> work_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<uint32_t> items_{0};
  std::atomic<int64_t> members_{1};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // of the thread that set failed_
  alignas(64) Epoch started_;
  alignas(64) Epoch finished_;
  int64_t n_workers_ = 0;
  bool refused_ = false;
};

std::mutex team_mutex;
thread_local int64_t depth = 0;  // TeamLocks that this thread holds
// Never freed, since detached workers look at it until the process ends.
Team* team = nullptr;

void enter() {
  if (depth++ == 0) team_mutex.lock();
}

void leave() {
  if (--depth == 0) team_mutex.unlock();
}

// A fork waits for the pass under way: the child then finds the lock free and what it guards whole.
// Workers do not survive a fork, so the child gets a team of its own.
[[maybe_unused]] const int fork_is_watched = pthread_atfork(enter, leave, [] {
  team = nullptr;
  leave();
});

}  // namespace

void run_job(int64_t n_threads, int64_t n_items, Work work, void* context) {
  if (n_items <= 0) return;
  if (n_threads > 1 && n_items > 1 && team == nullptr) team = new (std::nothrow) Team;
  if (n_threads <= 1 || n_items == 1 || team == nullptr) {
    work(context, 0, n_items, 0);
  } else {
    team->run(n_threads, n_items, work, context);
  }
}

TeamLock::TeamLock() {
  enter();
  if (team != nullptr) team->ask_again();
}

TeamLock::~TeamLock() { leave(); }

}  // namespace dynkern
