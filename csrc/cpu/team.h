// A persistent team of threads that shares out the items of one job after the other.
//
// A job is over when its items are done, not when every thread has come by: a thread that the
// system has taken off its core delays nobody unless it holds an item. Waiting is a bounded spin,
// then sleep, so that neither a busy neighbour nor an idle program pays for it.
#pragma once

#include <cstdint>

namespace dynkern {

// Does items [begin, end) of a job as member `thread` of the team (0 is the caller).
using Work = void (*)(void* context, int64_t begin, int64_t end, int64_t thread);

// Runs items [0, n_items) on the caller and up to n_threads - 1 workers;
// returns when all are done. Allocates nothing that it cannot do without. Where an item throws, the
// rest may be left out, and the first exception is thrown here once no thread is at the job.
// Calls must not overlap: hold TeamLock. Items must not start jobs.
void run_job(int64_t n_threads, int64_t n_items, Work work, void* context);

// run_job with a callable: function(item, thread).
template <class Function>
void parallel_for(int64_t n_threads, int64_t n_items, Function&& function) {
  run_job(
      n_threads, n_items,
      [](void* context, int64_t begin, int64_t end, int64_t thread) {
        auto& call = *static_cast<Function*>(context);
        for (int64_t item = begin; item < end; ++item) call(item, thread);
      },
      const_cast<void*>(static_cast<const void*>(&function)));
}

// What the next large job will read: n_items pieces of item_bytes each, one after the other and
// shared out as run_job shares items. Threads that wait fetch the start of their part.
void expect_reads(const uint8_t* data, int64_t item_bytes, int64_t n_items);

// One thread uses the team at a time, others wait; the one that holds it may take it again. A fork
// waits, too.
class TeamLock {
 public:
  TeamLock();
  ~TeamLock();
  TeamLock(const TeamLock&) = delete;
  TeamLock& operator=(const TeamLock&) = delete;
};

}  // namespace dynkern
