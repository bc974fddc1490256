// Linears over packed or plain weights for any number of rows: sums, then bias, activation, sink.
#pragma once

#include "body_convert.h"
#include "body_math.h"
#include "body_sums.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

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

// Scale, bias and activation of up to kLanes totals.
inline Vf finish(const LinearJob& job, int64_t column, int64_t n, Vf y) {
  const Matrix& w = *job.w;
  if (w.scale != nullptr) y = vmul(y, vload_tail(w.scale + column, n));
  if (w.bias != nullptr) y = vadd(y, vload_tail(w.bias + column, n));
  return activate(y, job.output.activation);
}

// n columns from `column` of k or v of one row: head by head to the cache.
inline void put_kv(const Output& o, int64_t part, int64_t j, int64_t column, const float* y,
                   int64_t n) {
  uint8_t* row = part == 1 ? o.k_row[j] : o.v_row[j];
  while (n > 0) {
    const int64_t head = column / o.head_size, within = column % o.head_size;
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
    column += take, y += take, n -= take;
  }
}

// The best entries of a panel. `best` of earlier panels of this thread decides whether they matter:
// a thread meets panels in ascending order, so an equal one later loses to the lower token.
inline HeadPart head_part(const float* y, int64_t n, int64_t first_token, bool log_sum,
                          float* best) {
  HeadPart part{-__builtin_inff(), -__builtin_inff(), 0.0f, -1};
  Vf largest = vset(-__builtin_inff());
  for (int64_t c = 0; c + kLanes <= n; c += kLanes) largest = vmax(largest, vload(y + c));
  part.top = vmaximum(largest);
  for (int64_t c = n / kLanes * kLanes; c < n; ++c) part.top = y[c] > part.top ? y[c] : part.top;
  if (part.top > *best) {
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
    Vf sum = vzero();
    for (int64_t c = 0; c < n; c += kLanes) {
      const int64_t lanes = n - c < kLanes ? n - c : kLanes;
      float shifted[kLanes];
      for (float& x : shifted) x = -__builtin_inff();
      vstore_n(shifted, vadd(vload_n(y + c, lanes), vset(-part.top)), lanes);
      sum = vadd(vexp(vload(shifted)), sum);
    }
    part.sum = vsum(sum);
  }
  return part;
}

// n totals of row j to a row-major output in its own dtype.
template <class T>
void store_as(const LinearJob& job, int64_t j, int64_t column, int64_t n, const float* y) {
  T* out = reinterpret_cast<T*>(job.output.out) + j * job.output.ld + column;
  for (int64_t c = 0; c < n; c += kLanes) {
    const Vf value = finish(job, column + c, n - c, vload(y + c));
    if (n - c >= kLanes) {
      vstore(out + c, value);
    } else {
      vstore_n(out + c, value, n - c);
    }
  }
}

// Totals of rows [first_row, last_row) to where they go.
inline void sink(const LinearJob& job, int64_t panel, int64_t column, int64_t width,
                 int64_t first_row, int64_t last_row, float* tile, int64_t thread) {
  const Output& o = job.output;
  const int64_t first_column = panel * kPanel + column;
  int64_t n = job.w->n - first_column < width ? job.w->n - first_column : width;
  int64_t part = 0, at = first_column;
  if (o.sink == Sink::kQkv) {
    const int64_t stacked = round_up(o.hidden, kPanel);
    part = first_column / stacked;
    at = first_column % stacked;
    n = o.hidden - at < width ? o.hidden - at : width;
  }
  for (int64_t j = first_row; n > 0 && j < last_row; ++j) {
    float* y = tile + (j - first_row) * kPanel + column;
    if (o.sink == Sink::kHead || part > 0) {
      for (int64_t c = 0; c < n; c += kLanes) {
        vstore(y + c, finish(job, first_column + c, n - c, vload(y + c)));
      }
      if (part > 0) {
        put_kv(o, part, j, at, y, n);
      } else {
        o.parts[panel * job.m + j] = head_part(y, n, first_column, o.log_sum, job.best[thread] + j);
      }
      continue;
    }
    if (o.sink == Sink::kStore && o.dtype != kFloat32) {
      if (o.dtype == kBFloat16) {
        store_as<uint16_t>(job, j, at, n, y);
      } else {
        store_as<Half>(job, j, at, n, y);
      }
      continue;
    }
    const bool add = o.sink == Sink::kAddRows;
    float* out = o.out + (add ? o.rows[j] : j) * o.ld + at;
    for (int64_t c = 0; c < n; c += kLanes) {
      Vf value = finish(job, first_column + c, n - c, vload(y + c));
      if (add) value = vadd(value, vload_tail(out + c, n - c));
      vstore_tail(out + c, value, n - c);
    }
  }
}

inline void linear(const LinearJob& job, int64_t item, int64_t thread) {
  int64_t panel = job.first_panel + item, width = kPanel, column = 0;
  if (item >= job.n_whole) {
    const int64_t part = item - job.n_whole;
    panel = job.first_panel + job.n_whole + part / job.splits;
    width = kPanel / job.splits;
    column = part % job.splits * width;
  }
  float* tile = job.tiles[thread];
  if (job.plain.data != nullptr) {
    if (job.format == kF32) {
      sum_plain<FormatF32>(job, panel, column, width, job.blocks[thread], tile);
    } else {
      sum_plain<FormatBF16>(job, panel, column, width, job.blocks[thread], tile);
    }
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
