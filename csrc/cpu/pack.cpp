#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../common/abi.h"
#include "guard.h"
#include "kernels.h"
#include "team.h"

namespace dynkern {
namespace {

template <class To, class From>
To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits");
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

uint16_t to_bf16(float x) {
  const auto word = bits<uint32_t>(x);
  if ((word & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(word >> 16 | 0x40);  // NaN
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

// k elements from `at` on.
void read_row(const void* src, int64_t dtype, int64_t at, int64_t k, float* row) {
  if (dtype == kFloat64) {
    for (int64_t c = 0; c < k; ++c) {
      row[c] = static_cast<float>(static_cast<const double*>(src)[at + c]);
    }
  } else {
    kernels().widen(static_cast<const uint8_t*>(src) + at * element_bytes(dtype), dtype, k, row);
  }
}

// Groups of one output, `stride` bytes apart; returns the scale of kI8.
float pack_row(const float* row, int64_t k, int64_t format, uint8_t* dst) {
  const int64_t n_groups = group_count(format, k);
  if (format == kF32) {
    for (int64_t c = 0; c < k; ++c) std::memcpy(dst + c * kGroupBytes, row + c, 4);
    return 1.0f;
  }
  if (format == kBF16) {
    for (int64_t g = 0; g < n_groups; ++g) {
      const uint16_t pair[2] = {to_bf16(row[2 * g]),
                                2 * g + 1 < k ? to_bf16(row[2 * g + 1]) : uint16_t{0}};
      std::memcpy(dst + g * kGroupBytes, pair, 4);
    }
    return 1.0f;
  }
  float top = 0.0f;
  for (int64_t c = 0; c < k; ++c) top = std::max(top, std::fabs(row[c]));
  const float inverse = top > 0.0f ? 127.0f / top : 0.0f;
  for (int64_t g = 0; g < n_groups; ++g) {
    uint8_t four[4];
    for (int64_t i = 0; i < 4; ++i) {
      const int64_t c = 4 * g + i;
      four[i] = static_cast<uint8_t>(c < k ? 128 + std::lrintf(row[c] * inverse) : 128);
    }
    std::memcpy(dst + g * kGroupBytes, four, 4);
  }
  return top / 127.0f;
}

}  // namespace

void unpack_row(const Matrix& w, int64_t format, int64_t n, float* dst) {
  const uint8_t* src = w.data + n / kPanel * panel_bytes(format, w.k) + n % kPanel * 4;
  if (format == kF32) {
    for (int64_t c = 0; c < w.k; ++c) std::memcpy(dst + c, src + c * kGroupBytes, 4);
  } else if (format == kBF16) {
    for (int64_t c = 0; c < w.k; ++c) {
      uint16_t value;
      std::memcpy(&value, src + c / 2 * kGroupBytes + c % 2 * 2, 2);
      dst[c] = bits<float>(static_cast<uint32_t>(value) << 16);
    }
  } else {
    for (int64_t c = 0; c < w.k; ++c) {
      dst[c] = static_cast<float>(src[c / 4 * kGroupBytes + c % 4] - 128) * w.scale[n];
    }
  }
}

}  // namespace dynkern

using namespace dynkern;

// Bytes of the panels of an [n, k] linear: a multiple of 64.
DYNKERN_EXPORT int64_t dynkern_cpu_packed_bytes(int64_t n, int64_t k, int64_t format) {
  return panel_count(n) * panel_bytes(format, k);
}

// src [n, k] with row_stride elements between rows; scale [n] is written for kI8. Returns 0 or
// kNoMemory.
DYNKERN_EXPORT int64_t dynkern_cpu_pack(const void* src, int64_t src_dtype, int64_t n, int64_t k,
                                        int64_t row_stride, int64_t format, uint8_t* dst,
                                        float* scale, int64_t n_threads) {
  return guarded([&] {
    TeamLock lock;
    parallel_for(n_threads, panel_count(n), [&](int64_t panel, int64_t) {
      std::vector<float> row(static_cast<size_t>(k));
      uint8_t* to = dst + panel * panel_bytes(format, k);
      for (int64_t c = 0; c < kPanel; ++c) {
        const int64_t i = panel * kPanel + c;
        if (i < n) {
          read_row(src, src_dtype, i * row_stride, k, row.data());
        } else {
          std::fill(row.begin(), row.end(), 0.0f);
        }
        const float own = pack_row(row.data(), k, format, to + c * 4);
        if (format == kI8 && i < n) scale[i] = own;
      }
    });
    return 0;
  });
}

// Rows of a packed linear back as float32 [n_rows, k].
DYNKERN_EXPORT void dynkern_cpu_unpack(const Matrix* w, int64_t format, const int64_t* rows,
                                       int64_t n_rows, float* dst) {
  for (int64_t r = 0; r < n_rows; ++r) unpack_row(*w, format, rows[r], dst + r * w->k);
}

// Asks for huge pages: streaming gigabytes through 4 KiB pages costs a tenth in address lookups.
DYNKERN_EXPORT void dynkern_cpu_advise(void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const auto first = (reinterpret_cast<uintptr_t>(start) + kPage - 1) / kPage * kPage;
  const auto last =
      (reinterpret_cast<uintptr_t>(start) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}
