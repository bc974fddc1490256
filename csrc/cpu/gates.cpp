#include "gates.h"

#include <algorithm>
#include <cmath>

#include "pack.h"

namespace dynkern {
namespace {

// multiply-adds of a layer's gates that are worth waking a thread
constexpr int64_t kWorthWaking = 1 << 16;

}  // namespace

void PassGates::begin(const std::vector<int32_t>& alive) {
  const Model& model = steps_.model();
  alive_ = alive;
  const auto n = static_cast<int64_t>(alive.size());
  if (args_.gate_input == kGateToken) {
    tokens_.resize(static_cast<size_t>(n * model.embed));
    for (int64_t j = 0; j < n; ++j) {
      unpack_row(model.token, model.format, args_.token[alive[static_cast<size_t>(j)]],
                 tokens_.data() + j * model.embed);
    }
  }
  if (args_.gate_sampled) {
    uniform_.resize(static_cast<size_t>(n * model.num_layers));
    for (int64_t j = 0; j < n; ++j) {
      const int32_t row = alive[static_cast<size_t>(j)];
      steps_.kernel().draw_gates(args_.seed, args_.request[row], args_.step[row], model.num_layers,
                                 uniform_.data() + j * model.num_layers);
    }
  }
}

void PassGates::decide(int64_t layer, uint8_t* keep) {
  const Model& model = steps_.model();
  const auto n = static_cast<int64_t>(alive_.size());
  if (args_.gates[layer * args_.gate_depth].weight == nullptr) {
    std::fill_n(keep, n, uint8_t{1});
    return;
  }
  const int64_t first = args_.gate_depth > 1 ? args_.gate_width : 2;
  const bool shared = n * first * model.hidden > kWorthWaking;
  auto& threads = steps_.work().threads;
  parallel_for(shared ? steps_.n_threads() : 1, n, [&](int64_t j, int64_t thread) {
    Workspace::Thread& own = *threads[static_cast<size_t>(thread)];
    keep[j] = decide_row(layer, j, own.scratch.need(2 * args_.gate_width));
  });
}

const float* PassGates::input(int64_t j) {
  const Model& model = steps_.model();
  const int32_t row = alive_[static_cast<size_t>(j)];
  if (args_.gate_input == kGateToken) return tokens_.data() + j * model.embed;
  if (args_.gate_input == kGatePosition) {
    return model.position + (args_.position[row] + model.position_offset) * model.hidden;
  }
  return steps_.h() + row * model.hidden;
}

bool PassGates::decide_row(int64_t layer, int64_t j, float* scratch) {
  const Model& model = steps_.model();
  const float* x = input(j);
  int64_t k = args_.gate_input == kGateToken ? model.embed : model.hidden;
  float logit[2] = {0.0f, 0.0f};
  for (int64_t i = 0; i < args_.gate_depth; ++i) {
    const Gate& linear = args_.gates[layer * args_.gate_depth + i];
    const bool is_last = i + 1 == args_.gate_depth;
    const int64_t n = is_last ? 2 : args_.gate_width;
    float* y = is_last ? logit : scratch + (i & 1) * args_.gate_width;
    for (int64_t o = 0; o < n; ++o) {
      const float sum = steps_.kernel().dot(x, linear.weight + o * k, k) + linear.bias[o];
      y[o] = is_last ? sum : std::max(sum, 0.0f);
    }
    x = y;
    k = n;
  }
  if (!args_.gate_sampled) return logit[1] > logit[0];
  const double apart = static_cast<double>(logit[1]) - static_cast<double>(logit[0]);
  const float uniform = uniform_[static_cast<size_t>(j * model.num_layers + layer)];
  return uniform < static_cast<float>(1.0 / (1.0 + std::exp(-apart)));
}

}  // namespace dynkern
