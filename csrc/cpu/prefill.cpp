// A pass over packed prompts.
#include <algorithm>
#include <vector>

#include "../common/abi.h"
#include "guard.h"
#include "steps.h"

namespace dynkern {
namespace {

// What a prompt of 512 tokens needs of OPT-125m is kept for the next one, more is given back.
constexpr int64_t kKeepBytes = int64_t{16} << 20;

class PrefillPass {
 public:
  PrefillPass(Steps& steps, const Prefill& args)
      : steps_(steps),
        args_(args),
        model_(steps.model()),
        tokens_(args.bounds[args.n_rows]),
        element_(element_bytes(model_.kv_dtype)) {}

  ~PrefillPass() {
    Workspace& work = steps_.work();
    for (Buffer<float>* buffer : {&work.h, &work.q, &work.inner, &work.embedded}) {
      buffer->trim(kKeepBytes);
    }
    for (auto& thread : work.threads) thread->scratch.trim(kKeepBytes);
  }

  void run() {
    steps_.reserve(tokens_);
    embed();
    for (int64_t l = 0; l < model_.num_layers; ++l) run_layer(l);
    std::vector<int32_t> last;
    for (int64_t r = 0; r < args_.n_rows; ++r) {
      last.push_back(static_cast<int32_t>(args_.bounds[r + 1] - 1));
    }
    steps_.final_hidden(last.data(), args_.n_rows, args_.hidden);
  }

 private:
  void embed() {
    std::vector<int64_t> positions;
    std::vector<int32_t> rows;
    for (int64_t r = 0; r < args_.n_rows; ++r) {
      for (int64_t t = args_.bounds[r]; t < args_.bounds[r + 1]; ++t) {
        positions.push_back(t - args_.bounds[r]);
        rows.push_back(static_cast<int32_t>(t));
      }
    }
    steps_.embed(args_.ids, positions.data(), rows.data(), tokens_);
  }

  uint8_t* entry(void* cache, int64_t layer, int64_t token) const {
    return static_cast<uint8_t*>(cache) + (layer * tokens_ + token) * model_.hidden * element_;
  }

  void run_layer(int64_t layer) {
    std::vector<int64_t> running, first;
    std::vector<int32_t> rows;
    std::vector<Place> places;
    for (int64_t r = 0; r < args_.n_rows; ++r) {
      if (args_.routes != nullptr && !args_.routes[r * model_.num_layers + layer]) continue;
      running.push_back(r);
      first.push_back(static_cast<int64_t>(rows.size()));
      for (int64_t t = args_.bounds[r]; t < args_.bounds[r + 1]; ++t) {
        rows.push_back(static_cast<int32_t>(t));
        places.push_back({entry(args_.keys, layer, t), entry(args_.values, layer, t)});
      }
    }
    if (rows.empty()) return;
    const Layer& weights = model_.layers[layer];
    const auto n = static_cast<int64_t>(rows.size());
    steps_.project_qkv(weights, rows.data(), n, places.data(), model_.head_size);
    attend(running, first, places);
    steps_.finish_layer(weights, rows.data(), n, nullptr);
  }

  void attend(const std::vector<int64_t>& running, const std::vector<int64_t>& first,
              const std::vector<Place>& places) {
    const Kernels& kernel = steps_.kernel();
    auto& threads = steps_.work().threads;
    const auto items = static_cast<int64_t>(running.size()) * model_.num_heads;
    parallel_for(steps_.n_threads(), items, [&](int64_t item, int64_t thread) {
      const auto i = static_cast<size_t>(item / model_.num_heads);
      const int64_t at = item % model_.num_heads * model_.head_size;
      const int64_t n = args_.bounds[running[i] + 1] - args_.bounds[running[i]];
      const Place& place = places[static_cast<size_t>(first[i])];
      float* scratch = threads[static_cast<size_t>(thread)]->scratch.need(
          kernel.prefill_scratch(n, model_.head_size));
      kernel.prefill_attention(steps_.q() + first[i] * model_.hidden + at, place.k + at * element_,
                               place.v + at * element_, model_.kv_dtype, n, model_.hidden,
                               model_.hidden, model_.hidden, model_.head_size,
                               static_cast<float>(model_.attention_scale), scratch);
    });
  }

  Steps& steps_;
  const Prefill& args_;
  const Model& model_;
  const int64_t tokens_;
  const int64_t element_;
};

}  // namespace
}  // namespace dynkern

// One pass over packed prompts; returns 0 or kNoMemory.
DYNKERN_EXPORT int64_t dynkern_cpu_prefill(const dynkern::Model* model,
                                           const dynkern::Prefill* args) {
  return dynkern::guarded([&] {
    dynkern::TeamLock lock;
    dynkern::Steps steps(*model, args->n_threads);
    dynkern::PrefillPass(steps, *args).run();
    return 0;
  });
}
