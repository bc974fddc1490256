// The steps that prefill and decode passes are made of, each over any set of rows, each shared out
// among the team.
#pragma once

#include <memory>
#include <vector>

#include "kernels.h"
#include "team.h"
#include "workspace.h"

namespace dynkern {

// A row's place for the K and V of one token: entry of head 0.
struct Place {
  uint8_t* k;
  uint8_t* v;
};

// What the head says of a row.
struct Best {
  int64_t token;
  float top;  // logits
  float second;
  float log_sum;  // only where asked for
};

struct Workspace {
  Buffer<float> h, q, inner, temp, embedded, logits, before;
  Buffer<uint8_t> x, inner_x;
  Buffer<float> x_scale;
  Buffer<int32_t> x_correction;
  Buffer<uint32_t> groups, offsets;
  Buffer<HeadPart> parts;
  std::vector<ActiveGroups> active;
  std::vector<uint8_t*> k_row, v_row;
  std::vector<int32_t> rows, length;
  struct Thread {
    Buffer<float> tile, best, scratch;
    Buffer<int32_t> index;
  };
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<float*> tiles, bests;

  // Room for so many threads.
  void grow(int64_t n_threads);
};

// The one workspace; hold the TeamLock.
Workspace& workspace();

// A linear over w, packed in `format` or plain, shared out among the team. x: m rows.
struct Linear {
  const Matrix* w;
  int64_t format;
  PlainWeights plain;
  int64_t first_panel;
  const ActiveGroups* active;
};
void run_linear(const Kernels& kernel, Workspace& work, int64_t n_threads, const Linear& linear,
                const Input& x, int64_t m, const Output& output);

// Rows that a linear takes at once: more, and their input leaves the caches.
constexpr int64_t kChunkRows = 512;

// Output of a head over m rows: room for the best entries of every panel. The thread's best so far
// starts at -inf.
Output head_output(Workspace& work, int64_t n_threads, int64_t vocab, int64_t m, bool log_sum);
// What the panels of a head found for row j of m.
Best best_of_panels(const HeadPart* parts, int64_t n_panels, int64_t m, int64_t j, bool log_sum);

class Steps {
 public:
  static constexpr int64_t kChunk = kChunkRows;

  Steps(const Model& model, int64_t n_threads);

  // h[rows[j]] = embeddings of ids[j] at positions[j] (index in the row)
  void embed(const int64_t* ids, const int64_t* positions, const int32_t* rows, int64_t n);
  // q of the rows into q(), k and v to their places; x is h through the layer's own norm.
  void project_qkv(const Layer& layer, const int32_t* rows, int64_t n, const Place* places,
                   int64_t head_stride);
  // Only k and v; source: n rows of [hidden], or null for h[rows].
  void project_kv(const Layer& layer, const float* source, const int32_t* rows, int64_t n,
                  const Place* places, int64_t head_stride);
  // Attention of q() over the cache; q() becomes its output.
  void attend(const Place* first, const int32_t* length, int64_t n, int64_t head_stride);
  // Output projection of q(), then the feed-forward part, both added to h[rows]. following: what is
  // read after that, or null.
  void finish_layer(const Layer& layer, const int32_t* rows, int64_t n, const Matrix* following);
  // Final hidden states [n, embed] as the head reads them.
  void final_hidden(const int32_t* rows, int64_t n, float* out);
  // hidden [n, embed] to its best tokens, or to logits [n, vocab].
  void head(const float* hidden, int64_t n, bool log_sum, Best* best);
  void logits(const float* hidden, int64_t n, float* out);

  float* h() { return h_; }
  float* q() { return q_; }
  const Model& model() const { return model_; }
  const Kernels& kernel() const { return kernel_; }
  int64_t n_threads() const { return n_threads_; }
  Workspace& work() { return work_; }
  // Room for n rows of h, and for as many of q.
  void reserve(int64_t n_rows);
  // function(j, thread) for j < n: shared out where there is enough of it.
  template <class Function>
  void each_row(int64_t n, Function&& function) {
    // a row takes less than sharing it out would
    const int64_t threads = n > 4 ? n_threads_ : 1;
    parallel_for(threads, n, std::forward<Function>(function));
  }

 private:
  struct Norm {
    bool on;
    const float* weight;
    const float* bias;
  };
  // Room for n rows of k inputs.
  Input input_of(Buffer<uint8_t>& buffer, int64_t k, int64_t n);
  // Rows source[rows ? rows[j] : j] (ld floats apart), first to first + n, as input of a linear.
  Input prepare(const float* source, int64_t ld, int64_t k, const int32_t* rows, int64_t n,
                const Norm& norm);
  void linear(const Matrix& w, const Input& x, int64_t m, const Output& output,
              const Matrix* following, int64_t first_panel = 0,
              const ActiveGroups* active = nullptr);
  const ActiveGroups* find_active(const Input& x, int64_t k, int64_t m);
  void kv(const Layer& layer, const float* source, const int32_t* rows, int64_t n,
          const Place* places, int64_t head_stride, bool with_q);
  void norm_rows(const int32_t* rows, int64_t n, const float* weight, const float* bias);
  void run_head(const float* hidden, int64_t n, Output output);

  const Model& model_;
  const Kernels& kernel_;
  const int64_t n_threads_;
  Workspace& work_;
  float* h_ = nullptr;
  float* q_ = nullptr;
};

}  // namespace dynkern
