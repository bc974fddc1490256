#include "decode.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "../common/abi.h"
#include "guard.h"

namespace dynkern {
namespace {

double now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(since).count();
}

}  // namespace

DecodePass::DecodePass(Steps& steps, const Decode& args)
    : steps_(steps),
      args_(args),
      model_(steps.model()),
      cache_(model_, args),
      fill_(steps, args, cache_),
      gates_(steps, args),
      token_(static_cast<size_t>(args.n_slots), 0),
      settled_(static_cast<size_t>(args.n_slots), 0) {
  steps_.reserve(args.n_slots);
}

void DecodePass::find_alive() {
  alive_.clear();
  for (int64_t i = 0; i < args_.n_slots; ++i) {
    if (args_.alive[i]) alive_.push_back(static_cast<int32_t>(i));
  }
}

void DecodePass::embed() {
  std::vector<int64_t> ids(alive_.size()), positions(alive_.size());
  for (size_t j = 0; j < alive_.size(); ++j) {
    ids[j] = args_.token[alive_[j]];
    positions[j] = args_.position[alive_[j]];
  }
  steps_.embed(ids.data(), positions.data(), alive_.data(), static_cast<int64_t>(alive_.size()));
}

void DecodePass::run_layer(int64_t layer, const Rows& rows) {
  if (rows.empty()) return;
  fill_.before_layer(layer, rows);
  const auto n = static_cast<int64_t>(rows.size());
  std::vector<Place> first(rows.size()), next(rows.size());
  std::vector<int32_t> length(rows.size());
  for (size_t j = 0; j < rows.size(); ++j) {
    length[j] = cache_.length(layer, rows[j]) + 1;
    first[j] = cache_.place(layer, rows[j], 0);
    next[j] = cache_.place(layer, rows[j], length[j] - 1);
    ran_[layer * args_.n_slots + rows[j]] = 1;
  }
  const Layer& weights = model_.layers[layer];
  steps_.project_qkv(weights, rows.data(), n, next.data(), cache_.head_stride());
  steps_.attend(first.data(), length.data(), n, cache_.head_stride());
  steps_.finish_layer(weights, rows.data(), n, after(layer));
}

const Matrix* DecodePass::after(int64_t layer) const {
  for (int64_t l = layer + 1; l < model_.num_layers; ++l) {
    const uint8_t* route = args_.route + l * args_.n_slots;
    const auto runs = [&](int32_t row) { return route[row] != 0; };
    if (args_.program != kPlanned || std::any_of(alive_.begin(), alive_.end(), runs)) {
      return &model_.layers[l].qkv;
    }
  }
  return model_.project_out.data != nullptr ? &model_.project_out : &model_.head;
}

void DecodePass::visit(int64_t layer, const Rows& rows, const Rows& skipping) {
  fill_.skipped(layer, skipping);
  run_layer(layer, rows);
}

void DecodePass::run_planned() {
  Rows rows;
  for (int64_t l = 0; l < model_.num_layers; ++l) {
    rows.clear();
    for (const int32_t row : alive_) {
      if (args_.route[l * args_.n_slots + row]) rows.push_back(row);
    }
    run_layer(l, rows);
  }
}

void DecodePass::run_drawn() {
  const int64_t n_layers = model_.num_layers;
  std::vector<uint8_t> keep(alive_.size() * static_cast<size_t>(n_layers));
  std::vector<float> scratch(static_cast<size_t>(n_layers));
  for (size_t j = 0; j < alive_.size(); ++j) {
    steps_.kernel().draw_layers(args_, n_layers, alive_[j], scratch.data(),
                                keep.data() + j * static_cast<size_t>(n_layers));
  }
  Rows rows, skipping;
  for (int64_t l = 0; l < n_layers; ++l) {
    rows.clear();
    skipping.clear();
    for (size_t j = 0; j < alive_.size(); ++j) {
      const bool runs = keep[j * static_cast<size_t>(n_layers) + static_cast<size_t>(l)];
      (runs ? rows : skipping).push_back(alive_[j]);
    }
    visit(l, rows, skipping);
  }
}

void DecodePass::run_controller() {
  gates_.begin(alive_);
  std::vector<uint8_t> keep(alive_.size());
  Rows rows, skipping;
  for (int64_t l = 0; l < model_.num_layers; ++l) {
    gates_.decide(l, keep.data());
    rows.clear();
    skipping.clear();
    for (size_t j = 0; j < alive_.size(); ++j) (keep[j] ? rows : skipping).push_back(alive_[j]);
    visit(l, rows, skipping);
  }
}

void DecodePass::run_confidence() {
  const int64_t d = model_.hidden;
  Rows staying = alive_, left;
  for (int64_t l = 0; l < model_.num_layers; ++l) {
    const bool is_exit = args_.exits[l] != 0 && !staying.empty();
    std::vector<float> before;
    if (is_exit && args_.measure == kCosine) {
      before.resize(staying.size() * static_cast<size_t>(d));
      for (size_t j = 0; j < staying.size(); ++j) {
        std::copy_n(steps_.h() + staying[j] * d, d, before.data() + j * static_cast<size_t>(d));
      }
    }
    visit(l, staying, left);
    if (!is_exit) continue;
    const Rows going = leaving(staying, before);
    if (going.empty()) continue;
    Rows rest;
    std::set_difference(staying.begin(), staying.end(), going.begin(), going.end(),
                        std::back_inserter(rest));
    staying = std::move(rest);
    left.insert(left.end(), going.begin(), going.end());
    std::sort(left.begin(), left.end());
  }
}

Rows DecodePass::leaving(const Rows& rows, const std::vector<float>& before) {
  const auto n = static_cast<int64_t>(rows.size());
  const int64_t d = model_.hidden;
  Rows going;
  if (args_.measure == kCosine) {
    for (int64_t j = 0; j < n; ++j) {
      const float* a = before.data() + j * d;
      const float* b = steps_.h() + rows[static_cast<size_t>(j)] * d;
      const auto dot = steps_.kernel().dot;
      // norms have a floor as in torch.nn.functional.cosine_similarity
      const float size =
          std::max(std::sqrt(dot(a, a, d)), 1e-8f) * std::max(std::sqrt(dot(b, b, d)), 1e-8f);
      if (dot(a, b, d) / size >= static_cast<float>(args_.threshold)) {
        going.push_back(rows[static_cast<size_t>(j)]);
      }
    }
    return going;
  }
  float* hidden = steps_.work().before.need(n * model_.embed);
  std::vector<Best> best(rows.size());
  steps_.final_hidden(rows.data(), n, hidden);
  steps_.head(hidden, n, true, best.data());
  head_rows_ += n;
  for (size_t j = 0; j < rows.size(); ++j) {
    const float top = std::exp(best[j].top - best[j].log_sum);
    const float second = std::exp(best[j].second - best[j].log_sum);
    const float measured = args_.measure == kTopProb ? top : top - second;
    if (!(measured >= static_cast<float>(args_.threshold))) continue;
    going.push_back(rows[j]);
    if (args_.pick == kGreedy) {
      // the exit's head has seen the very hidden state that the final head would see
      token_[static_cast<size_t>(rows[j])] = best[j].token;
      settled_[static_cast<size_t>(rows[j])] = 1;
      --head_rows_;  // no extra one: the final head does without this row
    }
  }
  return going;
}

void DecodePass::pick(const Rows& rows) {
  const auto n = static_cast<int64_t>(rows.size());
  if (n == 0) return;
  float* hidden = steps_.work().before.need(n * model_.embed);
  steps_.final_hidden(rows.data(), n, hidden);
  if (args_.pick == kHidden) {
    for (int64_t j = 0; j < n; ++j) {
      std::copy_n(hidden + j * model_.embed, model_.embed,
                  args_.out_hidden + rows[static_cast<size_t>(j)] * model_.embed);
    }
  } else if (args_.pick == kGreedy) {
    std::vector<Best> best(rows.size());
    steps_.head(hidden, n, false, best.data());
    for (size_t j = 0; j < rows.size(); ++j) token_[static_cast<size_t>(rows[j])] = best[j].token;
  } else {
    const int64_t vocab = model_.vocab;
    float* logits = steps_.work().logits.need(n * vocab);
    steps_.logits(hidden, n, logits);
    const Kernels& kernel = steps_.kernel();
    auto& threads = steps_.work().threads;
    parallel_for(steps_.n_threads(), n, [&](int64_t j, int64_t thread) {
      Workspace::Thread& own = *threads[static_cast<size_t>(thread)];
      const int32_t row = rows[static_cast<size_t>(j)];
      token_[static_cast<size_t>(row)] = kernel.sample(
          args_, row, logits + j * vocab, vocab, own.scratch.need(kernel.sample_floats(vocab)),
          own.index.need(kernel.sample_indices(vocab)));
    });
  }
}

bool DecodePass::run(int64_t p) {
  const int64_t n_slots = args_.n_slots, n_layers = model_.num_layers;
  find_alive();
  if (alive_.empty()) return false;
  const double started = now();
  ran_ = args_.out_ran + p * n_layers * n_slots;
  std::fill_n(ran_, n_layers * n_slots, uint8_t{0});
  std::fill_n(args_.out_filled + p * n_layers, n_layers, int64_t{0});
  std::copy_n(args_.alive, n_slots, args_.out_alive + p * n_slots);
  fill_.count_into(args_.out_filled + p * n_layers);
  std::fill(settled_.begin(), settled_.end(), uint8_t{0});
  head_rows_ = 0;

  embed();
  if (args_.program == kPlanned) {
    run_planned();
  } else if (args_.program == kConfidence) {
    run_confidence();
  } else if (args_.program == kController) {
    run_controller();
  } else {
    run_drawn();
  }
  Rows unsettled;
  for (const int32_t row : alive_) {
    if (!settled_[static_cast<size_t>(row)]) unsettled.push_back(row);
  }
  pick(unsettled);
  fill_.end_pass(alive_, ran_);
  advance(p);
  args_.out_head_rows[p] = head_rows_;
  args_.out_seconds[p] = now() - started;
  return true;
}

void DecodePass::advance(int64_t p) {
  ended_ = false;
  for (const int32_t row : alive_) {
    const int64_t token = token_[static_cast<size_t>(row)];
    args_.out_token[p * args_.n_slots + row] = token;
    if (args_.pick == kHidden || !args_.advance) continue;
    args_.token[row] = token;
    args_.position[row] += 1;
    args_.step[row] += 1;
    args_.remaining[row] -= 1;
    if (args_.history != nullptr && args_.position[row] < args_.history_stride) {
      args_.history[row * args_.history_stride + args_.position[row]] = token;
    }
    const int64_t* eos = args_.eos_ids + args_.eos_bounds[row];
    const int64_t* last = args_.eos_ids + args_.eos_bounds[row + 1];
    if (args_.remaining[row] <= 0 || std::find(eos, last, token) != last) {
      args_.alive[row] = 0;
      ended_ = true;
    }
  }
}

void DecodePass::run_fixed() {
  find_alive();
  embed();
  pick(alive_);
  for (const int32_t row : alive_) args_.out_token[row] = token_[static_cast<size_t>(row)];
}

void DecodePass::run_fill() {
  find_alive();
  if (alive_.empty()) return;
  std::fill_n(args_.out_filled, model_.num_layers, int64_t{0});
  fill_.count_into(args_.out_filled);
  embed();
  for (int64_t l = 0; l < model_.num_layers; ++l) fill_.skipped(l, alive_);
}

}  // namespace dynkern

using namespace dynkern;

// Runs up to max_passes passes while a row is alive; returns how many, or kNoMemory.
DYNKERN_EXPORT int64_t dynkern_cpu_decode(const Model* model, const Decode* args) {
  return guarded([&] {
    TeamLock lock;
    Steps steps(*model, args->n_threads);
    DecodePass pass(steps, *args);
    const double end = now() + args->max_seconds;
    int64_t p = 0;
    while (p < args->max_passes && pass.run(p)) {
      ++p;
      if (!args->advance || args->pick == kHidden || now() >= end) break;
      if (args->advance == 2 && pass.ended()) break;
      if (args->stop != nullptr && *static_cast<const volatile int32_t*>(args->stop) != 0) break;
    }
    return p;
  });
}

// Only embedding, final norm and head of the live rows; tokens to out_token. Returns 0 or
// kNoMemory, as all below.
DYNKERN_EXPORT int64_t dynkern_cpu_fixed(const Model* model, const Decode* args) {
  return guarded([&] {
    TeamLock lock;
    Steps steps(*model, args->n_threads);
    DecodePass(steps, *args).run_fixed();
    return 0;
  });
}

// Only the K/V fill of every layer for the live rows; nothing is advanced.
DYNKERN_EXPORT int64_t dynkern_cpu_fill(const Model* model, const Decode* args) {
  return guarded([&] {
    TeamLock lock;
    Steps steps(*model, args->n_threads);
    DecodePass(steps, *args).run_fill();
    return 0;
  });
}

// hidden [rows, embed] through the head; any output may be null.
DYNKERN_EXPORT int64_t dynkern_cpu_head(const Model* model, const float* hidden, int64_t rows,
                                        int64_t n_threads, float* logits, int64_t* token,
                                        float* top, float* margin, float* log_sum) {
  return guarded([&] {
    TeamLock lock;
    Steps steps(*model, n_threads);
    if (logits != nullptr) steps.logits(hidden, rows, logits);
    if (token == nullptr && top == nullptr && margin == nullptr && log_sum == nullptr) return 0;
    const bool sums = top != nullptr || margin != nullptr || log_sum != nullptr;
    std::vector<Best> best(static_cast<size_t>(rows));
    steps.head(hidden, rows, sums, best.data());
    for (int64_t j = 0; j < rows; ++j) {
      const Best& b = best[static_cast<size_t>(j)];
      const float first = std::exp(b.top - b.log_sum);
      if (token != nullptr) token[j] = b.token;
      if (top != nullptr) top[j] = first;
      if (margin != nullptr) margin[j] = first - std::exp(b.second - b.log_sum);
      if (log_sum != nullptr) log_sum[j] = b.log_sum;
    }
    return 0;
  });
}
