// Two ways through int8 weights of a panel of 64 outputs that lies in the second cache, in turn:
// int8 products as csrc/cpu does them (VNNI), and weights widened to float32. Prints a line for
// each number of rows: rows, seconds and seconds of a panel. Argument: rounds.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

namespace {

// inputs of a panel, and of a scale of the activations
constexpr int kInputs = 3072, kScaleBlock = 128, kPanel = 64, kRepeats = 10;

#define DYNKERN_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

template <int R>
struct Panel {
  alignas(64) uint8_t weights[kPanel * kInputs];
  int32_t groups[R][kInputs / 4];
  float inputs[R][kInputs];
  float scale[R][kInputs / kScaleBlock];
  float out[R][kPanel];
};

template <int R>
DYNKERN_TARGET __attribute__((noinline)) void vnni(Panel<R>& p) {
  __m512 total[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) total[r][v] = _mm512_setzero_ps();
  }
  for (int block = 0; block < kInputs / kScaleBlock; ++block) {
    __m512i sum[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_setzero_si512();
    }
    for (int g = block * kScaleBlock / 4; g < (block + 1) * kScaleBlock / 4; ++g) {
      __m512i w[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) w[v] = _mm512_load_si512(p.weights + (g * 4 + v) * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i x = _mm512_set1_epi32(p.groups[r][g]);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          asm("vpdpbusd %2, %1, %0" : "+v"(sum[r][v]) : "v"(w[v]), "v"(x));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        total[r][v] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][v]),
                                      _mm512_set1_ps(p.scale[r][block]), total[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(p.out[r] + v * 16, total[r][v]);
  }
}

template <int R>
DYNKERN_TARGET __attribute__((noinline)) void widened(Panel<R>& p) {
  __m512 total[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) total[r][v] = _mm512_setzero_ps();
  }
  for (int k = 0; k < kInputs; ++k) {
    __m512 w[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const auto* at = reinterpret_cast<const __m128i*>(p.weights + k * kPanel + v * 16);
      w[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(at)));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512 x = _mm512_set1_ps(p.inputs[r][k]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) total[r][v] = _mm512_fmadd_ps(x, w[v], total[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 4; ++v) _mm512_storeu_ps(p.out[r] + v * 16, total[r][v]);
  }
}

template <class Function>
double seconds(Function&& function) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kRepeats; ++i) function();
  const auto end = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(end - start).count() / kRepeats;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <int R>
void compare(int rounds) {
  static Panel<R> panel;
  for (uint8_t& w : panel.weights) w = static_cast<uint8_t>(std::rand());
  for (auto& row : panel.groups) {
    for (int32_t& x : row) x = std::rand();
  }
  for (auto& row : panel.inputs) {
    for (float& x : row) x = static_cast<float>(std::rand() % 7);
  }
  std::vector<double> own, other;
  for (int i = 0; i < rounds; ++i) {
    own.push_back(seconds([] { vnni(panel); }));
    other.push_back(seconds([] { widened(panel); }));
  }
  std::printf("%d %.9g %.9g\n", R, median(own), median(other));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const int rounds = std::atoi(argv[1]);
  if (rounds < 1) return 2;
  compare<1>(rounds);
  compare<2>(rounds);
  compare<4>(rounds);
  compare<6>(rounds);
}
