// Runs every function of csrc/cpu that allocates while one allocation after the other fails, and
// checks that it says so, and that the next call gives what it gave without. Linked to the library:
// its allocations come here.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>

#include "small_model.h"

namespace {

constexpr int64_t kNever = int64_t{1} << 60;
std::atomic<int64_t> until_failure{kNever};
std::atomic<bool> failed{false}, all_after{false};

// Whether this allocation fails: the one that the count runs out at, and those after it if so
// asked.
bool fails() {
  const int64_t left = until_failure.fetch_sub(1);
  if (left > 0 || (left < 0 && !all_after)) return false;
  failed = true;
  return true;
}

void* allocate(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  if (fails() || posix_memalign(&memory, alignment, bytes) != 0) return nullptr;
  return memory;
}

void* allocate_or_throw(size_t bytes, size_t alignment) {
  void* memory = allocate(bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

extern "C" void* aligned_alloc(size_t alignment, size_t bytes) noexcept {
  return allocate(bytes, alignment);
}
void* operator new(size_t bytes) { return allocate_or_throw(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return allocate_or_throw(bytes, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

using namespace dynkern;

int64_t n_failures = 0;

void check(bool good, const std::string& what) {
  if (good) return;
  std::fprintf(stderr, "failing_memory: %s\n", what.c_str());
  std::_Exit(1);
}

// call() with a failure further and further on, until it comes to its end without one.
void each_allocation(const std::string& name, bool rest_too, const std::function<void()>& start,
                     const std::function<int64_t()>& call) {
  for (int64_t n = 0;; ++n) {
    start();
    failed = false, all_after = rest_too;
    until_failure = n;
    const int64_t result = call();
    until_failure = kNever;
    check(result >= 0 || (result == kNoMemory && failed),
          name + ": got " + std::to_string(result) + " at allocation " + std::to_string(n));
    // a job does without workers, and without a team: a call may succeed all the same
    if (result == kNoMemory) ++n_failures;
    if (!failed) return;
  }
}

struct Case {
  const char* name;
  int64_t program, kv_fill, pick, measure;
  double temperature, penalty;
};

// Whatever the passes of a case leave behind, as bytes.
std::string outcome(const SmallBatch& batch) {
  std::string all;
  const auto add = [&](const auto& part) {
    all.append(reinterpret_cast<const char*>(part.data()), part.size() * sizeof(part[0]));
  };
  add(batch.hidden), add(batch.k), add(batch.v), add(batch.length), add(batch.out_token);
  add(batch.out_ran), add(batch.out_filled), add(batch.out_hidden), add(batch.token);
  return all;
}

void run_format(int64_t format, int64_t n_threads) {
  const Case cases[] = {
      {"planned", kPlanned, kNoFill, kGreedy, kTopProb, 0.0, 1.0},
      {"hidden", kPlanned, kNoFill, kHidden, kTopProb, 0.0, 1.0},
      {"bernoulli", kBernoulli, kDeferred, kSample, kTopProb, 0.8, 1.3},
      {"subset", kSubset, kCopy, kSample, kTopProb, 1.0, 1.0},
      {"margin", kConfidence, kProject, kGreedy, kMargin, 0.0, 1.0},
      {"cosine", kConfidence, kMask, kGreedy, kCosine, 0.0, 1.0},
  };
  SmallModel small(format);
  const Model& model = small.model;
  SmallBatch batch(model, n_threads);
  const auto nothing = [] {};
  for (const bool rest_too : {false, true}) {
    const auto weights = random_floats(small.random, 130 * 33, 1.0f);
    std::vector<uint8_t> packed(static_cast<size_t>(dynkern_cpu_packed_bytes(130, 33, format)));
    std::vector<float> scale(130), logits(SmallBatch::kSlots * SmallModel::kVocab);
    each_allocation("pack", rest_too, nothing, [&] {
      return dynkern_cpu_pack(weights.data(), kFloat32, 130, 33, 33, format, packed.data(),
                              scale.data(), n_threads);
    });
    each_allocation("prefill", rest_too, nothing,
                    [&] { return dynkern_cpu_prefill(&model, &batch.prefill); });
    each_allocation("head", rest_too, nothing, [&] {
      return dynkern_cpu_head(&model, batch.hidden.data(), SmallBatch::kSlots, n_threads,
                              logits.data(), nullptr, nullptr, nullptr, scale.data());
    });
    for (const Case& own : cases) {
      Decode& d = batch.decode;
      d.program = own.program, d.kv_fill = own.kv_fill, d.pick = own.pick;
      d.measure = own.measure, d.threshold = 0.5, d.budget = 2, d.temperature = own.temperature;
      d.repetition_penalty = own.penalty;
      const auto start = [&] { batch.start(); };
      each_allocation(own.name, rest_too, start, [&] { return dynkern_cpu_decode(&model, &d); });
      const std::string got = outcome(batch);
      SmallBatch plain(model, 1);
      check(dynkern_cpu_prefill(&model, &plain.prefill) == 0, "prefill");
      plain.start();
      Decode& p = plain.decode;
      p.program = d.program, p.kv_fill = d.kv_fill, p.pick = d.pick, p.measure = d.measure;
      p.threshold = d.threshold, p.budget = d.budget, p.temperature = d.temperature;
      p.repetition_penalty = d.repetition_penalty;
      check(dynkern_cpu_decode(&model, &p) > 0, own.name);
      check(got == outcome(plain), std::string(own.name) + ": differs after failures");
    }
    batch.start();
    batch.decode.program = kPlanned, batch.decode.kv_fill = kNoFill, batch.decode.pick = kGreedy;
    each_allocation("fixed", rest_too, nothing,
                    [&] { return dynkern_cpu_fixed(&model, &batch.decode); });
    batch.decode.kv_fill = kProject;
    each_allocation("fill", rest_too, nothing,
                    [&] { return dynkern_cpu_fill(&model, &batch.decode); });
  }
}

}  // namespace

// Usage: failing_memory FORMAT. What one format allocates is kept for the next, so each has a
// process of its own. Prints how many failures came out.
int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int64_t format = std::atoll(argv[1]);
  for (const int64_t n_threads : {3, 1}) run_format(format, n_threads);
  std::printf("%lld\n", static_cast<long long>(n_failures));
  std::fflush(stdout);
  std::_Exit(0);
}
