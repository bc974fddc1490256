// Sums over row-major weights, as single ops have them.
//
// A stretch of a panel is brought into the packed layout, which keeps it in the caches, and goes
// through the packed sums of all rows before the next one is read: the weights are read once, and
// the sums are those of packed weights to the bit. One row of bfloat16 through 2304 x 768 took 0.82
// of the time that dot products along the rows of weights had taken, 64 rows 0.95 (two threads).
#pragma once

#include "body_math.h"
#include "body_sum.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

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

// Words of a row of weights: groups as they are, or float16 widened to the groups of kF32.
struct WordsAsTheyAre {
  static constexpr int64_t kBytes = 4;
  static Vi load(const uint8_t* p) { return load_words(reinterpret_cast<const uint32_t*>(p)); }
};

struct WordsOfHalf {
  static constexpr int64_t kBytes = 2;
  static Vi load(const uint8_t* p) { return (Vi)vload(reinterpret_cast<const Half*>(p)); }
};

// Groups [begin, end) of columns [column, column + width) of a panel, whose rows have row_bytes of
// weights, into the packed layout; group `begin` comes first. Meanwhile what lies `ahead` is
// fetched.
template <class Words>
void pack_stretch(const PanelRows& rows, int64_t stride, int64_t row_bytes, int64_t column,
                  int64_t width, int64_t begin, int64_t end, int64_t ahead, uint8_t* packed) {
  for (int64_t c = column; c < column + width; c += kLanes) {
    const uint8_t* w[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      // columns behind the last one repeat it and are dropped
      w[i] = rows.first + (c + i < rows.n ? c + i : rows.n - 1) * stride;
    }
    for (int64_t group = begin; group < end; group += kLanes) {
      const int64_t at = group * Words::kBytes;
      const int64_t left = row_bytes - at;
      Vi word[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        prefetch_far(w[i] + at + ahead);
        if (left >= kLanes * Words::kBytes) {
          word[i] = Words::load(w[i] + at);
        } else {
          alignas(64) uint8_t tail[kLanes * Words::kBytes] = {};
          word[i] = Words::load(
              static_cast<uint8_t*>(std::memcpy(tail, w[i] + at, static_cast<size_t>(left))));
        }
      }
      vtranspose(word);
      uint8_t* to = packed + (group - begin) * kGroupBytes + c * 4;
      const int64_t n = end - group < kLanes ? end - group : kLanes;
      for (int64_t i = 0; i < n; ++i) store_words(to + i * kGroupBytes, word[i]);
    }
  }
}

// Totals of all rows in columns [column, column + width) of a panel; tile: [m, 64], behind it room
// for a stretch.
template <class F, class Words>
void sum_stretches(const LinearJob& job, int64_t panel, int64_t column, int64_t width,
                   float* tile) {
  const PanelRows rows = panel_rows(job, panel);
  const int64_t n_groups = group_count(F::kFormat, job.w->k), stride = job.plain.row_bytes;
  const int64_t row_bytes = job.w->k * element_bytes(job.plain.dtype);
  auto* packed = reinterpret_cast<uint8_t*>(tile + job.m * kPanel);
  for (int64_t begin = 0; begin < n_groups; begin += kStretchGroups) {
    const int64_t end = begin + kStretchGroups < n_groups ? begin + kStretchGroups : n_groups;
    // behind the last stretch of a panel lies the first of the next
    const int64_t ahead =
        end < n_groups ? kStretchGroups * Words::kBytes : kPanel * stride - begin * Words::kBytes;
    pack_stretch<Words>(rows, stride, row_bytes, column, width, begin, end, ahead, packed);
    // where the panel would begin: sums count groups from there
    const auto* at =
        reinterpret_cast<const uint8_t*>(reinterpret_cast<uintptr_t>(packed) - begin * kGroupBytes);
    constexpr int64_t kBlock = block_groups(F::kFormat);
    for (int64_t block = 0; block < row_block_count(job.m); ++block) {
      const int64_t first_row = row_block_begin(job.m, block);
      sum_row_block<F>(job, at, n_groups, begin / kBlock, divide_up(end, kBlock), first_row,
                       row_block_begin(job.m, block + 1) - first_row, 0, column, width, nullptr, {},
                       tile);
    }
  }
}

inline void sum_plain(const LinearJob& job, int64_t panel, int64_t column, int64_t width,
                      float* tile) {
  if (job.plain.dtype == kBFloat16) {
    sum_stretches<FormatBF16, WordsAsTheyAre>(job, panel, column, width, tile);
  } else if (job.plain.dtype == kFloat16) {
    sum_stretches<FormatF32, WordsOfHalf>(job, panel, column, width, tile);
  } else {
    sum_stretches<FormatF32, WordsAsTheyAre>(job, panel, column, width, tile);
  }
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
