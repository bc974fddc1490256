// What the single ops share: checked indices, strided rows, inputs of linears.
#pragma once

#include <algorithm>
#include <cstring>

#include "../common/abi.h"
#include "ops.h"
#include "steps.h"

namespace dynkern {

// Below so many multiplications or moved elements a job is over before another thread has begun.
constexpr int64_t kSharedWork = 1 << 15;

inline int64_t threads_for(int64_t n_threads, int64_t work) {
  return work < kSharedWork ? 1 : std::max<int64_t>(1, n_threads);
}

// Whether all of values[0, n) lie in [low, high]; sets the fault for the first that does not.
template <class T>
bool in_range(const char* argument, const T* values, int64_t n, int64_t low, int64_t high,
              Fault* fault) {
  for (int64_t i = 0; i < n; ++i) {
    if (values[i] < low || values[i] > high) {
      *fault = {argument, i, static_cast<int64_t>(values[i]), low, high};
      return false;
    }
  }
  return true;
}

// The rows that count: `count` or, for null, all of them.
inline bool read_count(const char* argument, const int32_t* count, int64_t capacity, int64_t* n,
                       Fault* fault) {
  *n = capacity;
  if (count == nullptr) return true;
  *n = *count;
  return in_range(argument, count, 1, 0, capacity, fault);
}

// Rows of a plain matrix.
struct Rows2d {
  const uint8_t* data;
  int64_t bytes;  // between rows
  int64_t dtype;

  Rows2d(const void* start, int64_t stride, int64_t kind)
      : data(static_cast<const uint8_t*>(start)),
        bytes(stride * element_bytes(kind)),
        dtype(kind) {}
  const uint8_t* row(int64_t i) const { return data + i * bytes; }
};

inline Linear plain_linear(const Matrix& w, const Rows2d& rows) {
  return {&w, kF32, {rows.data, rows.bytes, rows.dtype, 0}, 0, nullptr};
}

// Whether sums may read rows where they lie: as whole words, which float16 is not.
inline bool in_words(const Rows2d& x, int64_t k) {
  const bool even = k * element_bytes(x.dtype) % 4 == 0;
  return x.dtype != kFloat16 && even && x.bytes % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 4 == 0;
}

// Rows index[j] (j itself where it is null), first to first + m, as input of a plain linear.
template <class Index>
Input linear_input(const Kernels& kernel, Workspace& work, const Rows2d& x, int64_t k,
                   const Index* index, int64_t first, int64_t m) {
  if (index == nullptr && in_words(x, k)) {
    return {const_cast<uint8_t*>(x.row(first)), x.bytes, nullptr, nullptr, 0};
  }
  const int64_t stride = round_up(k * 4, 64);
  const Input input{work.x.need(m * stride), stride, nullptr, nullptr, 0};
  for (int64_t j = 0; j < m; ++j) {
    uint8_t* to = input.data + j * stride;
    const uint8_t* from = x.row(index ? static_cast<int64_t>(index[first + j]) : first + j);
    if (x.dtype == kFloat16) {
      kernel.widen(from, x.dtype, k, reinterpret_cast<float*>(to));
    } else {
      const auto bytes = static_cast<size_t>(k * element_bytes(x.dtype));
      std::memcpy(to, from, bytes);
      std::memset(to + bytes, 0, bytes % 4);  // an odd bfloat16 shares its word with a zero
    }
  }
  return input;
}

inline Input linear_input(const Kernels& kernel, Workspace& work, const Rows2d& x, int64_t k,
                          int64_t first, int64_t m) {
  return linear_input<int32_t>(kernel, work, x, k, nullptr, first, m);
}

// A vector in float32: itself, or its copy in `buffer`; null stays null.
inline const float* as_float(const Kernels& kernel, const void* values, int64_t dtype, int64_t n,
                             Buffer<float>& buffer) {
  if (values == nullptr || dtype == kFloat32) return static_cast<const float*>(values);
  float* copy = buffer.need(n);
  kernel.widen(values, dtype, n, copy);
  return copy;
}

}  // namespace dynkern
