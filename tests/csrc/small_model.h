// A small model of random weights, packed by csrc/cpu, and what a program needs to run passes of
// it.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../../csrc/cpu/engine.h"
#include "../../csrc/cpu/kernels.h"

extern "C" {
int64_t dynkern_cpu_packed_bytes(int64_t n, int64_t k, int64_t format);
int64_t dynkern_cpu_pack(const void* src, int64_t src_dtype, int64_t n, int64_t k,
                         int64_t row_stride, int64_t format, uint8_t* dst, float* scale,
                         int64_t n_threads);
int64_t dynkern_cpu_prefill(const dynkern::Model* model, const dynkern::Prefill* args);
int64_t dynkern_cpu_decode(const dynkern::Model* model, const dynkern::Decode* args);
int64_t dynkern_cpu_fixed(const dynkern::Model* model, const dynkern::Decode* args);
int64_t dynkern_cpu_fill(const dynkern::Model* model, const dynkern::Decode* args);
int64_t dynkern_cpu_head(const dynkern::Model* model, const float* hidden, int64_t rows,
                         int64_t n_threads, float* logits, int64_t* token, float* top,
                         float* margin, float* log_sum);
}

namespace dynkern {

inline std::vector<float> random_floats(std::mt19937_64& random, int64_t n, float size) {
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> all(static_cast<size_t>(n));
  for (float& x : all) x = normal(random);
  return all;
}

// A linear of stacked parts, each [rows, k] and padded to whole panels where there are several.
struct PackedLinear {
  std::vector<uint8_t> data;
  std::vector<float> scale, bias;
  Matrix matrix;

  PackedLinear(std::mt19937_64& random, int64_t rows, int64_t k, int64_t parts, int64_t format,
               bool with_bias) {
    const int64_t stride = parts == 1 ? rows : round_up(rows, kPanel);
    const int64_t each = dynkern_cpu_packed_bytes(rows, k, format);
    data.resize(static_cast<size_t>(parts * each));
    scale.resize(static_cast<size_t>(parts * stride));
    if (with_bias) bias = random_floats(random, parts * stride, 0.1f);
    for (int64_t part = 0; part < parts; ++part) {
      const auto weights = random_floats(random, rows * k, 0.3f);
      dynkern_cpu_pack(weights.data(), kFloat32, rows, k, k, format, data.data() + part * each,
                       scale.data() + part * stride, 1);
    }
    matrix = {data.data(), format == kI8 ? scale.data() : nullptr,
              with_bias ? bias.data() : nullptr, parts * stride, k};
  }
};

// Sizes that no vector divides, and an embedding narrower than the rest.
struct SmallModel {
  static constexpr int64_t kLayers = 3, kHidden = 69, kHeads = 3, kFfn = 150, kVocab = 205,
                           kEmbed = 41, kPositions = 64;
  std::mt19937_64 random{7};
  std::vector<float> position, norm_weight, norm_bias;
  std::vector<PackedLinear> linears;
  std::vector<Layer> layers;
  Model model{};

  explicit SmallModel(int64_t format) {
    position = random_floats(random, kPositions * kHidden, 0.3f);
    norm_weight = random_floats(random, kHidden, 0.5f);
    norm_bias = random_floats(random, kHidden, 0.1f);
    linears.reserve(4 * kLayers + 3);
    const auto linear = [&](int64_t rows, int64_t k, int64_t parts, bool bias) {
      return linears.emplace_back(random, rows, k, parts, format, bias).matrix;
    };
    const float *weight = norm_weight.data(), *bias = norm_bias.data();
    for (int64_t l = 0; l < kLayers; ++l) {
      layers.push_back({weight, bias, weight, bias, linear(kHidden, kHidden, 3, true),
                        linear(kHidden, kHidden, 1, true), linear(kFfn, kHidden, 1, true),
                        linear(kHidden, kFfn, 1, true)});
    }
    model.num_layers = kLayers, model.hidden = kHidden, model.num_heads = kHeads;
    model.head_size = kHidden / kHeads, model.ffn = kFfn, model.vocab = kVocab;
    model.embed = kEmbed, model.n_positions = kPositions;
    model.pre_norm = model.final_norm = 1, model.activation = kRelu, model.format = format;
    model.kv_dtype = format == kF32 ? kFloat32 : kBFloat16;
    model.norm_eps = 1e-5, model.attention_scale = 0.2;
    model.position = position.data();
    model.final_norm_weight = weight, model.final_norm_bias = bias;
    model.token = model.head = linear(kVocab, kEmbed, 1, false);
    model.project_in = linear(kHidden, kEmbed, 1, false);
    model.project_out = linear(kEmbed, kHidden, 1, false);
    model.layers = layers.data();
  }
};

// Rows that decode side by side, from prompts of their own.
struct SmallBatch {
  static constexpr int64_t kSlots = 7, kCapacity = 40, kPasses = 6;
  const Model& model;
  const int64_t n_layers = model.num_layers, entry = model.kv_dtype == kBFloat16 ? 2 : 4;
  std::vector<int64_t> prompt, bounds{0};
  std::vector<uint8_t> keys, values, k, v;
  std::vector<float> hidden;
  std::vector<int64_t> token, position, step, request, remaining, eos_bounds, history;
  std::vector<uint8_t> alive, route, exits;
  std::vector<int32_t> lane, length;
  std::vector<float> waiting, probability, out_hidden;
  std::vector<int64_t> waiting_count, out_token, out_filled, out_head_rows;
  std::vector<uint8_t> out_alive, out_ran;
  std::vector<double> out_seconds;
  Prefill prefill{};
  Decode decode{};

  SmallBatch(const Model& of, int64_t n_threads) : model(of) {
    std::mt19937_64 random(3);
    for (int64_t i = 0; i < kSlots; ++i) {
      for (uint64_t n = 1 + random() % 9; n > 0; --n) {
        prompt.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(model.vocab)));
      }
      bounds.push_back(static_cast<int64_t>(prompt.size()));
    }
    const auto tokens = prompt.size();
    keys.resize(static_cast<size_t>(n_layers * model.hidden * entry) * tokens);
    values = keys;
    hidden.resize(static_cast<size_t>(kSlots * model.embed));
    prefill = {n_threads, kSlots,      prompt.data(), bounds.data(),
               nullptr,   keys.data(), values.data(), hidden.data()};
    decode.n_threads = n_threads, decode.n_slots = decode.slot_stride = kSlots;
    decode.n_lanes = n_layers * kSlots, decode.capacity = kCapacity;
    decode.top_p = decode.repetition_penalty = 1.0, decode.seed = 5;
  }

  // What a decode pass starts from: K and V of the prompts in the cache.
  void start() {
    const auto slots = static_cast<size_t>(kSlots), rows = static_cast<size_t>(n_layers) * slots;
    const int64_t head_bytes = model.head_size * entry, row_bytes = model.hidden * entry;
    k.assign(rows * static_cast<size_t>(kCapacity * row_bytes), 0xff);
    v = k;
    lane.resize(rows), length.resize(rows);
    token.assign(slots, 11), step.assign(slots, 1), remaining.assign(slots, 1000);
    position.resize(slots), request.resize(slots);
    const auto n_tokens = static_cast<int64_t>(prompt.size());
    for (int64_t i = 0; i < kSlots; ++i) {
      const int64_t n = bounds[static_cast<size_t>(i) + 1] - bounds[static_cast<size_t>(i)];
      position[static_cast<size_t>(i)] = n, request[static_cast<size_t>(i)] = 100 + i;
      for (int64_t l = 0; l < n_layers; ++l) {
        const auto at = static_cast<size_t>(l * kSlots + i);
        lane[at] = static_cast<int32_t>(at), length[at] = static_cast<int32_t>(n);
        for (int64_t t = 0; t < n; ++t) {
          const int64_t from = (l * n_tokens + bounds[static_cast<size_t>(i)] + t) * row_bytes;
          for (int64_t h = 0; h < model.num_heads; ++h) {
            const int64_t to =
                ((static_cast<int64_t>(at) * model.num_heads + h) * kCapacity + t) * head_bytes;
            std::memcpy(k.data() + to, keys.data() + from + h * head_bytes,
                        static_cast<size_t>(head_bytes));
            std::memcpy(v.data() + to, values.data() + from + h * head_bytes,
                        static_cast<size_t>(head_bytes));
          }
        }
      }
    }
    alive.assign(slots, 1), route.assign(rows, 1), eos_bounds.assign(slots + 1, 0);
    for (size_t i = 0; i < rows; i += 3) route[i] = 0;
    exits.assign(static_cast<size_t>(n_layers), 1);
    probability.assign(static_cast<size_t>(n_layers), 0.5f);
    history.assign(slots * kCapacity, -1);
    waiting.assign(rows * 4 * static_cast<size_t>(model.hidden), 0.0f);
    waiting_count.assign(rows, 0);
    out_token.assign(kPasses * slots, 0), out_alive.assign(kPasses * slots, 0);
    out_ran.assign(kPasses * rows, 0), out_head_rows.assign(kPasses, 0);
    out_filled.assign(static_cast<size_t>(kPasses * n_layers), 0);
    out_seconds.assign(kPasses, 0.0);
    out_hidden.assign(static_cast<size_t>(kSlots * model.embed), 0.0f);
    Decode& d = decode;
    d.max_passes = kPasses, d.advance = 1, d.max_seconds = 1e9, d.waiting_tokens = 4;
    d.token = token.data(), d.position = position.data(), d.step = step.data();
    d.request = request.data(), d.alive = alive.data(), d.route = route.data();
    d.remaining = remaining.data(), d.eos_bounds = eos_bounds.data();
    d.k = k.data(), d.v = v.data(), d.lane = lane.data(), d.length = length.data();
    d.waiting = waiting.data(), d.waiting_count = waiting_count.data();
    d.probability = probability.data(), d.exits = exits.data();
    d.history = history.data(), d.history_stride = kCapacity;
    d.out_token = out_token.data(), d.out_alive = out_alive.data(), d.out_ran = out_ran.data();
    d.out_filled = out_filled.data(), d.out_head_rows = out_head_rows.data();
    d.out_seconds = out_seconds.data(), d.out_hidden = out_hidden.data();
  }
};

}  // namespace dynkern
