// Weight formats that every vector width computes alike, step by step through the inputs of a
// group. A SIMD header gives the operations that they are written in, or a format of its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

inline Vf set_float(const uint8_t* p) {
  float x;
  std::memcpy(&x, p, sizeof(x));
  return vset(x);
}

struct FormatF32 {
  static constexpr int64_t kFormat = kF32;
  static constexpr int kSteps = 1;
  using Sum = Vf;
  static Sum zero(int32_t) { return vzero(); }
  template <int kStep>
  static Vf weights(const uint8_t* p) {
    return vload(reinterpret_cast<const float*>(p));
  }
  template <int kStep>
  static Vf factor(const uint8_t* p) {
    return set_float(p);
  }
  static Sum add(Sum sum, Vf w, Vf a) { return vfma(a, w, sum); }
  static Vf total(Sum sum) { return sum; }
};

// A word of weights by a word of a row, all of its inputs in one step.
struct WholeWords {
  static constexpr int kSteps = 1;
  template <int kStep>
  static Vi weights(const uint8_t* p) {
    return load_bytes(p);
  }
  template <int kStep>
  static Vi factor(const uint8_t* p) {
    return word(p);
  }
};

#if defined(DYNKERN_BF16)
struct FormatBF16 : WholeWords {
  static constexpr int64_t kFormat = kBF16;
  using Sum = Vf;
  static Sum zero(int32_t) { return vzero(); }
  static Sum add(Sum sum, Vi w, Vi a) { return add_pairs(sum, w, a); }
  static Vf total(Sum sum) { return sum; }
};
#else
// Step 0: the lower of two inputs, step 1: the upper.
struct FormatBF16 {
  static constexpr int64_t kFormat = kBF16;
  static constexpr int kSteps = 2;
  using Sum = Vf;
  static Sum zero(int32_t) { return vzero(); }
  template <int kStep>
  static Vi half(Vi words) {
    return bf16_half<kStep>(words);
  }
  template <int kStep>
  static Vf weights(const uint8_t* p) {
    return (Vf)half<kStep>(load_bytes(p));
  }
  template <int kStep>
  static Vf factor(const uint8_t* p) {
    return (Vf)half<kStep>(word(p));
  }
  static Vf wide_factor(const uint8_t* p) { return set_float(p); }
  static Sum add(Sum sum, Vf w, Vf a) { return vfma(a, w, sum); }
  static Vf total(Sum sum) { return sum; }
};
#endif

#if defined(DYNKERN_VNNI)
struct FormatI8 : WholeWords {
  static constexpr int64_t kFormat = kI8;
  using Sum = Vi;
  static Sum zero(int32_t correction) { return set_words(correction); }
  static Sum add(Sum sum, Vi w, Vi a) { return add_products(sum, w, a); }
  static Vf total(Sum sum) { return to_floats(sum); }
};
#elif !defined(DYNKERN_OWN_I8)
// Step 0: inputs 0 and 2 of four, step 1: inputs 1 and 3.
struct FormatI8 {
  static constexpr int64_t kFormat = kI8;
  static constexpr int kSteps = 2;
  using Sum = Vi;
  static Sum zero(int32_t correction) { return set_words(correction); }
  template <int kStep>
  static Vi half(Vi words) {
    return signed_half<kStep>(words);
  }
  template <int kStep>
  static Vi weights(const uint8_t* p) {
    return unsigned_half<kStep>(load_bytes(p));
  }
  template <int kStep>
  static Vi factor(const uint8_t* p) {
    return half<kStep>(word(p));
  }
  static Vi wide_factor(const uint8_t* p) { return word(p); }
  static Sum add(Sum sum, Vi w, Vi a) { return add_products(sum, w, a); }
  static Vf total(Sum sum) { return to_floats(sum); }
};
#endif

// The halves of n words of a row, as steps read them: those of step 1 lie kPlane bytes behind those
// of step 0.
template <class F>
void widen(const uint8_t* x, int64_t n, uint8_t* wide) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vi words = load_words_n(x + i * 4, n - i);
    store_words(wide + i * 4, F::template half<0>(words));
    store_words(wide + kPlane + i * 4, F::template half<1>(words));
  }
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
