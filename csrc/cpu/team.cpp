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

// Spins until `ready` holds or the time is up, with `idle` between two looks; says whether it
// holds.
template <class Ready, class Idle>
bool spin_until(Ready&& ready, Idle&& idle) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      idle();
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

// Bytes of the next job's part that a waiting thread fetches: a quarter of a second-level cache of
// 1 MiB, and what a tail of 10 us has time for.
constexpr int64_t kFetchBytes = int64_t{256} << 10;

// What a thread has fetched of what comes next.
struct Fetched {
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
};

class Team {
 public:
  void run(int64_t n_threads, int64_t n_items, Work work, void* context) {
    if (n_workers_ < n_threads - 1 && !refused_) grow(n_threads - 1);
    const int64_t members = std::min({n_threads, n_workers_ + 1, kMostMembers});
    // a range counts in units, so that any number of items fits it
    const int64_t unit = (n_items + kMostUnits - 1) / kMostUnits;
    const int64_t n_units = (n_items + unit - 1) / unit;
    // no thread looks at these while every range is empty, and none is opened by an old exchange:
    // a range changes only while its job's number stands in it
    items_.store(n_items, std::memory_order_relaxed);
    unit_.store(unit, std::memory_order_relaxed);
    work_.store(work, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    members_.store(members, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    job_ = (job_ + 1) & kJobMask;
    for (int64_t t = 0; t < members; ++t) {
      const auto begin = static_cast<uint64_t>(n_units * t / members);
      const auto end = static_cast<uint64_t>(n_units * (t + 1) / members);
      ranges_[t].word.store(job_ << 40 | begin << 20 | end, std::memory_order_release);
    }
    started_.advance();
    take_items(0);
    wait_done(n_items);
    if (failed_.load(std::memory_order_relaxed)) {
      std::rethrow_exception(std::exchange(error_, nullptr));
    }
  }

  // Workers that the system refused are asked for again.
  void ask_again() { refused_ = false; }

  void expect(const uint8_t* data, int64_t item_bytes, int64_t n_items) {
    next_data_.store(data, std::memory_order_relaxed);
    next_item_bytes_.store(item_bytes, std::memory_order_relaxed);
    next_items_.store(n_items, std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kMostUnits = (int64_t{1} << 20) - 1;
  static constexpr uint64_t kJobMask = (uint64_t{1} << 24) - 1;
  static constexpr int64_t kMostMembers = 256;

  // Units [begin, end) that are left of a thread's part: job << 40 | begin << 20 | end.
  struct alignas(64) Range {
    std::atomic<uint64_t> word{0};
  };

  // Every thread goes through a part of its own from the front, so that it reads memory in one
  // stream, and then takes from the backs of the others.
  void take_items(int64_t thread) {
    int64_t done = 0;
    while (take(thread, thread, &done)) {
    }
    report(done);
    for (int64_t i = 1;; ++i) {
      const int64_t members = members_.load(std::memory_order_relaxed);
      if (i >= members || thread >= members) return;
      done = 0;
      while (take((thread + i) % members, thread, &done)) {
      }
      report(done);
    }
  }

  // Does units of a part as member `thread`; false where none is left.
  bool take(int64_t part, int64_t thread, int64_t* done) {
    uint64_t word = ranges_[part].word.load(std::memory_order_acquire);
    int64_t begin, end, first, last;
    uint64_t rest;
    do {
      begin = static_cast<int64_t>(word >> 20) & kMostUnits;
      end = static_cast<int64_t>(word) & kMostUnits;
      // read behind the word: a member of an earlier job may be none of this one
      if (begin >= end || thread >= members_.load(std::memory_order_relaxed)) return false;
      // few claims at first, single units at the end
      const int64_t n = std::max<int64_t>(1, (end - begin) / 8);
      first = part == thread ? begin : end - n, last = first + n;
      const uint64_t job = word >> 40 << 40;
      rest = part == thread
                 ? job | static_cast<uint64_t>(last) << 20 | static_cast<uint64_t>(end)
                 : job | static_cast<uint64_t>(begin) << 20 | static_cast<uint64_t>(first);
    } while (!ranges_[part].word.compare_exchange_weak(word, rest, std::memory_order_acq_rel,
                                                       std::memory_order_acquire));
    // the job cannot end before these items are done, so what is read here is still its own
    const int64_t unit = unit_.load(std::memory_order_relaxed);
    const int64_t stop = std::min(last * unit, items_.load(std::memory_order_relaxed));
    do_items(first * unit, stop, thread);
    *done += stop - first * unit;
    return true;
  }

  void report(int64_t done) {
    if (done == 0) return;
    // read ahead of the count: once all are done the number may be another job's
    const int64_t items = items_.load(std::memory_order_relaxed);
    if (done_.fetch_add(done, std::memory_order_acq_rel) + done == items) finished_.advance();
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

  // Something useful while there is nothing to do: a few lines of what this thread reads next.
  void idle(int64_t thread, Fetched* fetched) {
    const uint8_t* data = next_data_.load(std::memory_order_relaxed);
    if (data != fetched->data) *fetched = {data, 0};
    if (data == nullptr || fetched->bytes >= kFetchBytes) return relax();
    // members and numbers of a job that begins meanwhile give a wrong place: no harm, only no use
    const int64_t members = members_.load(std::memory_order_relaxed);
    const int64_t n_items = next_items_.load(std::memory_order_relaxed);
    const int64_t item_bytes = next_item_bytes_.load(std::memory_order_relaxed);
    const int64_t begin = n_items * thread / members * item_bytes;
    const int64_t end = n_items * (thread + 1) / members * item_bytes;
    if (begin + fetched->bytes >= end) return relax();
    for (int64_t line = 0; line < 4; ++line) {
      __builtin_prefetch(data + begin + fetched->bytes + line * 64, 0, 2);
    }
    fetched->bytes += 256;
  }

  void wait_done(int64_t n_items) {
    const auto ready = [&] { return done_.load(std::memory_order_acquire) == n_items; };
    while (!spin_until(ready, [&] { idle(0, &fetched_); })) {
      const uint32_t seen = finished_.now();
      if (ready()) return;
      finished_.sleep(seen);
    }
  }

  void serve(int64_t thread) {
    uint32_t seen = 0;
    Fetched fetched;
    for (;;) {
      const auto ready = [&] { return started_.now() != seen; };
      if (!spin_until(ready, [&] { idle(thread, &fetched); })) started_.sleep(seen);
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

  Range ranges_[kMostMembers];
  alignas(64) std::atomic<int64_t> done_{0};
  alignas(64) std::atomic<Work> work_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int64_t> items_{0};
  std::atomic<int64_t> unit_{1};
  std::atomic<int64_t> members_{1};
  std::atomic<const uint8_t*> next_data_{nullptr};
  std::atomic<int64_t> next_item_bytes_{0};
  std::atomic<int64_t> next_items_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // of the thread that set failed_
  alignas(64) Epoch started_;
  alignas(64) Epoch finished_;
  int64_t n_workers_ = 0;
  bool refused_ = false;
  uint64_t job_ = 0;
  Fetched fetched_;  // of the caller
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

void expect_reads(const uint8_t* data, int64_t item_bytes, int64_t n_items) {
  if (team != nullptr) team->expect(data, item_bytes, n_items);
}

TeamLock::TeamLock() {
  enter();
  if (team != nullptr) team->ask_again();
}

TeamLock::~TeamLock() { leave(); }

}  // namespace dynkern
