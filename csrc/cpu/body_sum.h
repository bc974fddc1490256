// Sums of a linear's rows over packed weights: a block of rows, a stretch of groups, columns of a
// panel.
#pragma once

#include "body_format.h"
#include "body_math.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

// Rows of one block, the first of each: groups x_stride bytes apart, scales and corrections
// n_scales, totals kPanel.
struct BlockRows {
  const uint8_t* x;
  int64_t x_stride;
  const float* scale;
  const int32_t* correction;
  int64_t n_scales;
  float* total;
};

// Whether R rows widen the words of a stretch before they use them: one row uses each once.
template <class F, int R, bool kSparse>
constexpr bool widens() {
  return F::kSteps > 1 && R > 1 && !kSparse;
}

// Sums of one block of groups: all of them, or those of a list.
template <class F, int R, int NV, bool kWide>
struct BlockSum {
  typename F::Sum sum[R][NV];

  BlockSum(const BlockRows& rows, int64_t block) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const int32_t start = F::kFormat == kI8 ? rows.correction[r * rows.n_scales + block] : 0;
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[r][v] = F::zero(start);
    }
  }

  // The inputs of a group step by step, so that only the weights of one step take registers.
  template <int kStep>
  inline __attribute__((always_inline)) void step(const uint8_t* const (&x)[kMaxRows],
                                                  const uint8_t* at, int64_t group) {
    decltype(F::template weights<kStep>(at)) w[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) w[v] = F::template weights<kStep>(at + v * kLanes * 4);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const uint8_t* word = x[r] + group * 4;
      const auto factor = [&] {
        if constexpr (kWide) {
          return F::wide_factor(word + kStep * kPlane);
        } else {
          return F::template factor<kStep>(word);
        }
      }();
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) sum[r][v] = F::add(sum[r][v], w[v], factor);
    }
    if constexpr (kStep + 1 < F::kSteps) step<kStep + 1>(x, at, group);
  }

  inline __attribute__((always_inline)) void add(const uint8_t* const (&x)[kMaxRows],
                                                 const uint8_t* panel, int64_t group) {
    step<0>(x, panel + group * kGroupBytes, group);
  }
};

// Lines of a group that a block of rows fetches where it is the only one and goes through all
// columns at once: all.
constexpr int kAlone = 4;

// Weights to fetch while others are used: at every group that has none of the bits of `mask`,
// `lines` lines (0, 1, 2 or kAlone), `step` bytes behind those before, from `at` on.
struct Ahead {
  const uint8_t* at;
  int lines;
  int64_t step;
  int64_t mask;
};

// Which of n_blocks blocks of rows reads a stretch of packed weights; 2 ^ log_shares of them, the
// most that there are, share out what is fetched meanwhile. Behind the last stretch of a panel lies
// the first of the next panel. n_blocks is 0 where nothing is to be fetched.
struct Reader {
  const uint8_t* stretch;
  int64_t stretch_bytes;
  int64_t block;
  int64_t n_blocks;
  int log_shares;
};

// What R rows fetch. One row reads so fast that the hardware follows; more rows leave it too little
// to see.
template <int R>
inline Ahead look_ahead(const Reader& reader) {
  constexpr int kPasses = static_cast<int>(kPanel / (vectors_of(R) * kLanes));
  constexpr Ahead kNothing = {nullptr, 0, 0, 0};
  const int64_t i = reader.block, n = reader.n_blocks;
  if (n == 0 || (R == 1 && n == 1)) return kNothing;
  if (kPasses == 1) {
    if (n == 1) return {reader.stretch + kStreamAhead, kAlone, kGroupBytes, 0};
    const int lines = n < 4 ? 2 : 1;
    if (i * lines >= 4) return kNothing;
    return {reader.stretch + kStretchesAhead * reader.stretch_bytes + i * lines * 64, lines,
            kGroupBytes, 0};
  }
  if (i >> reader.log_shares) return kNothing;
  constexpr int kLines = kPasses < 4 ? 2 : 1;
  constexpr int64_t kEvery = kPasses * kLines / 4;
  return {reader.stretch + kPassesAhead * reader.stretch_bytes +
              (i * reader.stretch_bytes >> reader.log_shares),
          kLines, kLines * 64, (kEvery << reader.log_shares) - 1};
}

// Totals of R rows over blocks [begin, end) of groups, in `width` columns from the beginning of
// `panel` on, NV vectors at a time.
// Not inline: among its callers' variables GCC runs out of registers for the sums.
template <class F, int R, int NV, bool kSparse, int kLines>
__attribute__((noinline)) void sum_blocks(const uint8_t* panel, int64_t n_groups, int64_t begin,
                                          int64_t end, int64_t width, const BlockRows& rows,
                                          const ActiveGroups* active, const Ahead& ahead) {
  (void)active;
  constexpr int64_t kBlock = block_groups(F::kFormat);
  const uint8_t* x[kMaxRows];
  for (int r = 0; r < R; ++r) x[r] = rows.x + r * rows.x_stride;
  // in registers: a vector that is stored may alias anything
  float* totals = rows.total;
  const uint8_t* line = ahead.at;
  const int64_t step = ahead.step, mask = ahead.mask;
  (void)line, (void)step, (void)mask;
  for (float* const last_column = totals + width; totals < last_column;
       totals += NV * kLanes, panel += NV * kLanes * 4) {
    for (int64_t block = begin; block < end; ++block) {
      BlockSum<F, R, NV, widens<F, R, kSparse>()> sums(rows, block);
      if (kSparse) {
        const uint32_t* group = active->groups + active->offsets[block];
        const uint32_t* last = active->groups + active->offsets[block + 1];
        for (; group != last; ++group) {
          // the hardware does not foresee jumps; the list goes on behind the block, and behind its
          // own end it is padded
          const uint8_t* later = panel + group[kListAhead] * kGroupBytes;
          for (int64_t byte = 0; byte < NV * kLanes * 4; byte += 64) prefetch(later + byte);
          sums.add(x, panel, *group);
        }
      } else {
        const int64_t end_group = block * kBlock + kBlock;
        const int64_t last = end_group < n_groups ? end_group : n_groups;
        for (int64_t group = block * kBlock; group < last; ++group) {
          if (kLines > 0 && (group & mask) == 0) {
#pragma GCC unroll 4
            for (int i = 0; i < kLines; ++i) {
              kLines == kAlone ? prefetch(line + i * 64) : prefetch_far(line + i * 64);
            }
            line += step;
          }
          sums.add(x, panel, group);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          float* total = totals + r * kPanel + v * kLanes;
          const Vf before = block == 0 ? vzero() : vload(total);
          const Vf sum = F::total(sums.sum[r][v]);
          vstore(total, F::kFormat == kI8
                            ? vfma(sum, vset(rows.scale[r * rows.n_scales + block]), before)
                            : vadd(sum, before));
        }
      }
    }
  }
}

template <class F, int R, int NV>
void sum_columns(const uint8_t* panel, int64_t n_groups, int64_t begin, int64_t end, int64_t width,
                 const BlockRows& rows, const ActiveGroups* active, const Ahead& ahead) {
#define DYNKERN_SUM(sparse, lines) \
  sum_blocks<F, R, NV, sparse, lines>(panel, n_groups, begin, end, width, rows, active, ahead)
  // columns in parts are rare and narrow, and not worth the variants
  constexpr bool kWhole = NV == vectors_of(R);
  if (active != nullptr) return DYNKERN_SUM(true, 0);
  if (!kWhole || ahead.lines == 0) return DYNKERN_SUM(false, 0);
  if (ahead.lines == 1) return DYNKERN_SUM(false, (kWhole ? 1 : 0));
  if (ahead.lines == 2) return DYNKERN_SUM(false, (kWhole ? 2 : 0));
  return DYNKERN_SUM(false, (kWhole ? kAlone : 0));
#undef DYNKERN_SUM
}

// Totals of one block of rows, [first_row, first_row + R), over blocks [begin, end) of groups in
// columns [column, column + width) of a panel; tile: [rows, 64], of which row tile_row is the
// first.
template <class F, int R>
void sum_rows(const LinearJob& job, const uint8_t* panel, int64_t n_groups, int64_t begin,
              int64_t end, int64_t first_row, int64_t tile_row, int64_t column, int64_t width,
              const ActiveGroups* active, const Reader& reader, float* tile) {
  constexpr int kVectors = vectors_of(R);
  const Ahead ahead = look_ahead<R>(reader);
  constexpr int64_t kBlock = block_groups(F::kFormat);
  BlockRows rows{job.x.data + first_row * job.x.stride,
                 job.x.stride,
                 job.x.scale + first_row * job.x.n_blocks,
                 job.x.correction + first_row * job.x.n_blocks,
                 job.x.n_blocks,
                 nullptr};
  alignas(64) uint8_t wide[F::kSteps > 1 ? R : 1][F::kSteps * kPlane];
  if constexpr (widens<F, R, false>()) {
    if (active == nullptr) {
      const int64_t first = begin * kBlock;
      const int64_t last = end * kBlock < n_groups ? end * kBlock : n_groups;
      for (int64_t r = 0; r < R; ++r) {
        widen<F>(rows.x + r * rows.x_stride + first * 4, last - first, wide[r]);
      }
      // where the rows would begin: sums count groups from there
      rows.x = reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(wide) -
                                                static_cast<uintptr_t>(first) * 4);
      rows.x_stride = sizeof(wide[0]);
    }
  }
  rows.total = tile + (first_row - tile_row) * kPanel + column;
  const uint8_t* at = panel + column * 4;
  constexpr int64_t kColumns = kVectors * kLanes;
  if (width >= kColumns) {
    sum_columns<F, R, kVectors>(at, n_groups, begin, end, width, rows, active, ahead);
  } else if (kVectors > 2 && width >= 2 * kLanes) {
    sum_columns<F, R, 2>(at, n_groups, begin, end, width, rows, active, ahead);
  } else {
    sum_columns<F, R, 1>(at, n_groups, begin, end, width, rows, active, ahead);
  }
}

template <class F>
void sum_row_block(const LinearJob& job, const uint8_t* panel, int64_t n_groups, int64_t begin,
                   int64_t end, int64_t first_row, int64_t n_rows, int64_t tile_row, int64_t column,
                   int64_t width, const ActiveGroups* active, const Reader& reader, float* tile) {
  with_rows(n_rows, [&](auto r) {
    sum_rows<F, decltype(r)::value>(job, panel, n_groups, begin, end, first_row, tile_row, column,
                                    width, active, reader, tile);
  });
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
