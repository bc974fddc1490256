// The kernels in use against plain loops in double, and a prefill and a decode pass that must not
// crash: for processors that no Python runs on here. Exits with 1 and a line where they differ.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "../../csrc/cpu/pack.h"
#include "small_model.h"

namespace {

using namespace dynkern;

void close(const char* what, int64_t at, double got, double expected, double tolerance) {
  if (std::fabs(got - expected) <= tolerance * (1.0 + std::fabs(expected))) return;  // not for NaN
  std::fprintf(stderr, "%s %s [%lld]: got %.9g, expected %.9g\n", kernels().name, what,
               static_cast<long long>(at), got, expected);
  std::exit(1);
}

float from_bf16(uint16_t x) {
  const uint32_t word = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &word, sizeof(y));
  return y;
}

void check_layer_norm(std::mt19937_64& random) {
  for (const int64_t k : {1, 3, 8, 69, 301}) {
    const auto x = random_floats(random, k, 2.0f), w = random_floats(random, k, 1.0f),
               b = random_floats(random, k, 1.0f);
    std::vector<float> y(x.size());
    kernels().layer_norm(x.data(), k, w.data(), b.data(), 1e-5f, y.data());
    double mean = 0.0, square = 0.0;
    for (const float one : x) mean += one / static_cast<double>(k);
    for (const float one : x) square += (one - mean) * (one - mean) / static_cast<double>(k);
    for (size_t c = 0; c < x.size(); ++c) {
      const double expected = (x[c] - mean) / std::sqrt(square + 1e-5) * w[c] + b[c];
      close("layer_norm", static_cast<int64_t>(c), y[c], expected, 1e-5);
    }
  }
}

// What a row is after it was made ready: rounded to bfloat16, or to int8 by blocks.
void check_linear(std::mt19937_64& random, int64_t format) {
  for (const int64_t k : {1, 41, 130, 300}) {
    for (const int64_t m : {1, 5, 13}) {
      const int64_t n = 205, stride = round_up(group_count(format, k) * 4, 64);
      const int64_t n_blocks = divide_up(k, kScaleBlock);
      const PackedLinear w(random, n, k, 1, format, true);
      const auto src = random_floats(random, m * k, 1.0f);
      const auto rows = static_cast<size_t>(m);
      std::vector<uint8_t> data(rows * static_cast<size_t>(stride), 0xff);
      std::vector<float> scale(rows * static_cast<size_t>(n_blocks)), out(rows * 205, NAN);
      std::vector<int32_t> correction(scale.size());
      const Input x{data.data(), stride, scale.data(), correction.data(),
                    format == kI8 ? n_blocks : 0};
      for (int64_t j = 0; j < m; ++j) {
        kernels().to_input(src.data() + j * k, k, format, false, nullptr, nullptr, 0.0f, nullptr, x,
                           j);
      }
      std::vector<float> tile(kTileBlocks * kMaxRows * kPanel, NAN);
      float* tiles[] = {tile.data()};
      Output output{};
      output.sink = Sink::kStore, output.out = out.data(), output.ld = n;
      LinearJob job{};
      job.w = &w.matrix, job.format = format, job.x = x, job.m = m;
      job.output = output, job.tiles = tiles;
      const auto run = [&](int64_t splits) {
        std::fill(out.begin(), out.end(), NAN);
        job.splits = splits;
        const int64_t items = panel_count(n) * splits;
        for (int64_t item = 0; item < items; ++item) kernels().linear(job, item, 0);
        return out;
      };
      const auto whole = run(1);
      const auto parts = run(4);
      for (size_t i = 0; i < whole.size(); ++i) {
        close("parts of panels", static_cast<int64_t>(i), parts[i], whole[i], 0.0);
      }
      std::vector<float> weights(static_cast<size_t>(k));
      for (int64_t i = 0; i < n; ++i) {
        unpack_row(w.matrix, format, i, weights.data());
        for (int64_t j = 0; j < m; ++j) {
          double sum = w.bias[static_cast<size_t>(i)], size = 0.0;
          for (int64_t c = 0; c < k; ++c) {
            const uint8_t* row = data.data() + j * stride;
            float value;
            if (format == kF32) {
              std::memcpy(&value, row + c * 4, 4);
            } else if (format == kBF16) {
              uint16_t half;
              std::memcpy(&half, row + c * 2, 2);
              value = from_bf16(half);
            } else {
              value = static_cast<int8_t>(row[c]) *
                      scale[static_cast<size_t>(j * n_blocks + c / kScaleBlock)];
            }
            const double term = static_cast<double>(value) * weights[static_cast<size_t>(c)];
            // rounding an input is the format's; more than that is an error
            const double step = format == kF32 ? 0.0 : format == kBF16 ? 0.004 : 0.03;
            close("to_input", c, value, src[static_cast<size_t>(j * k + c)], step);
            sum += term, size += std::fabs(term);
          }
          close("linear", i, out[static_cast<size_t>(j * n + i)], sum, 1e-5 * (1.0 + size));
        }
      }
    }
  }
}

template <class T>
double entry(const T* p, int64_t at) {
  if constexpr (sizeof(T) == 2) {
    return from_bf16(p[at]);
  } else {
    return p[at];
  }
}

template <class T>
void check_attention(std::mt19937_64& random, int64_t kv_dtype) {
  for (const int64_t head_size : {8, 16, 23, 64}) {
    for (const int64_t length : {1, 2, 7, 66}) {
      const int64_t n = length * head_size;
      std::vector<T> k(static_cast<size_t>(2 * n)), v(k.size());
      const auto fill = [&](std::vector<T>& cache) {
        const auto all = random_floats(random, 2 * n, 1.0f);
        for (size_t i = 0; i < cache.size(); ++i) {
          uint32_t word;
          std::memcpy(&word, &all[i], 4);
          if constexpr (sizeof(T) == 2) {
            cache[i] = static_cast<T>(word >> 16);
          } else {
            cache[i] = all[i];
          }
        }
      };
      fill(k), fill(v);
      const auto q = random_floats(random, 2 * head_size, 1.0f);
      std::vector<float> out(q.size(), NAN), scores(static_cast<size_t>(round_up(length, 64)));
      const uint8_t* k_row[] = {reinterpret_cast<const uint8_t*>(k.data())};
      const uint8_t* v_row[] = {reinterpret_cast<const uint8_t*>(v.data())};
      const auto entries = static_cast<int32_t>(length);
      const DecodeAttention job{q.data(), out.data(), 2 * head_size, head_size, kv_dtype, k_row,
                                v_row,    n,          head_size,     &entries,  0.3f};
      for (int64_t head = 0; head < 2; ++head) {
        kernels().decode_attention(job, 0, head, scores.data());
        std::vector<double> weight;
        double total = 0.0;
        for (int64_t t = 0; t < length; ++t) {
          double score = 0.0;
          for (int64_t c = 0; c < head_size; ++c) {
            score += q[static_cast<size_t>(head * head_size + c)] *
                     entry(k.data(), head * n + t * head_size + c);
          }
          weight.push_back(std::exp(0.3f * score));
          total += weight.back();
        }
        for (int64_t c = 0; c < head_size; ++c) {
          double sum = 0.0;
          for (int64_t t = 0; t < length; ++t) {
            sum += weight[static_cast<size_t>(t)] / total *
                   entry(v.data(), head * n + t * head_size + c);
          }
          close("decode_attention", c, out[static_cast<size_t>(head * head_size + c)], sum, 1e-5);
        }
      }
    }
  }
}

void check_passes(int64_t format) {
  const SmallModel small(format);
  SmallBatch one(small.model, 1), many(small.model, 3);
  for (SmallBatch* batch : {&one, &many}) {
    batch->decode.program = kConfidence, batch->decode.kv_fill = kProject;
    batch->decode.measure = kMargin, batch->decode.threshold = 0.3;
    if (dynkern_cpu_prefill(&small.model, &batch->prefill) != 0) std::exit(1);
    batch->start();
    if (dynkern_cpu_decode(&small.model, &batch->decode) != SmallBatch::kPasses) std::exit(1);
  }
  if (one.out_token != many.out_token || one.k != many.k || one.v != many.v) {
    std::fprintf(stderr, "passes differ by the number of threads\n");
    std::exit(1);
  }
}

}  // namespace

int main() {
  std::mt19937_64 random(11);
  check_layer_norm(random);
  for (const int64_t format : {kF32, kBF16, kI8}) {
    check_linear(random, format);
    check_passes(format);
  }
  check_attention<float>(random, kFloat32);
  check_attention<uint16_t>(random, kBFloat16);
  std::printf("%s\n", kernels().name);
  std::fflush(stdout);
  std::_Exit(0);
}
