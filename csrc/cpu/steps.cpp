#include "steps.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pack.h"

namespace dynkern {
namespace {

// With fewer zeros than that, jumping over them costs more than reading on.
constexpr double kDense = 0.75;
// Beyond that many rows hardly a group is zero in all rows of a block, and looking is work.
constexpr int64_t kMostSparseRows = 64;

}  // namespace

Workspace& workspace() {
  static auto* work = new Workspace;  // workers may outlive static destructors
  return *work;
}

void Workspace::grow(int64_t n_threads) {
  while (static_cast<int64_t>(threads.size()) < n_threads) {
    threads.push_back(std::make_unique<Thread>());
  }
  tiles.resize(threads.size());
  bests.resize(threads.size());
}

void run_linear(const Kernels& kernel, Workspace& work, int64_t n_threads, const Linear& linear,
                const Input& x, int64_t m, const Output& output) {
  const bool is_plain = linear.plain.data != nullptr;
  for (int64_t t = 0; t < n_threads; ++t) {
    const int64_t rows = is_plain ? m + kStretchGroups : kTileBlocks * kMaxRows;
    work.tiles[t] = work.threads[t]->tile.need(rows * kPanel);
  }
  LinearJob job{};
  job.w = linear.w, job.format = linear.format, job.plain = linear.plain;
  job.x = x, job.m = m;
  job.first_panel = linear.first_panel;
  const int64_t n_panels = panel_count(linear.w->n) - linear.first_panel;
  // only where threads would have no panel at all: two threads that read halves of the same lines
  // take a third longer than one after the other
  job.splits = n_panels < n_threads && output.sink != Sink::kHead ? 4 : 1;
  job.active = linear.active;
  job.output = output;
  job.tiles = work.tiles.data(), job.best = work.bests.data();
  parallel_for(n_threads, n_panels * job.splits,
               [&](int64_t item, int64_t thread) { kernel.linear(job, item, thread); });
}

Output head_output(Workspace& work, int64_t n_threads, int64_t vocab, int64_t m, bool log_sum) {
  Output output{};
  output.sink = Sink::kHead;
  output.parts = work.parts.need(panel_count(vocab) * m);
  output.log_sum = log_sum;
  for (int64_t t = 0; t < n_threads; ++t) {
    work.bests[t] = work.threads[t]->best.need(m);
    std::fill_n(work.bests[t], m, -std::numeric_limits<float>::infinity());
  }
  return output;
}

Best best_of_panels(const HeadPart* parts, int64_t n_panels, int64_t m, int64_t j, bool log_sum) {
  parts += j;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  Best b{0, kLowest, kLowest, 0.0f};
  for (int64_t p = 0; p < n_panels; ++p) {
    const HeadPart& part = parts[p * m];
    if (part.top > b.top) {
      // a panel without a token is beaten by a later one, which then brings its own
      b.second = std::max(b.top, part.second);
      b.top = part.top, b.token = part.token;
    } else {
      b.second = std::max(b.second, part.top);
    }
  }
  if (log_sum) {
    double sum = 0.0;
    for (int64_t p = 0; p < n_panels; ++p) {
      sum += static_cast<double>(parts[p * m].sum) *
             std::exp(static_cast<double>(parts[p * m].top - b.top));
    }
    b.log_sum = b.top + static_cast<float>(std::log(sum));
  }
  return b;
}

Steps::Steps(const Model& model, int64_t n_threads)
    : model_(model),
      kernel_(kernels()),
      n_threads_(std::max<int64_t>(1, n_threads)),
      work_(workspace()) {
  work_.grow(n_threads_);
}

void Steps::reserve(int64_t n_rows) {
  h_ = work_.h.need(n_rows * model_.hidden);
  q_ = work_.q.need(n_rows * model_.hidden);
}

Input Steps::input_of(Buffer<uint8_t>& buffer, int64_t k, int64_t n) {
  const int64_t format = model_.format;
  const int64_t stride = round_up(group_count(format, k) * 4, 64);
  const int64_t n_blocks = format == kI8 ? round_up(k, kScaleBlock) / kScaleBlock : 0;
  return {buffer.need(n * stride), stride, work_.x_scale.need(n * n_blocks),
          work_.x_correction.need(n * n_blocks), n_blocks};
}

Input Steps::prepare(const float* source, int64_t ld, int64_t k, const int32_t* rows, int64_t n,
                     const Norm& norm) {
  const int64_t format = model_.format;
  if (format == kF32 && !norm.on && rows == nullptr) {
    // already what the linear reads
    auto* data = reinterpret_cast<uint8_t*>(const_cast<float*>(source));
    return {data, ld * 4, nullptr, nullptr, 0};
  }
  const Input x = input_of(work_.x, k, n);
  float* temp = work_.temp.need(n_threads_ * round_up(k, 16));
  each_row(n, [&](int64_t j, int64_t thread) {
    kernel_.to_input(source + (rows ? rows[j] : j) * ld, k, format, norm.on, norm.weight, norm.bias,
                     static_cast<float>(model_.norm_eps), temp + thread * round_up(k, 16), x, j);
  });
  return x;
}

void Steps::linear(const Matrix& w, const Input& x, int64_t m, const Output& output,
                   const Matrix* following, int64_t first_panel, const ActiveGroups* active) {
  if (following != nullptr) {
    expect_reads(following->data, panel_bytes(model_.format, following->k),
                 panel_count(following->n));
  }
  run_linear(kernel_, work_, n_threads_, {&w, model_.format, {}, first_panel, active}, x, m,
             output);
}

const ActiveGroups* Steps::find_active(const Input& x, int64_t k, int64_t m) {
  if (m > kMostSparseRows) return nullptr;
  const int64_t format = model_.format, n_groups = group_count(format, k);
  const int64_t n_blocks = divide_up(n_groups, block_groups(format)) + 1;
  const int64_t n_row_blocks = row_block_count(m);
  // 32 more: vectors are stored whole, and lists are padded
  uint32_t* groups = work_.groups.need(n_row_blocks * (n_groups + 32));
  uint32_t* offsets = work_.offsets.need(n_row_blocks * n_blocks);
  work_.active.assign(static_cast<size_t>(n_row_blocks), ActiveGroups{nullptr, nullptr});
  each_row(n_row_blocks, [&](int64_t block, int64_t) {
    uint32_t* own = groups + block * (n_groups + 32);
    uint32_t* own_offsets = offsets + block * n_blocks;
    const int64_t found = kernel_.active_groups(x, format, k, row_block_begin(m, block),
                                                row_block_begin(m, block + 1), own, own_offsets);
    if (static_cast<double>(found) < kDense * static_cast<double>(n_groups)) {
      work_.active[static_cast<size_t>(block)] = {own, own_offsets};
    }
  });
  return work_.active.data();
}

void Steps::embed(const int64_t* ids, const int64_t* positions, const int32_t* rows, int64_t n) {
  const int64_t d = model_.hidden, e = model_.embed;
  const bool projected = model_.project_in.data != nullptr;
  float* tokens = projected ? work_.embedded.need(n * e) : nullptr;
  each_row(n, [&](int64_t j, int64_t) {
    float* to = projected ? tokens + j * e : h_ + rows[j] * d;
    unpack_row(model_.token, model_.format, ids[j], to);
  });
  if (projected) {
    each_row(n, [&](int64_t j, int64_t) { std::fill_n(h_ + rows[j] * d, d, 0.0f); });
    for (int64_t first = 0; first < n; first += kChunk) {
      const int64_t m = std::min(kChunk, n - first);
      const Input x = prepare(tokens + first * e, e, e, nullptr, m, {});
      Output output{};
      output.sink = Sink::kAddRows;
      output.out = h_, output.ld = d, output.rows = rows + first;
      linear(model_.project_in, x, m, output, nullptr);
    }
  }
  each_row(n, [&](int64_t j, int64_t) {
    const float* position = model_.position + (positions[j] + model_.position_offset) * d;
    float* row = h_ + rows[j] * d;
    for (int64_t c = 0; c < d; ++c) row[c] += position[c];
  });
}

void Steps::kv(const Layer& layer, const float* source, const int32_t* rows, int64_t n,
               const Place* places, int64_t head_stride, bool with_q) {
  const int64_t d = model_.hidden;
  const Norm norm{model_.pre_norm != 0, layer.attn_norm_weight, layer.attn_norm_bias};
  work_.k_row.resize(static_cast<size_t>(n));
  work_.v_row.resize(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) {
    work_.k_row[static_cast<size_t>(j)] = places[j].k;
    work_.v_row[static_cast<size_t>(j)] = places[j].v;
  }
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t m = std::min(kChunk, n - first);
    const float* from = source ? source + first * d : h_;
    const Input x = prepare(from, d, d, source ? nullptr : rows + first, m, norm);
    Output output{};
    output.sink = Sink::kQkv;
    output.out = q_ + first * d, output.ld = d;
    output.hidden = d, output.head_size = model_.head_size, output.kv_dtype = model_.kv_dtype;
    output.k_row = work_.k_row.data() + first, output.v_row = work_.v_row.data() + first;
    output.head_stride = head_stride;
    linear(layer.qkv, x, m, output, with_q ? &layer.out : nullptr, with_q ? 0 : panel_count(d));
  }
}

void Steps::project_qkv(const Layer& layer, const int32_t* rows, int64_t n, const Place* places,
                        int64_t head_stride) {
  kv(layer, nullptr, rows, n, places, head_stride, true);
}

void Steps::project_kv(const Layer& layer, const float* source, const int32_t* rows, int64_t n,
                       const Place* places, int64_t head_stride) {
  kv(layer, source, rows, n, places, head_stride, false);
}

void Steps::attend(const Place* first, const int32_t* length, int64_t n, int64_t head_stride) {
  work_.k_row.resize(static_cast<size_t>(n));
  work_.v_row.resize(static_cast<size_t>(n));
  int64_t longest = 0;
  for (int64_t j = 0; j < n; ++j) {
    work_.k_row[static_cast<size_t>(j)] = first[j].k;
    work_.v_row[static_cast<size_t>(j)] = first[j].v;
    longest = std::max<int64_t>(longest, length[j]);
  }
  const DecodeAttention job{q_,
                            q_,
                            model_.hidden,
                            model_.head_size,
                            model_.kv_dtype,
                            work_.k_row.data(),
                            work_.v_row.data(),
                            head_stride,
                            model_.head_size,
                            length,
                            static_cast<float>(model_.attention_scale)};
  for (int64_t t = 0; t < n_threads_; ++t) work_.threads[t]->scratch.need(round_up(longest, 64));
  parallel_for(n_threads_, n * model_.num_heads, [&](int64_t item, int64_t thread) {
    kernel_.decode_attention(job, item / model_.num_heads, item % model_.num_heads,
                             work_.threads[thread]->scratch.data());
  });
}

void Steps::norm_rows(const int32_t* rows, int64_t n, const float* weight, const float* bias) {
  const int64_t d = model_.hidden;
  each_row(n, [&](int64_t j, int64_t) {
    float* row = h_ + rows[j] * d;
    kernel_.layer_norm(row, d, weight, bias, static_cast<float>(model_.norm_eps), row);
  });
}

void Steps::finish_layer(const Layer& layer, const int32_t* rows, int64_t n,
                         const Matrix* following) {
  const int64_t d = model_.hidden, f = model_.ffn;
  const bool pre = model_.pre_norm != 0;
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t m = std::min(kChunk, n - first);
    const int32_t* own = rows + first;
    Output add{};
    add.sink = Sink::kAddRows;
    add.out = h_, add.ld = d, add.rows = own;
    linear(layer.out, prepare(q_ + first * d, d, d, nullptr, m, {}), m, add, &layer.fc1);
    if (!pre) norm_rows(own, m, layer.attn_norm_weight, layer.attn_norm_bias);

    const Norm norm{pre, layer.ffn_norm_weight, layer.ffn_norm_bias};
    Output inner{};
    inner.activation = model_.activation;
    if (model_.format == kBF16) {
      inner.sink = Sink::kInput;
      inner.input = input_of(work_.inner_x, f, m);
    } else {
      inner.sink = Sink::kStore;
      inner.out = work_.inner.need(m * f), inner.ld = f;
    }
    linear(layer.fc1, prepare(h_, d, d, own, m, norm), m, inner, &layer.fc2);

    const Input x = model_.format == kBF16 ? inner.input : prepare(inner.out, f, f, nullptr, m, {});
    const bool sparse = model_.activation == kRelu;
    linear(layer.fc2, x, m, add, following, 0, sparse ? find_active(x, f, m) : nullptr);
    if (!pre) norm_rows(own, m, layer.ffn_norm_weight, layer.ffn_norm_bias);
  }
}

void Steps::final_hidden(const int32_t* rows, int64_t n, float* out) {
  const int64_t d = model_.hidden, e = model_.embed;
  const bool projected = model_.project_out.data != nullptr;
  float* normed = projected ? work_.embedded.need(n * d) : out;
  each_row(n, [&](int64_t j, int64_t) {
    const float* row = h_ + rows[j] * d;
    if (model_.final_norm) {
      kernel_.layer_norm(row, d, model_.final_norm_weight, model_.final_norm_bias,
                         static_cast<float>(model_.norm_eps), normed + j * d);
    } else {
      std::copy_n(row, d, normed + j * d);
    }
  });
  if (!projected) return;
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t m = std::min(kChunk, n - first);
    Output output{};
    output.sink = Sink::kStore;
    output.out = out + first * e, output.ld = e;
    linear(model_.project_out, prepare(normed + first * d, d, d, nullptr, m, {}), m, output,
           &model_.head);
  }
}

void Steps::run_head(const float* hidden, int64_t n, Output output) {
  const int64_t e = model_.embed;
  linear(model_.head, prepare(hidden, e, e, nullptr, n, {}), n, output, &model_.layers[0].qkv);
}

void Steps::logits(const float* hidden, int64_t n, float* out) {
  for (int64_t first = 0; first < n; first += kChunk) {
    Output output{};
    output.sink = Sink::kStore;
    output.out = out + first * model_.vocab, output.ld = model_.vocab;
    run_head(hidden + first * model_.embed, std::min(kChunk, n - first), output);
  }
}

void Steps::head(const float* hidden, int64_t n, bool log_sum, Best* best) {
  const int64_t n_panels = panel_count(model_.vocab);
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t m = std::min(kChunk, n - first);
    const Output output = head_output(work_, n_threads_, model_.vocab, m, log_sum);
    run_head(hidden + first * model_.embed, m, output);
    each_row(m, [&](int64_t j, int64_t) {
      best[first + j] = best_of_panels(output.parts, n_panels, m, j, log_sum);
    });
  }
}

}  // namespace dynkern
