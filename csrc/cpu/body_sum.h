// Sums of a linear's rows over packed weights: a block of rows, a stretch of groups, columns of a
// panel.
#pragma once

#include "body_math.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

// Rows of one block: their groups, scales, corrections and totals.
struct BlockRows {
  const uint8_t* x[kMaxRows];
  const float* scale[kMaxRows];
  const int32_t* correction[kMaxRows];
  float* total[kMaxRows];
};

// Sums of one block of groups: all of them, or those of a list.
template <class F, int R, int NV>
struct BlockSum {
  typename F::Sum sum[R][NV];

  explicit BlockSum(const int32_t* const* correction, int64_t block) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int32_t start = F::kFormat == kI8 ? correction[r][block] : 0;
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] = F::zero(start);
    }
  }

  inline __attribute__((always_inline)) void add(const uint8_t* const (&x)[kMaxRows],
                                                 const uint8_t* panel, int64_t group) {
    const uint8_t* at = panel + group * kGroupBytes;
    typename F::Weights w[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) w[v] = F::load(at + v * kLanes * 4);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto factor = F::factor(x[r] + group * 4);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] = F::add(sum[r][v], w[v], factor);
    }
  }
};

// Lines of a group that a block of rows fetches where it is the only one: all.
constexpr int kAlone = 4;

// Weights to fetch while others are used: `lines` lines (0, 1, 2 or kAlone) for each group, from
// `at` on.
struct Ahead {
  const uint8_t* at;
  int lines;
};

// Totals of R rows and NV vectors of columns over blocks [begin, end) of groups.
// Not inline: among its callers' variables GCC runs out of registers for the sums.
template <class F, int R, int NV, bool kSparse, int kLines>
__attribute__((noinline)) void sum_blocks(const uint8_t* panel, int64_t n_groups, int64_t begin,
                                          int64_t end, const BlockRows& rows,
                                          const ActiveGroups* active, const uint8_t* ahead) {
  (void)active, (void)ahead;
  constexpr int64_t kBlock = block_groups(F::kFormat);
  const uint8_t* x[kMaxRows];
  for (int r = 0; r < R; ++r) x[r] = rows.x[r];
  for (int64_t block = begin; block < end; ++block) {
    BlockSum<F, R, NV> sums(rows.correction, block);
    if (kSparse) {
      const uint32_t* group = active->groups + active->offsets[block];
      const uint32_t* last = active->groups + active->offsets[block + 1];
      for (; group != last; ++group) {
        // the hardware does not foresee jumps; the list goes on behind the block, and behind its
        // own end it is padded
        const uint8_t* later = panel + group[kListAhead] * kGroupBytes;
        for (int v = 0; v < NV; ++v) prefetch(later + v * kLanes * 4);
        sums.add(x, panel, *group);
      }
    } else {
      const int64_t last = block * kBlock + kBlock < n_groups ? block * kBlock + kBlock : n_groups;
      for (int64_t group = block * kBlock; group < last; ++group) {
#pragma GCC unroll 4
        for (int i = 0; i < kLines; ++i) {
          const uint8_t* line = ahead + group * kGroupBytes + i * 64;
          kLines == kAlone ? prefetch(line) : prefetch_far(line);
        }
        sums.add(x, panel, group);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* total = rows.total[r] + v * kLanes;
        const Vf before = block == 0 ? vzero() : vload(total);
        const Vf sum = F::total(sums.sum[r][v]);
        vstore(total, F::kFormat == kI8 ? vfma(sum, vset(rows.scale[r][block]), before)
                                        : vadd(sum, before));
      }
    }
  }
}

template <class F, int NV, bool kSparse, int kLines>
void sum_rows(int64_t n_rows, const uint8_t* panel, int64_t n_groups, int64_t begin, int64_t end,
              const BlockRows& rows, const ActiveGroups* active, const uint8_t* ahead) {
  with_rows(n_rows, [&](auto r) {
    sum_blocks<F, decltype(r)::value, NV, kSparse, kLines>(panel, n_groups, begin, end, rows,
                                                           active, ahead);
  });
}

template <class F, int NV>
void sum_columns(int64_t n_rows, const uint8_t* panel, int64_t n_groups, int64_t begin, int64_t end,
                 const BlockRows& rows, const ActiveGroups* active, const Ahead& ahead) {
#define DYNKERN_SUM(sparse, lines) \
  sum_rows<F, NV, sparse, lines>(n_rows, panel, n_groups, begin, end, rows, active, ahead.at)
  if (active != nullptr) return DYNKERN_SUM(true, 0);
  // columns in parts are rare and narrow, and not worth the variants
  if (NV < kMaxVectors || ahead.lines == 0) return DYNKERN_SUM(false, 0);
  if (ahead.lines == 1) return DYNKERN_SUM(false, (NV < kMaxVectors ? 0 : 1));
  if (ahead.lines == 2) return DYNKERN_SUM(false, (NV < kMaxVectors ? 0 : 2));
  return DYNKERN_SUM(false, (NV < kMaxVectors ? 0 : kAlone));
#undef DYNKERN_SUM
}

// Totals of one block of rows, [first_row, first_row + n_rows), over blocks [begin, end) of groups
// in columns [column, column + width) of a panel; tile: [rows, 64], of which row tile_row is the
// first.
template <class F>
void sum_row_block(const LinearJob& job, const uint8_t* panel, int64_t n_groups, int64_t begin,
                   int64_t end, int64_t first_row, int64_t n_rows, int64_t tile_row, int64_t column,
                   int64_t width, const ActiveGroups* active, const Ahead& ahead, float* tile) {
  constexpr int64_t kStep = kMaxVectors * kLanes;
  BlockRows rows;
  for (int64_t r = 0; r < n_rows; ++r) {
    const int64_t j = first_row + r;
    rows.x[r] = job.x.data + j * job.x.stride;
    rows.scale[r] = job.x.scale + j * job.x.n_blocks;
    rows.correction[r] = job.x.correction + j * job.x.n_blocks;
  }
  for (int64_t c = column; c < column + width;) {
    for (int64_t r = 0; r < n_rows; ++r) {
      rows.total[r] = tile + (first_row + r - tile_row) * kPanel + c;
    }
    const uint8_t* at = panel + c * 4;
    const int64_t left = column + width - c;
    if (left >= kStep) {
      sum_columns<F, kMaxVectors>(n_rows, at, n_groups, begin, end, rows, active, ahead);
      c += kStep;
    } else if (kMaxVectors > 2 && left >= 2 * kLanes) {
      sum_columns<F, 2>(n_rows, at, n_groups, begin, end, rows, active, ahead);
      c += 2 * kLanes;
    } else {
      sum_columns<F, 1>(n_rows, at, n_groups, begin, end, rows, active, ahead);
      c += kLanes;
    }
  }
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
