// Vectors of 8 floats and the weight formats on AVX2 with FMA; with DYNKERN_VNNI, the instruction
// of AVX-VNNI. Included after the target pragma of a translation unit.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace dynkern {
namespace DYNKERN_ISA {

using Vf = __m256;
using Vi = __m256i;
constexpr int64_t kLanes = 8;
// Vectors of columns that the sums of so many rows take at a time: 12 sums leave 4 of the 16
// registers to weights and factors, 8 hide the latency of an addition. One row goes through all 64
// columns, so that weights are read in the order in which they lie.
constexpr int vectors_of(int64_t rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }

inline Vi first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vf vzero() { return _mm256_setzero_ps(); }
inline Vf vset(float x) { return _mm256_set1_ps(x); }
inline Vf vload(const float* p) { return _mm256_loadu_ps(p); }
inline Vf vload_n(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
inline void vstore(float* p, Vf x) { _mm256_storeu_ps(p, x); }
inline void vstore_n(float* p, Vf x, int64_t n) { _mm256_maskstore_ps(p, first(n), x); }
inline Vf vfma(Vf a, Vf b, Vf c) { return _mm256_fmadd_ps(a, b, c); }
inline Vf vadd(Vf a, Vf b) { return _mm256_add_ps(a, b); }
inline Vf vmul(Vf a, Vf b) { return _mm256_mul_ps(a, b); }
inline Vf vmax(Vf a, Vf b) { return _mm256_max_ps(a, b); }
inline Vf vabs(Vf a) { return _mm256_andnot_ps(vset(-0.0f), a); }
inline float vsum(Vf a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float vmaximum(Vf a) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline Vf vraise(Vf p, Vf t) {  // p * 2^n, n in the low bits of t
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
inline Vf vat_least(Vf x, float least, Vf y) {  // y where x >= least, else 0
  return _mm256_and_ps(_mm256_cmp_ps(x, vset(least), _CMP_GE_OQ), y);
}
// Lowest lane that equals x, or kLanes.
inline int64_t vfind(Vf a, float x) {
  const int mask = _mm256_movemask_ps(_mm256_cmp_ps(a, vset(x), _CMP_EQ_OQ));
  return mask ? __builtin_ctz(static_cast<unsigned>(mask)) : kLanes;
}

inline Vf vload(const uint16_t* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Vf vload_n(const uint16_t* p, int64_t n) {
  uint16_t padded[8] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * 2);
  return vload(padded);
}
// 16 bfloat16: those at even places, those at odd ones.
inline void vload_pairs(const uint16_t* p, Vf* even, Vf* odd) {
  const Vi x = _mm256_loadu_si256(reinterpret_cast<const Vi*>(p));
  *even = _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
  *odd = _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
}
// Lane i of the result is the sum of x[i].
inline Vf vsum_each(const Vf (&x)[8]) {
  const Vf low = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
  const Vf high = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                       _mm256_permute2f128_ps(low, high, 0x31));
}
// x[i][j] becomes x[j][i].
inline void vtranspose(Vi (&x)[8]) {
  Vi pair[8], four[8];
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
    pair[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    four[i] = _mm256_unpacklo_epi64(pair[i], pair[i + 2]);
    four[i + 1] = _mm256_unpackhi_epi64(pair[i], pair[i + 2]);
    four[i + 2] = _mm256_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    four[i + 3] = _mm256_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    x[j] = _mm256_permute2x128_si256(four[j], four[4 + j], 0x20);
    x[4 + j] = _mm256_permute2x128_si256(four[j], four[4 + j], 0x31);
  }
}
// Round to nearest even.
inline __m128i to_bf16(Vf x) {
  const Vi bits = _mm256_castps_si256(x);
  const Vi odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const Vi up = _mm256_srli_epi32(
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
}
inline void vstore(uint16_t* p, Vf x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(x));
}
inline void vstore_n(uint16_t* p, Vf x, int64_t n) {
  uint16_t all[8];
  vstore(all, x);
  std::memcpy(p, all, static_cast<size_t>(n) * 2);
}
inline Vf vload(const Half* p) {
  const Vi x = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const Vi magnitude = _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x7fff)), 13);
  const Vi sign = _mm256_slli_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0x8000)), 16);
  // 2^112 rebiases the exponent, subnormals included; infinities and NaN keep theirs
  const Vf y = _mm256_mul_ps(_mm256_castsi256_ps(magnitude), vset(0x1p112f));
  const Vi special = _mm256_and_si256(_mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x0f7fffff)),
                                      _mm256_set1_epi32(0x7f800000));
  return _mm256_or_ps(y, _mm256_castsi256_ps(_mm256_or_si256(sign, special)));
}
inline Vf vload_n(const Half* p, int64_t n) {
  Half padded[8] = {};
  std::memcpy(padded, p, static_cast<size_t>(n) * 2);
  return vload(padded);
}
// Nearest integers, |x| < 128, as int8; returns their sum.
inline int32_t vstore_i8(uint8_t* p, Vf x) {
  const Vi rounded = _mm256_cvtps_epi32(x);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  const __m128i four = _mm_madd_epi16(words, _mm_set1_epi16(1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) {  // to the second cache
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

// The indices of non-zero words among 8, appended to `out`; returns how many.
inline int64_t append_nonzero(Vi words, uint32_t first_index, uint32_t* out) {
  const Vi zero = _mm256_cmpeq_epi32(words, _mm256_setzero_si256());
  unsigned mask = ~static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(zero))) & 0xff;
  int64_t n = 0;
  for (; mask; mask &= mask - 1) {
    out[n++] = first_index + static_cast<uint32_t>(__builtin_ctz(mask));
  }
  return n;
}
inline Vi load_words(const uint32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const Vi*>(p));
}
inline void store_words(uint8_t* p, Vi x) { _mm256_storeu_si256(reinterpret_cast<Vi*>(p), x); }
inline Vi or_words(Vi a, Vi b) { return _mm256_or_si256(a, b); }

inline Vi load_bytes(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const Vi*>(p));
}
inline Vi load_words_n(const uint8_t* p, int64_t n) {  // zeros behind n words
  return n >= kLanes ? load_bytes(p)
                     : _mm256_maskload_epi32(reinterpret_cast<const int*>(p), first(n));
}
inline Vi set_words(int32_t x) { return _mm256_set1_epi32(x); }
inline Vi word(const uint8_t* p) { return set_words(*reinterpret_cast<const int32_t*>(p)); }

// What body_format.h is written in.
template <int kStep>
inline Vi bf16_half(Vi x) {
  return kStep == 0 ? _mm256_slli_epi32(x, 16)
                    : _mm256_and_si256(x, set_words(static_cast<int>(0xffff0000)));
}
#if defined(DYNKERN_VNNI)
inline Vi add_products(Vi sum, Vi w, Vi a) {
  // {vex}: without it an assembler may take the encoding of AVX-512, which these processors lack
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
  return sum;
}
#else
template <int kStep>
inline Vi signed_half(Vi x) {
  return _mm256_srai_epi16(kStep == 0 ? _mm256_slli_epi16(x, 8) : x, 8);
}
template <int kStep>
inline Vi unsigned_half(Vi x) {
  return kStep == 0 ? _mm256_and_si256(x, _mm256_set1_epi16(0xff)) : _mm256_srli_epi16(x, 8);
}
inline Vi add_products(Vi sum, Vi w, Vi a) {
  // GCC 12 would add products of both steps first and keep none of 12 sums in a register: 112
  // instead of 127 GOP/s of a core
  Vi product;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(w), "x"(a));
  return sum;
}
#endif
inline Vf to_floats(Vi x) { return _mm256_cvtepi32_ps(x); }

}  // namespace DYNKERN_ISA
}  // namespace dynkern
