// Sums of a panel of weights, packed or plain, for any number of rows.
#pragma once

#include "body_convert.h"
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

// Weights to fetch while others are used: `lines` lines (0, 1, 2 or 4) for each group, from `at`
// on.
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
        for (int i = 0; i < kLines; ++i) prefetch(ahead + group * kGroupBytes + i * 64);
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
#define DYNKERN_CASE(n) \
  case n:               \
    return sum_blocks<F, n, NV, kSparse, kLines>(panel, n_groups, begin, end, rows, active, ahead)
  switch (n_rows) {
    DYNKERN_CASE(1);
    DYNKERN_CASE(2);
    DYNKERN_CASE(3);
    DYNKERN_CASE(4);
    DYNKERN_CASE(5);
    DYNKERN_CASE(6);
  }
#undef DYNKERN_CASE
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
  return DYNKERN_SUM(false, (NV < kMaxVectors ? 0 : 4));
#undef DYNKERN_SUM
}

// What block number i of n blocks of rows fetches while it uses the stretch at `at`. One row reads
// so fast that the hardware follows; more rows leave it too little to see.
inline Ahead look_ahead(const uint8_t* at, int64_t stretch_bytes, int64_t n_rows, int64_t i,
                        int64_t n) {
  if (n == 1) return {at + kStreamAhead, n_rows == 1 ? 0 : 4};
  const int lines = n < 4 ? 2 : 1;
  if (i * lines >= 4) return {nullptr, 0};
  return {at + stretch_bytes + i * lines * 64, lines};
}

// Totals of one block of rows over blocks [begin, end) of groups, in columns [column, column +
// width) of a panel; tile: [rows, 64] from row `tile_row` of the job on.
template <class F>
void sum_row_block(const LinearJob& job, int64_t row_block, const uint8_t* panel, int64_t begin,
                   int64_t end, int64_t column, int64_t width, const Ahead& ahead, float* tile,
                   int64_t tile_row) {
  const int64_t n_groups = group_count(F::kFormat, job.w->k);
  constexpr int64_t kStep = kMaxVectors * kLanes;
  const int64_t first_row = row_block_begin(job.m, row_block);
  const int64_t n_rows = row_block_begin(job.m, row_block + 1) - first_row;
  const ActiveGroups* active = job.active ? job.active + row_block : nullptr;
  if (active != nullptr && active->groups == nullptr) active = nullptr;
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

// Totals of blocks of rows [first_block, last_block) in columns [column, column + width) of a
// panel; tile: [rows, 64], its first row is the first row of first_block.
template <class F>
void sum_panel(const LinearJob& job, const uint8_t* panel, int64_t first_block, int64_t last_block,
               int64_t column, int64_t width, float* tile) {
  const int64_t n_groups = group_count(F::kFormat, job.w->k);
  constexpr int64_t kBlock = block_groups(F::kFormat);
  const int64_t n_blocks = divide_up(n_groups, kBlock);
  // with several blocks of rows, a stretch of weights serves all of them while it is in cache
  const int64_t stretch = last_block - first_block == 1 ? n_blocks : block_groups(kF32) / kBlock;
  const int64_t tile_row = row_block_begin(job.m, first_block);
  for (int64_t begin = 0; begin < n_blocks; begin += stretch) {
    const int64_t end = begin + stretch < n_blocks ? begin + stretch : n_blocks;
    for (int64_t row_block = first_block; row_block < last_block; ++row_block) {
      const int64_t n_rows =
          row_block_begin(job.m, row_block + 1) - row_block_begin(job.m, row_block);
      // behind the last stretch of a panel lies the first of the next
      const Ahead ahead = look_ahead(panel, stretch * kBlock * kGroupBytes, n_rows,
                                     row_block - first_block, last_block - first_block);
      sum_row_block<F>(job, row_block, panel, begin, end, column, width, ahead, tile, tile_row);
    }
  }
}

// Where the rows of a panel lie in row-major weights; none behind the last panel.
inline PanelRows panel_rows(const LinearJob& job, int64_t panel) {
  int64_t first = panel * kPanel, end = job.w->n;
  if (job.output.sink == Sink::kQkv) {
    const int64_t hidden = job.output.hidden, stacked = round_up(hidden, kPanel);
    const int64_t part_row = (first / stacked - job.plain.first_part) * hidden;
    end = first < end ? part_row + hidden : 0;
    first = part_row + first % stacked;
  }
  PanelRows rows;
  rows.n = end - first < kPanel ? (end > first ? end - first : 0) : kPanel;
  for (int64_t i = 0; i < rows.n; ++i) {
    rows.row[i] = job.plain.data + (first + i) * job.plain.row_bytes;
  }
  return rows;
}

// Totals of all rows in columns [column, column + width) of a panel of row-major weights.
template <class F>
void sum_plain(const LinearJob& job, int64_t panel, int64_t column, int64_t width, uint8_t* block,
               float* tile) {
  const int64_t n_groups = group_count(F::kFormat, job.w->k);
  constexpr int64_t kBlock = block_groups(F::kFormat);
  const int64_t n_blocks = divide_up(n_groups, kBlock);
  auto* widened = reinterpret_cast<float*>(block + kBlock * kGroupBytes);
  const PanelRows own = panel_rows(job, panel), following = panel_rows(job, panel + 1);
  for (int64_t b = 0; b < n_blocks; ++b) {
    const bool is_last = b + 1 == n_blocks;
    const int64_t first = b * kBlock, last = is_last ? n_groups : first + kBlock;
    lay_out_block(own, job.plain.dtype, job.w->k, first, last, column, width,
                  is_last ? following : own, is_last ? 0 : last, block, widened);
    // sums address groups from the start of a panel
    const uint8_t* start = block - first * kGroupBytes;
    for (int64_t row_block = 0; row_block < row_block_count(job.m); ++row_block) {
      sum_row_block<F>(job, row_block, start, b, b + 1, column, width, {nullptr, 0}, tile, 0);
    }
  }
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
