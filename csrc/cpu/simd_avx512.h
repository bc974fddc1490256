// Vectors of 16 floats and the weight formats on AVX-512; with DYNKERN_BF16 and DYNKERN_VNNI, their
// instructions. Included after the target pragma of a translation unit.
#pragma once

// GCC's own headers take an undefined register as the value that a mask never picks
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstdint>

namespace dynkern {
namespace DYNKERN_ISA {

using Vf = __m512;
using Vi = __m512i;
constexpr int64_t kLanes = 16;
// Vectors of columns that the sums of so many rows take at a time: all 64 columns of a panel, so
// that weights are read in the order in which they lie; 6 rows have 24 sums in 32 registers.
constexpr int vectors_of(int64_t) { return 4; }

inline __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vf vzero() { return _mm512_setzero_ps(); }
inline Vf vset(float x) { return _mm512_set1_ps(x); }
inline Vf vload(const float* p) { return _mm512_loadu_ps(p); }
inline Vf vload_n(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline void vstore(float* p, Vf x) { _mm512_storeu_ps(p, x); }
inline void vstore_n(float* p, Vf x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
inline Vf vfma(Vf a, Vf b, Vf c) { return _mm512_fmadd_ps(a, b, c); }
inline Vf vadd(Vf a, Vf b) { return _mm512_add_ps(a, b); }
inline Vf vmul(Vf a, Vf b) { return _mm512_mul_ps(a, b); }
inline Vf vmax(Vf a, Vf b) { return _mm512_max_ps(a, b); }
inline Vf vabs(Vf a) { return _mm512_abs_ps(a); }
inline float vsum(Vf a) { return _mm512_reduce_add_ps(a); }
inline float vmaximum(Vf a) { return _mm512_reduce_max_ps(a); }
inline Vf vraise(Vf p, Vf t) {  // p * 2^n, n in the low bits of t
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
inline Vf vat_least(Vf x, float least, Vf y) {  // y where x >= least, else 0
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, vset(least), _CMP_GE_OQ), y);
}
// Lowest lane that equals x, or kLanes.
inline int64_t vfind(Vf a, float x) {
  const unsigned mask = _mm512_cmp_ps_mask(a, vset(x), _CMP_EQ_OQ);
  return mask ? __builtin_ctz(mask) : kLanes;
}

inline Vf from_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline Vf vload(const uint16_t* p) {
  return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vf vload_n(const uint16_t* p, int64_t n) {
  return from_bf16(_mm256_maskz_loadu_epi16(first(n), p));
}
// 32 bfloat16: those at even places, those at odd ones.
inline void vload_pairs(const uint16_t* p, Vf* even, Vf* odd) {
  const Vi x = _mm512_loadu_si512(p);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  *odd = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
inline Vf halve(Vf a, Vf b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
// Lane i of the result is the sum of x[i].
inline Vf vsum_each(const Vf (&x)[16]) {
  Vf pair[8], four[4];
  for (int i = 0; i < 8; ++i) {
    pair[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]),
                            _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                            _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  // four[i] holds quarter sums of x[4 i .. 4 i + 3] in each of its 128-bit parts
  return halve(halve(four[0], four[1]), halve(four[2], four[3]));
}
// x[i][j] becomes x[j][i].
inline void vtranspose(Vi (&x)[16]) {
  Vi pair[16], four[16];
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    pair[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    four[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
    four[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    four[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    four[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
  // part p of four[i + j] holds column 4 p + j of rows i to i + 3
  for (int j = 0; j < 4; ++j) {
    const Vi even_low = _mm512_shuffle_i32x4(four[j], four[4 + j], 0x88);
    const Vi odd_low = _mm512_shuffle_i32x4(four[j], four[4 + j], 0xdd);
    const Vi even_high = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0x88);
    const Vi odd_high = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0xdd);
    x[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    x[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    x[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    x[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
}
// Round to nearest even.
inline __m256i to_bf16(Vf x) {
#if defined(DYNKERN_BF16)
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const Vi bits = _mm512_castps_si512(x);
  const Vi odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const Vi up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
}
inline void vstore(uint16_t* p, Vf x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x));
}
inline void vstore_n(uint16_t* p, Vf x, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), to_bf16(x));
}
inline Vf vload(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vf vload_n(const Half* p, int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
}
// Nearest integers, |x| < 128, as int8; returns their sum.
inline int32_t vstore_i8(uint8_t* p, Vf x) {
  const Vi rounded = _mm512_cvtps_epi32(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(rounded));
  return _mm512_reduce_add_epi32(rounded);
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_far(const void* p) {  // to the second cache
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

// The indices of non-zero words among 16, appended to `out`; returns how many.
inline int64_t append_nonzero(Vi words, uint32_t first_index, uint32_t* out) {
  const Vi index =
      _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                       _mm512_set1_epi32(static_cast<int>(first_index)));
  const __mmask16 mask = _mm512_test_epi32_mask(words, words);
  // not a compressing store: that one takes a hundred cycles on Zen 4
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(mask, index));
  return __builtin_popcount(mask);
}
inline Vi load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline void store_words(uint8_t* p, Vi x) { _mm512_storeu_si512(p, x); }
inline Vi or_words(Vi a, Vi b) { return _mm512_or_si512(a, b); }

inline Vi load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Vi load_words_n(const uint8_t* p, int64_t n) {  // zeros behind n words
  return n >= kLanes ? load_bytes(p) : _mm512_maskz_loadu_epi32(first(n), p);
}
inline Vi set_words(int32_t x) { return _mm512_set1_epi32(x); }
inline Vi word(const uint8_t* p) { return set_words(*reinterpret_cast<const int32_t*>(p)); }

// What body_format.h is written in.
#if defined(DYNKERN_BF16)
inline Vf add_pairs(Vf sum, Vi w, Vi a) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)w); }
#else
template <int kStep>
inline Vi bf16_half(Vi x) {
  return kStep == 0 ? _mm512_slli_epi32(x, 16)
                    : _mm512_and_si512(x, set_words(static_cast<int>(0xffff0000)));
}
#endif

#if defined(DYNKERN_VNNI)
inline Vi add_products(Vi sum, Vi w, Vi a) {
  // the intrinsic makes GCC 12 spill half of 24 sums: 390 instead of 900 GOP/s a core
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
  return sum;
}
#else
template <int kStep>
inline Vi signed_half(Vi x) {
  return _mm512_srai_epi16(kStep == 0 ? _mm512_slli_epi16(x, 8) : x, 8);
}
template <int kStep>
inline Vi unsigned_half(Vi x) {
  return kStep == 0 ? _mm512_and_si512(x, _mm512_set1_epi16(0xff)) : _mm512_srli_epi16(x, 8);
}
inline Vi add_products(Vi sum, Vi w, Vi a) {
  Vi product;  // as with AVX2, GCC would add products first
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum), "=&v"(product) : "v"(w), "v"(a));
  return sum;
}
#endif
inline Vf to_floats(Vi x) { return _mm512_cvtepi32_ps(x); }

}  // namespace DYNKERN_ISA
}  // namespace dynkern
