// Linears over packed weights for any number of rows: sums of a panel, then bias, activation, sink.
#pragma once

#include "body_math.h"
#include "body_plain.h"
#include "body_sum.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

// Totals of blocks of rows [first_block, last_block) in columns [column, column + width) of a
// panel; tile: [rows, 64], its first row is the first row of first_block.
template <class F>
void sum_panel(const LinearJob& job, const uint8_t* panel, int64_t first_block, int64_t last_block,
               int64_t column, int64_t width, float* tile) {
  const int64_t n_groups = group_count(F::kFormat, job.w->k);
  constexpr int64_t kBlock = block_groups(F::kFormat);
  const int64_t n_blocks = divide_up(n_groups, kBlock);
  // several blocks of rows or passes over columns use a stretch of weights while it is in cache
  const bool once = last_block - first_block == 1 && vectors_of(job.m) * kLanes >= kPanel &&
                    (job.m == 1 || F::kSteps == 1);
  const int64_t stretch = once ? n_blocks : kStretchGroups / kBlock;
  int64_t first_row_of[kTileBlocks + 1];
  for (int64_t i = 0; i <= last_block - first_block; ++i) {
    first_row_of[i] = row_block_begin(job.m, first_block + i);
  }
  Reader reader{nullptr, stretch * kBlock * kGroupBytes, 0, last_block - first_block, 0};
  while (2 << reader.log_shares <= reader.n_blocks) ++reader.log_shares;
  for (int64_t begin = 0; begin < n_blocks; begin += stretch) {
    const int64_t end = begin + stretch < n_blocks ? begin + stretch : n_blocks;
    reader.stretch = panel + begin * kBlock * kGroupBytes;
    for (reader.block = 0; reader.block < reader.n_blocks; ++reader.block) {
      const int64_t first_row = first_row_of[reader.block];
      const int64_t n_rows = first_row_of[reader.block + 1] - first_row;
      const ActiveGroups* active = job.active ? job.active + first_block + reader.block : nullptr;
      if (active != nullptr && active->groups == nullptr) active = nullptr;
      sum_row_block<F>(job, panel, n_groups, begin, end, first_row, n_rows, first_row_of[0], column,
                       width, active, reader, tile);
    }
  }
}

inline Vf activate(Vf y, int64_t activation) {
  if (activation == kRelu) return vmax(y, vzero());
  if (activation == kGelu) {
    float lane[kLanes];
    vstore(lane, y);
    for (float& x : lane) x = 0.5f * x * (1.0f + __builtin_erff(x * 0.70710678118654752f));
    return vload(lane);
  }
  return y;
}

// What is done to the totals of n columns of a panel before they go where they belong.
struct Epilogue {
  static constexpr int64_t kVectors = kPanel / kLanes;
  Vf scale[kVectors], bias[kVectors];
  bool has_scale, has_bias;
  int64_t activation;

  Epilogue(const LinearJob& job, int64_t column, int64_t n)
      : has_scale(job.w->scale != nullptr),
        has_bias(job.w->bias != nullptr),
        activation(job.output.activation) {
    for (int64_t c = 0; c < n; c += kLanes) {
      if (has_scale) scale[c / kLanes] = vload_tail(job.w->scale + column + c, n - c);
      if (has_bias) bias[c / kLanes] = vload_tail(job.w->bias + column + c, n - c);
    }
  }

  // Totals from column c of the panel's on.
  inline Vf apply(int64_t c, Vf y) const {
    if (has_scale) y = vmul(y, scale[c / kLanes]);
    if (has_bias) y = vadd(y, bias[c / kLanes]);
    return activate(y, activation);
  }
};

// n columns of k or v of one row, from column `within` of a head on: head by head to the cache.
inline void put_kv(const Output& o, int64_t part, int64_t j, int64_t head, int64_t within,
                   const float* y, int64_t n) {
  uint8_t* row = part == 1 ? o.k_row[j] : o.v_row[j];
  while (n > 0) {
    const int64_t take = o.head_size - within < n ? o.head_size - within : n;
    const int64_t at = head * o.head_stride + within;
    for (int64_t c = 0; c < take; c += kLanes) {
      const int64_t lanes = take - c < kLanes ? take - c : kLanes;
      const Vf value = vload_n(y + c, lanes);
      if (o.kv_dtype == kBFloat16) {
        vstore_n(reinterpret_cast<uint16_t*>(row) + at + c, value, lanes);
      } else if (o.kv_dtype == kFloat16) {
        vstore_n(reinterpret_cast<Half*>(row) + at + c, value, lanes);
      } else {
        vstore_n(reinterpret_cast<float*>(row) + at + c, value, lanes);
      }
    }
    ++head, within = 0, y += take, n -= take;
  }
}

// The best entries of a panel. `best` of earlier panels of this thread decides whether they matter;
// one that equals it may hold the lower token, since threads take panels in any order.
inline HeadPart head_part(const float* y, int64_t n, int64_t first_token, bool log_sum,
                          float* best) {
  HeadPart part{-__builtin_inff(), -__builtin_inff(), 0.0f, -1};
  Vf largest = vset(-__builtin_inff());
  for (int64_t c = 0; c + kLanes <= n; c += kLanes) largest = vmax(largest, vload(y + c));
  part.top = vmaximum(largest);
  for (int64_t c = n / kLanes * kLanes; c < n; ++c) part.top = y[c] > part.top ? y[c] : part.top;
  if (part.top >= *best) {
    *best = part.top;
    for (int64_t c = 0; c < n; ++c) {
      if (part.token < 0 && y[c] == part.top) {
        part.token = static_cast<int32_t>(first_token + c);
      } else if (y[c] > part.second) {
        part.second = y[c];
      }
    }
  }
  if (log_sum) {
    const Vf shift = vset(-part.top);
    Vf sum = vzero();
    for (int64_t c = 0; c + kLanes <= n; c += kLanes) {
      sum = vadd(vexp(vadd(vload(y + c), shift)), sum);
    }
    if (n % kLanes) {
      float lane[kLanes];
      for (float& x : lane) x = -__builtin_inff();
      vstore_n(lane, vadd(vload_n(y + n / kLanes * kLanes, n % kLanes), shift), n % kLanes);
      sum = vadd(vexp(vload(lane)), sum);
    }
    part.sum = vsum(sum);
  }
  return part;
}

// Rows by which a linear that adds to its output fetches it ahead.
constexpr int64_t kRowsAhead = 4;

// Totals of rows [first_row, last_row) to where they go.
inline void sink(const LinearJob& job, int64_t panel, int64_t column, int64_t width,
                 int64_t first_row, int64_t last_row, float* tile, int64_t thread) {
  const Output& o = job.output;
  const int64_t first_column = panel * kPanel + column;
  int64_t n = job.w->n - first_column < width ? job.w->n - first_column : width;
  int64_t part = 0, at = first_column, head = 0, within = 0;
  if (o.sink == Sink::kQkv) {
    const int64_t stacked = round_up(o.hidden, kPanel);
    part = first_column / stacked;
    at = first_column % stacked;
    n = o.hidden - at < width ? o.hidden - at : width;
    head = at / o.head_size, within = at % o.head_size;
  }
  if (n <= 0) return;
  const Epilogue epilogue(job, first_column, n);
  const bool is_add = o.sink == Sink::kAddRows;
  // float32 goes straight to its place, all else is finished in the tile first
  const bool straight = is_add || (o.sink == Sink::kStore && o.dtype == kFloat32) ||
                        (o.sink == Sink::kQkv && part == 0);
  for (int64_t j = first_row; j < last_row; ++j) {
    float* y = tile + (j - first_row) * kPanel + column;
    if (straight) {
      float* out = o.out + (is_add ? o.rows[j] : j) * o.ld + at;
      if (is_add && j + kRowsAhead < last_row) {
        // rows lie far apart, and the hardware does not foresee that far
        const float* later = o.out + o.rows[j + kRowsAhead] * o.ld + at;
        for (int64_t c = 0; c < n; c += 16) prefetch(later + c);
      }
      for (int64_t c = 0; c < n; c += kLanes) {
        Vf value = epilogue.apply(c, vload(y + c));
        if (is_add) value = vadd(value, vload_tail(out + c, n - c));
        vstore_tail(out + c, value, n - c);
      }
      continue;
    }
    for (int64_t c = 0; c < n; c += kLanes) vstore(y + c, epilogue.apply(c, vload(y + c)));
    if (o.sink == Sink::kHead) {
      o.parts[panel * job.m + j] = head_part(y, n, first_column, o.log_sum, job.best[thread] + j);
    } else if (o.sink == Sink::kQkv) {
      put_kv(o, part, j, head, within, y, n);
    } else if (o.sink == Sink::kInput) {
      put_bf16(y, n, reinterpret_cast<uint16_t*>(o.input.data + j * o.input.stride) + at);
    } else if (o.dtype == kBFloat16) {
      narrow_as(y, n, reinterpret_cast<uint16_t*>(o.out) + j * o.ld + at);
    } else {
      narrow_as(y, n, reinterpret_cast<Half*>(o.out) + j * o.ld + at);
    }
  }
}

inline void linear(const LinearJob& job, int64_t item, int64_t thread) {
  const int64_t panel = job.first_panel + item / job.splits;
  const int64_t width = kPanel / job.splits, column = item % job.splits * width;
  float* tile = job.tiles[thread];
  if (job.plain.data != nullptr) {
    sum_plain(job, panel, column, width, tile);
    return sink(job, panel, column, width, 0, job.m, tile, thread);
  }
  const uint8_t* at = job.w->data + panel * panel_bytes(job.format, job.w->k);
  const int64_t n_blocks = row_block_count(job.m);
  // so many rows that their totals stay in the first cache
  for (int64_t first = 0; first < n_blocks; first += kTileBlocks) {
    const int64_t last = first + kTileBlocks < n_blocks ? first + kTileBlocks : n_blocks;
    if (job.format == kF32) {
      sum_panel<FormatF32>(job, at, first, last, column, width, tile);
    } else if (job.format == kBF16) {
      sum_panel<FormatBF16>(job, at, first, last, column, width, tile);
    } else {
      sum_panel<FormatI8>(job, at, first, last, column, width, tile);
    }
    sink(job, panel, column, width, row_block_begin(job.m, first), row_block_begin(job.m, last),
         tile, thread);
  }
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
