// Vectors of 4 floats and the weight formats in compiler vectors: SSE2 on x86-64, NEON on aarch64.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace dynkern {
namespace DYNKERN_ISA {

typedef float Vf __attribute__((vector_size(16)));
typedef int32_t Vi __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
// Vectors of columns that the sums of so many rows take at a time: at most 12 sums, since SSE2 has
// 16 registers.
constexpr int vectors_of(int64_t rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }

template <class To, class From>
inline To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits");
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

inline Vf vset(float x) { return Vf{x, x, x, x}; }
inline Vf vzero() { return vset(0.0f); }
inline Vf vload(const float* p) {
  Vf x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline Vf vload_n(const float* p, int64_t n) {
  Vf x = vzero();
  std::memcpy(&x, p, static_cast<size_t>(n) * 4);
  return x;
}
inline void vstore(float* p, Vf x) { std::memcpy(p, &x, sizeof(x)); }
inline void vstore_n(float* p, Vf x, int64_t n) { std::memcpy(p, &x, static_cast<size_t>(n) * 4); }
#if defined(__aarch64__)
inline Vf vfma(Vf a, Vf b, Vf c) {
  return (Vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
#else
inline Vf vfma(Vf a, Vf b, Vf c) { return a * b + c; }
#endif
inline Vf vadd(Vf a, Vf b) { return a + b; }
inline Vf vmul(Vf a, Vf b) { return a * b; }
inline Vf vmax(Vf a, Vf b) { return a > b ? a : b; }
inline Vf vabs(Vf a) { return bits<Vf>(bits<Vi>(a) & 0x7fffffff); }
inline float vsum(Vf a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline float vmaximum(Vf a) {
  const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}
inline Vf vraise(Vf p, Vf t) {  // p * 2^n, n in the low bits of t
  return bits<Vf>(bits<Vi>(p) + (bits<Vi>(t) << 23));
}
inline Vf vat_least(Vf x, float least, Vf y) {  // y where x >= least, else 0
  return x >= vset(least) ? y : vzero();
}
// Lowest lane that equals x, or kLanes.
inline int64_t vfind(Vf a, float x) {
  for (int64_t i = 0; i < kLanes; ++i) {
    if (a[i] == x) return i;
  }
  return kLanes;
}

inline Vf vload_n(const uint16_t* p, int64_t n) {
  Vi x = {};
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return bits<Vf>(x);
}
inline Vf vload(const uint16_t* p) { return vload_n(p, kLanes); }
// 8 bfloat16: those at even places, those at odd ones.
inline void vload_pairs(const uint16_t* p, Vf* even, Vf* odd) {
  Vi x;
  std::memcpy(&x, p, sizeof(x));
  *even = bits<Vf>(x << 16);
  *odd = bits<Vf>(x & static_cast<int32_t>(0xffff0000));
}
// Lane i of the result is the sum of x[i].
inline Vf vsum_each(const Vf (&x)[4]) { return Vf{vsum(x[0]), vsum(x[1]), vsum(x[2]), vsum(x[3])}; }
// x[i][j] becomes x[j][i].
inline void vtranspose(Vi (&x)[4]) {
  const Vi a = x[0], b = x[1], c = x[2], d = x[3];
  for (int i = 0; i < 4; ++i) x[i] = Vi{a[i], b[i], c[i], d[i]};
}
// Round to nearest even.
inline void vstore_n(uint16_t* p, Vf x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const auto word = bits<uint32_t>(static_cast<float>(x[i]));
    p[i] = static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
}
inline void vstore(uint16_t* p, Vf x) { vstore_n(p, x, kLanes); }
inline Vf vload_n(const Half* p, int64_t n) {
  Vi magnitude = {}, sign = {};
  for (int64_t i = 0; i < n; ++i) {
    magnitude[i] = (p[i].bits & 0x7fff) << 13;
    sign[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i].bits & 0x8000) << 16);
  }
  // 2^112 rebiases the exponent, subnormals included; infinities and NaN keep theirs
  const Vi special = (magnitude > 0x0f7fffff) & 0x7f800000;
  return bits<Vf>(bits<Vi>(bits<Vf>(magnitude) * 0x1p112f) | special | sign);
}
inline Vf vload(const Half* p) { return vload_n(p, kLanes); }
// Nearest integers, |x| < 128, as int8; returns their sum.
inline int32_t vstore_i8(uint8_t* p, Vf x) {
  // adding 1.5 * 2^23 rounds to even and leaves the integer in the low bits
  const Vi rounded = bits<Vi>(x + 12582912.0f) - 0x4b400000;
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) {
    p[i] = static_cast<uint8_t>(rounded[i]);
    sum += rounded[i];
  }
  return sum;
}

inline void prefetch(const void* p) { __builtin_prefetch(p); }
inline void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }  // to the second cache

// The indices of non-zero words among 4, appended to `out`; returns how many.
inline int64_t append_nonzero(Vi words, uint32_t first_index, uint32_t* out) {
  int64_t n = 0;
  for (int64_t i = 0; i < kLanes; ++i) {
    if (words[i]) out[n++] = first_index + static_cast<uint32_t>(i);
  }
  return n;
}
inline Vi load_words(const uint32_t* p) {
  Vi x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline void store_words(uint8_t* p, Vi x) { std::memcpy(p, &x, sizeof(x)); }
inline Vi or_words(Vi a, Vi b) { return a | b; }

inline Vi load_bytes(const uint8_t* p) {
  Vi x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline Vi load_words_n(const uint8_t* p, int64_t n) {  // zeros behind n words
  Vi x = {};
  std::memcpy(&x, p, static_cast<size_t>(n < kLanes ? n : kLanes) * 4);
  return x;
}
inline int32_t one_word(const uint8_t* p) {
  int32_t x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}
inline Vi set_words(int32_t x) { return Vi{x, x, x, x}; }
inline Vi word(const uint8_t* p) { return set_words(one_word(p)); }

// What body_format.h is written in.
template <int kStep>
inline Vi bf16_half(Vi x) {
  return kStep == 0 ? x << 16 : x & static_cast<int32_t>(0xffff0000);
}

#define DYNKERN_OWN_I8
struct FormatI8 {
  static constexpr int64_t kFormat = kI8;
  static constexpr int kSteps = 1;
  using Sum = Vi;
  struct Factor {
    int32_t value[4];
  };
  static Sum zero(int32_t correction) { return set_words(correction); }
  template <int kStep>
  static Vi weights(const uint8_t* p) {
    return load_bytes(p);
  }
  template <int kStep>
  static Factor factor(const uint8_t* p) {
    const int32_t x = one_word(p);
    return {{static_cast<int8_t>(x), static_cast<int8_t>(x >> 8), static_cast<int8_t>(x >> 16),
             static_cast<int8_t>(x >> 24)}};
  }
  static Sum add(Sum sum, Vi w, const Factor& a) {
    return sum + (((w & 0xff) * a.value[0] + (w >> 8 & 0xff) * a.value[1]) +
                  ((w >> 16 & 0xff) * a.value[2] + (w >> 24 & 0xff) * a.value[3]));
  }
  static Vf total(Sum sum) { return __builtin_convertvector(sum, Vf); }
};

}  // namespace DYNKERN_ISA
}  // namespace dynkern
