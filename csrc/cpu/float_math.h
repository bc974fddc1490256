// exp and log of floats as plain arithmetic: loops over them vectorise without -ffast-math.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef DYNKERN_ISA
#define DYNKERN_ISA portable
#endif

namespace dynkern {
namespace DYNKERN_ISA {

static inline uint32_t float_bits(float x) {
  uint32_t y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

static inline float bits_float(uint32_t x) {
  float y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// exp(x) to 2 ulp for x from -87.3 to 88; 0 below (and for -inf). Larger x and NaN: no meaning.
static inline float exp_approx(float x) {
  // masks, as a choice of floats may become a branch, which keeps loops from being vectorised
  const uint32_t in_range = 0u - static_cast<uint32_t>(x >= -87.3f);
  const float from = bits_float(float_bits(x) & in_range);
  // 2^n * exp(r) with |r| <= ln(2) / 2; n comes from adding 1.5 * 2^23, which rounds to an integer
  const float shifted = from * 1.44269504088896341f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  // n times the first constant is exact: without fma, too, r is as good as its last bit
  const float r = (from - n * 0.693359375f) + n * 2.12194440e-4f;
  // in pairs: a chain of products would wait for itself
  const float square = r * r;
  const float p = ((1.9875691500e-4f * r + 1.3981999507e-3f) * square +
                   (8.3334519073e-3f * r + 4.1665795894e-2f)) *
                      square +
                  (1.6666665459e-1f * r + 5.0000001201e-1f);
  const float y = p * square + r + 1.0f;
  return bits_float((float_bits(y) + (float_bits(shifted) << 23)) & in_range);
}

// log(x) to 2 ulp for normal, finite, positive x; anything else gives no meaningful value.
static inline float log_approx(float x) {
  // x = 2^e * (1 + z) with 1 + z from sqrt(1/2) to sqrt(2)
  const uint32_t shifted = float_bits(x) + (0x3f800000u - 0x3f3504f3u);
  const float e = static_cast<float>(static_cast<int32_t>(shifted >> 23) - 127);
  const float z = bits_float((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const float square = z * z;
  const float high =
      (7.0376836292e-2f * square + (1.1676998740e-1f - 1.1514610310e-1f * z)) * square +
      (1.4249322787e-1f - 1.2420140846e-1f * z);
  const float low = (2.0000714765e-1f - 1.6668057665e-1f * z) * square +
                    (3.3333331174e-1f - 2.4999993993e-1f * z);
  const float p = high * (square * square) + low;
  const float y = (p * z) * square - e * 2.12194440e-4f - 0.5f * square;
  return (z + y) + e * 0.693359375f;
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
