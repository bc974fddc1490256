// Sums over row-major weights, as single ops have them: dot products along the inputs.
//
// Rows of weights are read in the order in which they lie in memory, once for a block of rows, and
// from the second cache for further blocks. Turning them into packed panels ahead of the packed
// sums, to the same bits, took twice as long at 1 row (float32, 3072 x 2048, one thread).
#pragma once

#include "body_math.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

// Columns that a kernel takes at a time: with kMaxRows rows, their sums fill the registers.
constexpr int kColumns = kMaxVectors;
// Inputs summed before the next columns are taken, in bytes of a row: so many of kMaxRows rows stay
// in the first cache.
constexpr int64_t kDepthBytes = 4096;

// Weights are fetched ahead by so many bytes, or a little more.
constexpr int64_t kFetchBytes = 24 << 10;

// Vectors of weights and inputs, and the sum of their products lane by lane.
struct DotF32 {
  static constexpr int64_t kStep = kLanes, kWeightBytes = 4, kInputBytes = 4;
  using Weights = Vf;
  using Inputs = Vf;
  static Weights weights(const uint8_t* p) { return vload(reinterpret_cast<const float*>(p)); }
  static Inputs inputs(const uint8_t* p) { return vload(reinterpret_cast<const float*>(p)); }
  static Vf add(Vf sum, Weights w, Inputs x) { return vfma(w, x, sum); }
};

struct DotF16 : DotF32 {
  static constexpr int64_t kWeightBytes = 2;
  static Weights weights(const uint8_t* p) { return vload(reinterpret_cast<const Half*>(p)); }
};

struct DotBF16 {
  static constexpr int64_t kStep = 2 * kLanes, kWeightBytes = 2, kInputBytes = 2;
#if defined(DYNKERN_BF16)
  using Weights = Vi;
  using Inputs = Vi;
  static Weights weights(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Inputs inputs(const uint8_t* p) { return weights(p); }
  static Vf add(Vf sum, Weights w, Inputs x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x);
  }
#else
  struct Weights {
    Vf even, odd;
  };
  using Inputs = Weights;
  static Weights weights(const uint8_t* p) {
    Weights w;
    vload_pairs(reinterpret_cast<const uint16_t*>(p), &w.even, &w.odd);
    return w;
  }
  static Inputs inputs(const uint8_t* p) { return weights(p); }
  static Vf add(Vf sum, Weights w, Inputs x) {
    return vfma(w.odd, x.odd, vfma(w.even, x.even, sum));
  }
#endif
};

// Sums of kColumns columns and R rows, kLanes apart in `sums`, which go on where begin > 0.
template <class F, int R, bool kFetch>
__attribute__((noinline)) void dot_block(const uint8_t* const* w, const uint8_t* const* x,
                                         int64_t begin, int64_t end, int64_t ahead,
                                         float (*sums)[kLanes * kLanes]) {
  (void)ahead;
  Vf sum[R][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sum[r][c] = begin ? vload(sums[r] + c * kLanes) : vzero();
  }
  const uint8_t *at_w[kColumns], *at_x[R];
  for (int c = 0; c < kColumns; ++c) at_w[c] = w[c];
  for (int r = 0; r < R; ++r) at_x[r] = x[r];
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    typename F::Weights weights[kColumns];
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
      if (kFetch) prefetch(at_w[c] + k * F::kWeightBytes + ahead);
      weights[c] = F::weights(at_w[c] + k * F::kWeightBytes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto inputs = F::inputs(at_x[r] + k * F::kInputBytes);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sum[r][c] = F::add(sum[r][c], weights[c], inputs);
    }
  };
  int64_t k = begin;
  for (; k + F::kStep <= end; k += F::kStep) step(k);
  if (k < end) {  // only at the end of the rows
    alignas(64) uint8_t tails[kColumns + R][F::kStep * 4] = {};
    const auto left = static_cast<size_t>(end - k);
    for (int c = 0; c < kColumns; ++c) {
      at_w[c] = static_cast<uint8_t*>(
          std::memcpy(tails[c], at_w[c] + k * F::kWeightBytes, left * F::kWeightBytes));
    }
    for (int r = 0; r < R; ++r) {
      at_x[r] = static_cast<uint8_t*>(
          std::memcpy(tails[kColumns + r], at_x[r] + k * F::kInputBytes, left * F::kInputBytes));
    }
    step(0);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) vstore(sums[r] + c * kLanes, sum[r][c]);
  }
}

template <class F, bool kFetch>
void dot_rows(int64_t n_rows, const uint8_t* const* w, const uint8_t* const* x, int64_t begin,
              int64_t end, int64_t ahead, float (*sums)[kLanes * kLanes]) {
  with_rows(n_rows, [&](auto r) {
    dot_block<F, decltype(r)::value, kFetch>(w, x, begin, end, ahead, sums);
  });
}

// Where the rows of a panel lie.
struct PanelRows {
  const uint8_t* first;
  int64_t n;
};

inline PanelRows panel_rows(const LinearJob& job, int64_t panel) {
  int64_t first = panel * kPanel, end = job.w->n;
  if (job.output.sink == Sink::kQkv) {
    const int64_t hidden = job.output.hidden, stacked = round_up(hidden, kPanel);
    const int64_t part_row = (first / stacked - job.plain.first_part) * hidden;
    end = part_row + hidden;
    first = part_row + first % stacked;
  }
  return {job.plain.data + first * job.plain.row_bytes,
          end - first < kPanel ? end - first : kPanel};
}

// Totals of all rows in columns [column, column + width) of a panel; tile: [m, 64].
template <class F>
void dot_panel(const LinearJob& job, int64_t panel, int64_t column, int64_t width, float* tile) {
  const PanelRows rows = panel_rows(job, panel);
  const int64_t k = job.w->k, row_bytes = job.plain.row_bytes;
  constexpr int64_t kDepth = kDepthBytes / F::kWeightBytes;
  // whole columns ahead, so that lines are fetched in the order of memory
  const int64_t ahead = divide_up(kFetchBytes, kColumns * row_bytes) * kColumns * row_bytes;
  alignas(64) float sums[kMaxRows][kLanes * kLanes];
  for (int64_t c = column; c < column + width && c < rows.n; c += kLanes) {
    const uint8_t* w[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      // columns behind the last one repeat it and are dropped
      w[i] = rows.first + (c + i < rows.n ? c + i : rows.n - 1) * row_bytes;
    }
    for (int64_t block = 0; block < row_block_count(job.m); ++block) {
      const int64_t first = row_block_begin(job.m, block);
      const int64_t n_rows = row_block_begin(job.m, block + 1) - first;
      const uint8_t* x[kMaxRows];
      for (int64_t r = 0; r < n_rows; ++r) x[r] = job.x.data + (first + r) * job.x.stride;
      int64_t begin = 0;
      do {
        const int64_t end = k - begin < kDepth ? k : begin + kDepth;
        for (int64_t i = 0; i < kLanes; i += kColumns) {
          float (*own)[kLanes * kLanes] =
              reinterpret_cast<float (*)[kLanes * kLanes]>(&sums[0][i * kLanes]);
          if (block == 0) {
            dot_rows<F, true>(n_rows, w + i, x, begin, end, ahead, own);
          } else {
            dot_rows<F, false>(n_rows, w + i, x, begin, end, 0, own);
          }
        }
        begin = end;
      } while (begin < k);
      for (int64_t r = 0; r < n_rows; ++r) {
        Vf lanes[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) lanes[i] = vload(sums[r] + i * kLanes);
        vstore(tile + (first + r) * kPanel + c, vsum_each(lanes));
      }
    }
  }
}

inline void sum_plain(const LinearJob& job, int64_t panel, int64_t column, int64_t width,
                      float* tile) {
  if (job.plain.dtype == kBFloat16) return dot_panel<DotBF16>(job, panel, column, width, tile);
  if (job.plain.dtype == kFloat16) return dot_panel<DotF16>(job, panel, column, width, tile);
  dot_panel<DotF32>(job, panel, column, width, tile);
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
