// bfloat16 and half as their 16 bits, to and from float, the same on a GPU and in tests on a CPU.
#pragma once

#include "shim.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace dynkern {

struct Bf16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

DYNKERN_DEVICE uint32_t bits_of(float value) {
#ifdef __CUDACC__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

DYNKERN_DEVICE float float_of(uint32_t bits) {
#ifdef __CUDACC__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

DYNKERN_DEVICE float to_float(float value) { return value; }

DYNKERN_DEVICE float to_float(Bf16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}

DYNKERN_DEVICE float to_float(Half value) {
#ifdef __CUDACC__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t exponent = value.bits >> 10 & 31;
  const uint32_t mantissa = value.bits & 0x3ff;
  if (exponent == 31) return float_of(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
  const float small = static_cast<float>(mantissa) * 5.9604644775390625e-08f;
  return float_of(sign | bits_of(small));
#endif
}

template <typename T>
DYNKERN_DEVICE T from_float(float value);

template <>
DYNKERN_DEVICE float from_float<float>(float value) {
  return value;
}

// To the nearest, ties to even; NaN stays NaN.
template <>
DYNKERN_DEVICE Bf16 from_float<Bf16>(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return Bf16{0x7fc0};
  return Bf16{static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
DYNKERN_DEVICE Half from_float<Half>(float value) {
#ifdef __CUDACC__
  return Half{__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t size = bits & 0x7fffffff;
  if (size > 0x7f800000) return Half{0x7fff};
  // 65520 and more round to infinity
  if (size >= 0x477ff000) return Half{static_cast<uint16_t>(sign | 0x7c00)};
  if (size < 0x38800000) {
    // below the smallest normal half: adding 1/2 leaves the rounded count of 2^-24 in the last bits
    const float shifted = float_of(size) + 0.5f;
    return Half{static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000))};
  }
  const uint32_t rounded = size + 0xfff + (size >> 13 & 1) - 0x38000000;
  return Half{static_cast<uint16_t>(sign | rounded >> 13)};
#endif
}

}  // namespace dynkern
