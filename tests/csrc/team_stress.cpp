// Drives csrc/cpu/team.cpp hard and checks what it promises; exits with 1 and a line where it does
// not. Usage: team_stress SECTION SEED. Included, not linked: with DYNKERN_PAUSES every atomic
// operation of the team may take its thread off the core first, which is how late threads are had.
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using Random = std::mt19937_64;

void sleep_us(int64_t us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

void spin_us(int64_t us) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(us);
  while (std::chrono::steady_clock::now() < end) continue;
}

#if defined(DYNKERN_PAUSES)
std::atomic<uint64_t> streams{1};

void maybe_pause() {
  static thread_local Random random(streams.fetch_add(1));
  const uint64_t drawn = random();
  if (drawn % 16 == 0) std::this_thread::yield();
  if (drawn % 1024 == 1) sleep_us(static_cast<int64_t>(drawn >> 32) % 200);
}

// What the team uses of std::atomic, with a pause ahead of everything.
template <class T>
class PausedAtomic {
 public:
  constexpr PausedAtomic(T value) : value_(value) {}
  T load(std::memory_order order) const { return maybe_pause(), value_.load(order); }
  void store(T value, std::memory_order order) { maybe_pause(), value_.store(value, order); }
  T exchange(T value, std::memory_order order) {
    return maybe_pause(), value_.exchange(value, order);
  }
  T fetch_add(T value, std::memory_order order) {
    return maybe_pause(), value_.fetch_add(value, order);
  }
  T fetch_sub(T value, std::memory_order order) {
    return maybe_pause(), value_.fetch_sub(value, order);
  }
  bool compare_exchange_weak(T& seen, T value, std::memory_order good, std::memory_order bad) {
    return maybe_pause(), value_.compare_exchange_weak(seen, value, good, bad);
  }

 private:
  std::atomic<T> value_;
};
#endif

}  // namespace

#if defined(DYNKERN_PAUSES)
namespace std {
using ::PausedAtomic;
}
#define atomic PausedAtomic
#endif
#include "../../csrc/cpu/team.cpp"
#undef atomic

namespace {

using namespace dynkern;

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      std::fprintf(stderr, "team_stress.cpp:%d: not so: %s\n", __LINE__, #condition); \
      std::_Exit(1);                                                                  \
    }                                                                                 \
  } while (false)

constexpr int64_t kMostThreads = 9;  // more than most machines that run tests have cores
constexpr int64_t kMostItems = 300;

int64_t draw(Random& random, int64_t first, int64_t last) {
  return std::uniform_int_distribution<int64_t>(first, last)(random);
}

// What jobs leave behind. Plain numbers: two threads at one item, or under one member's number at
// a time, are a race that ThreadSanitizer sees.
struct Record {
  int64_t times[kMostItems] = {};
  struct alignas(64) Member {
    int64_t items = 0;
  } member[kMostThreads];
};

// One job, every item of it done once by a member that the job has.
template <class Between>
void checked_job(Record& record, int64_t n_threads, int64_t n_items, Between&& between) {
  std::fill_n(record.times, kMostItems, 0);
  for (auto& member : record.member) member.items = 0;
  parallel_for(n_threads, n_items, [&](int64_t item, int64_t thread) {
    CHECK(item >= 0 && item < n_items);
    CHECK(thread >= 0 && thread < std::max<int64_t>(n_threads, 1));
    between(item, thread);
    record.times[item] += 1;
    record.member[thread].items += 1;
  });
  int64_t items = 0;
  for (const auto& member : record.member) items += member.items;
  CHECK(items == n_items);
  for (int64_t i = 0; i < kMostItems; ++i) CHECK(record.times[i] == (i < n_items));
}

// The highest member that takes part in any of n jobs.
int64_t most_member(Record& record, int64_t n) {
  TeamLock lock;
  std::atomic<int64_t> most{0};
  for (int64_t i = 0; i < n; ++i) {
    checked_job(record, kMostThreads, kMostItems, [&](int64_t, int64_t thread) {
      spin_us(1);
      int64_t seen = most.load();
      while (seen < thread && !most.compare_exchange_weak(seen, thread)) continue;
    });
  }
  return most.load();
}

bool last_member_comes(Record& record) {
  for (int64_t i = 0; i < 4000; ++i) {
    if (most_member(record, 1) == kMostThreads - 1) return true;
  }
  return false;
}

const auto kNothing = [](int64_t, int64_t) {};

// Jobs of any size in any order, most of them over before a worker has woken up.
void jobs(Random& random, int64_t n) {
  Record record;
  TeamLock lock;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t most = draw(random, 0, 9) ? 12 : kMostItems;
    checked_job(record, draw(random, 0, kMostThreads), draw(random, 0, most), kNothing);
  }
}

// Workers are asleep when a job comes, or on their way there.
void gaps(Random& random, int64_t n) {
  const int64_t spin_ns = std::chrono::nanoseconds(kSpin).count();
  Record record;
  for (int64_t i = 0; i < n; ++i) {
    sleep_us(draw(random, spin_ns / 2, 3 * spin_ns) / 1000);
    TeamLock lock;
    // long enough for sleepers to take part, and some jobs to be waited for asleep
    const int64_t us = draw(random, 0, 60);
    checked_job(record, draw(random, 2, kMostThreads), draw(random, 2, 20),
                [&](int64_t, int64_t) { spin_us(us); });
  }
}

// Members take their time, and not the same ones from job to job.
void late(Random& random, int64_t n) {
  Record record;
  TeamLock lock;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t slow = random();
    checked_job(record, draw(random, 2, kMostThreads), draw(random, 1, 40),
                [&](int64_t item, int64_t thread) {
                  if (slow >> (thread + item) & slow >> (item + 20) & 1) sleep_us(20);
                });
  }
}

// Threads of the program share the team, each in locks within locks.
void users(Random& random, int64_t n) {
  int64_t inside = 0, entered = 0;
  std::vector<std::thread> all;
  for (int user = 0; user < 4; ++user) {
    all.emplace_back([&, seed = random()] {
      Random own(seed);
      Record record;
      for (int64_t i = 0; i < n; ++i) {
        TeamLock outer;
        CHECK(++inside == 1);
        for (int64_t j = draw(own, 1, 3); j > 0; --j) {
          TeamLock inner;
          checked_job(record, draw(own, 1, kMostThreads), draw(own, 1, 50), kNothing);
        }
        checked_job(record, draw(own, 1, kMostThreads), draw(own, 1, 50), kNothing);
        CHECK(--inside == 0);
        ++entered;
      }
    });
  }
  for (auto& user : all) user.join();
  CHECK(entered == 4 * n);
}

// Forks while another thread has the team at work; children, and their children, have jobs too.
void forks(Random& random, int64_t n) {
  std::atomic<bool> over{false};
  std::thread other([&, seed = random()] {
    Random own(seed);
    while (!over.load()) jobs(own, 20);
  });
  const auto child = [&](auto&& body) {
    const pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
      alarm(20);  // a child that waits for what it has not got ends here
      body();
      std::_Exit(0);
    }
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  };
  for (int64_t i = 0; i < n; ++i) {
    jobs(random, 5);
    child([&] {
      jobs(random, 50);
      child([&] { jobs(random, 50); });
      jobs(random, 50);
    });
    {
      TeamLock lock;  // a fork by the thread that holds the team
      Record record;
      child([&] {
        checked_job(record, 4, 30, kNothing);
        CHECK(last_member_comes(record));
      });
      checked_job(record, 4, 30, kNothing);
    }
  }
  over.store(true);
  other.join();
}

// Items throw: the job ends, one of the exceptions comes out, and the next job finds all in order.
void throws(Random& random, int64_t n) {
  Record record;
  TeamLock lock;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t n_threads = draw(random, 1, kMostThreads), n_items = draw(random, 1, 60);
    const int64_t every = draw(random, 1, 20), us = draw(random, 0, 1) * 5;
    std::vector<int64_t> times(static_cast<size_t>(n_items), 0);
    int64_t thrown = -1;
    try {
      parallel_for(n_threads, n_items, [&](int64_t item, int64_t) {
        times[static_cast<size_t>(item)] += 1;
        spin_us(us);
        if (item % every == 0) throw std::runtime_error(std::to_string(item));
      });
    } catch (const std::runtime_error& error) {
      thrown = std::stoll(error.what());
    }
    CHECK(thrown >= 0 && thrown < n_items && thrown % every == 0);
    CHECK(times[static_cast<size_t>(thrown)] == 1);
    for (const int64_t count : times) CHECK(count <= 1);
    checked_job(record, draw(random, 1, kMostThreads), draw(random, 1, 60), kNothing);
  }
}

// The system gives no memory for the stacks of workers: jobs run with those that there are.
void refused(Random& random, int64_t n) {
  Record record;
  rlimit before;
  CHECK(getrlimit(RLIMIT_AS, &before) == 0);
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit now{static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) + (1 << 20), before.rlim_max};
  CHECK(setrlimit(RLIMIT_AS, &now) == 0);
  CHECK(most_member(record, n) == 0);  // no stack is as small
  CHECK(setrlimit(RLIMIT_AS, &before) == 0);
  CHECK(last_member_comes(record));
  jobs(random, n);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string section = argv[1];
  Random random(std::stoull(argv[2]));
#if defined(DYNKERN_PAUSES)
  streams = random();
#endif
  // sanitizers and pauses cost a lot
#if defined(__SANITIZE_THREAD__) || defined(DYNKERN_PAUSES)
  constexpr int64_t kPart = 8;
#else
  constexpr int64_t kPart = 1;
#endif
  if (section == "jobs") {
    jobs(random, 200000 / kPart);
  } else if (section == "gaps") {
    gaps(random, 800 / kPart);
  } else if (section == "late") {
    late(random, 800 / kPart);
  } else if (section == "users") {
    users(random, 8000 / kPart);
  } else if (section == "forks") {
    forks(random, 40 / kPart);
  } else if (section == "throws") {
    throws(random, 20000 / kPart);
  } else if (section == "refused") {
    refused(random, 20);
  } else {
    return 2;
  }
  std::printf("%s done\n", section.c_str());
  std::fflush(stdout);
  std::_Exit(0);  // workers go on looking at the team until the process ends
}
