// Rows between dtypes.
#pragma once

#include "float_math.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

// To float16, nearest even, by integers: the same on every level.
inline Half to_half(float x) {
  const uint32_t word = float_bits(x), sign = word >> 16 & 0x8000;
  uint32_t magnitude = word & 0x7fffffff;
  if (magnitude >= 0x47800000) {  // 2^16 and beyond, NaN
    return {static_cast<uint16_t>(sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00))};
  }
  if (magnitude < 0x38800000) {
    // a float16 subnormal is a multiple of 2^-24, and so is the last bit of a number from 1/2 to 1
    const uint32_t shifted = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000;
    return {static_cast<uint16_t>(sign | shifted)};
  }
  magnitude += 0xc8000fff + (magnitude >> 13 & 1);  // exponent less 112, half of the last bit more
  return {static_cast<uint16_t>(sign | magnitude >> 13)};
}

inline void vstore_n(Half* p, Vf x, int64_t n) {
  float lane[kLanes];
  vstore(lane, x);
  for (int64_t i = 0; i < n; ++i) p[i] = to_half(lane[i]);
}
inline void vstore(Half* p, Vf x) { vstore_n(p, x, kLanes); }

template <class T>
void widen_as(const void* src, int64_t n, float* dst) {
  const auto* from = static_cast<const T*>(src);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) vstore(dst + c, vload(from + c));
  if (c < n) vstore_n(dst + c, vload_n(from + c, n - c), n - c);
}

inline void widen(const void* src, int64_t dtype, int64_t n, float* dst) {
  if (dtype == kBFloat16) return widen_as<uint16_t>(src, n, dst);
  if (dtype == kFloat16) return widen_as<Half>(src, n, dst);
  widen_as<float>(src, n, dst);
}

template <class T>
void add_as(const void* a, const void* b, int64_t n, float* dst) {
  const auto *x = static_cast<const T*>(a), *y = static_cast<const T*>(b);
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) vstore(dst + c, vadd(vload(x + c), vload(y + c)));
  if (c < n) vstore_n(dst + c, vadd(vload_n(x + c, n - c), vload_n(y + c, n - c)), n - c);
}

inline void add(const void* a, const void* b, int64_t dtype, int64_t n, float* dst) {
  if (dtype == kBFloat16) return add_as<uint16_t>(a, b, n, dst);
  if (dtype == kFloat16) return add_as<Half>(a, b, n, dst);
  add_as<float>(a, b, n, dst);
}

template <class T>
void narrow_as(const float* src, int64_t n, T* dst) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) vstore(dst + c, vload(src + c));
  if (c < n) vstore_n(dst + c, vload_n(src + c, n - c), n - c);
}

// By integers: the instruction for it takes subnormal numbers for zero.
inline void narrow_bf16(const float* src, int64_t n, uint16_t* dst) {
  for (int64_t c = 0; c < n; ++c) {
    const uint32_t word = float_bits(src[c]);
    const uint32_t nan = 0u - static_cast<uint32_t>((word & 0x7fffffff) > 0x7f800000);
    const uint32_t rounded = (word + 0x7fff + (word >> 16 & 1)) >> 16;
    dst[c] = static_cast<uint16_t>((rounded & ~nan) | ((word >> 16 | 0x40) & nan));
  }
}

inline void narrow(const float* src, int64_t dtype, int64_t n, void* dst) {
  if (dtype == kBFloat16) return narrow_bf16(src, n, static_cast<uint16_t*>(dst));
  if (dtype == kFloat16) return narrow_as(src, n, static_cast<Half*>(dst));
  narrow_as(src, n, static_cast<float*>(dst));
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
