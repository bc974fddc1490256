// exp, layer norm, and rows made ready for a linear.
#pragma once

#include "body_convert.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

// function(std::integral_constant<int, n>) for n rows of a block: sums are in registers, whose
// number must be known when compiling.
template <class Function>
void with_rows(int64_t n, Function&& function) {
  static_assert(kMaxRows == 6, "a case for each");
  switch (n) {
    case 1:
      return function(std::integral_constant<int, 1>());
    case 2:
      return function(std::integral_constant<int, 2>());
    case 3:
      return function(std::integral_constant<int, 3>());
    case 4:
      return function(std::integral_constant<int, 4>());
    case 5:
      return function(std::integral_constant<int, 5>());
    case 6:
      return function(std::integral_constant<int, 6>());
  }
}

// How far ahead of a list of groups weights are fetched; lists are padded by as many entries.
constexpr int64_t kListAhead = 8;
// Bytes by which a stream of weights is fetched ahead.
constexpr int64_t kStreamAhead = 4096;
// Stretches by which they are where several blocks of rows go through each, into the second cache:
// the first one has too few places for what is under way to keep memory busy. At 8 and 16 rows a
// pass of an OPT-125m in bfloat16 took 1.21 and 1.17 times as long with the next stretch fetched
// into that.
constexpr int64_t kStretchesAhead = 8;
// Stretches by which they are where each block of rows goes through columns in passes. What passes
// jump over the hardware does not foresee, so they fetch line after line, all together one stretch.
// On AVX2 (Zen 3) two threads so went through weights in memory 1.3 to 1.6 times as fast as with
// each pass fetching its own lines 4 KiB ahead; 2 to 4 stretches were up to a tenth slower than 1.
constexpr int64_t kPassesAhead = 1;

// exp(x) for x <= 88, to about 1 ulp; 0 below -87.3 (and for -inf).
inline Vf vexp(Vf x) {
  // 2^n * exp(r) with |r| <= ln(2) / 2; n comes from adding 1.5 * 2^23, which rounds to an integer
  const Vf clipped = vmax(x, vset(-88.0f));
  const Vf t = vfma(clipped, vset(1.44269504088896341f), vset(12582912.0f));
  const Vf n = vadd(t, vset(-12582912.0f));
  Vf r = vfma(n, vset(-0.693359375f), clipped);
  r = vfma(n, vset(2.12194440e-4f), r);
  Vf p = vset(1.9875691500e-4f);
  p = vfma(p, r, vset(1.3981999507e-3f));
  p = vfma(p, r, vset(8.3334519073e-3f));
  p = vfma(p, r, vset(4.1665795894e-2f));
  p = vfma(p, r, vset(1.6666665459e-1f));
  p = vfma(p, r, vset(5.0000001201e-1f));
  p = vfma(vmul(p, r), r, vadd(r, vset(1.0f)));
  return vat_least(x, -87.3f, vraise(p, t));
}

inline Vf vload_tail(const float* p, int64_t n) { return n >= kLanes ? vload(p) : vload_n(p, n); }
inline void vstore_tail(float* p, Vf x, int64_t n) {
  if (n >= kLanes) {
    vstore(p, x);
  } else {
    vstore_n(p, x, n);
  }
}

inline void layer_norm(const float* src, int64_t k, const float* weight, const float* bias,
                       float eps, float* dst) {
  // four sums side by side: one would wait for itself
  Vf sum[4] = {vzero(), vzero(), vzero(), vzero()};
  for (int64_t c = 0, i = 0; c < k; c += kLanes, i = (i + 1) & 3) {
    sum[i] = vadd(vload_tail(src + c, k - c), sum[i]);
  }
  const auto total = [&] { return vsum(vadd(vadd(sum[0], sum[1]), vadd(sum[2], sum[3]))); };
  const float mean = total() / static_cast<float>(k);
  for (Vf& s : sum) s = vzero();
  for (int64_t c = 0, i = 0; c < k; c += kLanes, i = (i + 1) & 3) {
    Vf centred = vadd(vload_tail(src + c, k - c), vset(-mean));
    if (k - c < kLanes) {  // lanes beyond the row are not -mean
      float lane[kLanes] = {};
      vstore_n(lane, centred, k - c);
      centred = vload(lane);
    }
    sum[i] = vfma(centred, centred, sum[i]);
  }
  const float rstd = 1.0f / __builtin_sqrtf(total() / static_cast<float>(k) + eps);
  for (int64_t c = 0; c < k; c += kLanes) {
    const int64_t n = k - c;
    Vf y = vmul(vadd(vload_tail(src + c, n), vset(-mean)), vset(rstd));
    const Vf w = weight ? vload_tail(weight + c, n) : vset(1.0f);
    y = vfma(y, w, bias ? vload_tail(bias + c, n) : vzero());
    vstore_tail(dst + c, y, n);
  }
}

inline void quantise_block(const float* src, int64_t n, uint8_t* dst, float* scale,
                           int32_t* correction) {
  Vf largest = vzero();
  for (int64_t c = 0; c < n; c += kLanes) {
    largest = vmax(largest, vabs(vload_tail(src + c, n - c)));
  }
  const float top = vmaximum(largest);
  const Vf inverse = vset(top > 0.0f ? 127.0f / top : 0.0f);
  int32_t sum = 0;
  for (int64_t c = 0; c < kScaleBlock; c += kLanes) {
    const Vf x = c < n ? vload_tail(src + c, n - c) : vzero();
    sum += vstore_i8(dst + c, vmul(x, inverse));
  }
  *scale = top / 127.0f;
  *correction = -128 * sum;
}

// n bfloat16 of a row of inputs; behind an odd one lies a zero.
inline void put_bf16(const float* src, int64_t n, uint16_t* dst) {
  narrow_as(src, n, dst);
  if (n % 2) dst[n] = 0;
}

inline void convert_row(const float* src, int64_t k, int64_t format, const Input& x, int64_t j) {
  uint8_t* dst = x.data + j * x.stride;
  if (format == kF32) {
    for (int64_t c = 0; c < k; c += kLanes) {
      vstore_tail(reinterpret_cast<float*>(dst) + c, vload_tail(src + c, k - c), k - c);
    }
  } else if (format == kBF16) {
    put_bf16(src, k, reinterpret_cast<uint16_t*>(dst));
  } else {
    for (int64_t block = 0; block < x.n_blocks; ++block) {
      const int64_t at = block * kScaleBlock;
      quantise_block(src + at, k - at < kScaleBlock ? k - at : kScaleBlock, dst + at,
                     x.scale + j * x.n_blocks + block, x.correction + j * x.n_blocks + block);
    }
  }
}

inline void to_input(const float* src, int64_t k, int64_t format, bool normalise,
                     const float* weight, const float* bias, float eps, float* temp, const Input& x,
                     int64_t j) {
  if (!normalise) {
    convert_row(src, k, format, x, j);
  } else if (format == kF32) {
    layer_norm(src, k, weight, bias, eps, reinterpret_cast<float*>(x.data + j * x.stride));
  } else {
    layer_norm(src, k, weight, bias, eps, temp);
    convert_row(temp, k, format, x, j);
  }
}

inline int64_t active_groups(const Input& x, int64_t format, int64_t k, int64_t begin, int64_t end,
                             uint32_t* groups, uint32_t* offsets) {
  const int64_t n = group_count(format, k), per_block = block_groups(format);
  int64_t found = 0, block = 0;
  for (int64_t g = 0; g < n; g += kLanes) {
    if (g % per_block == 0) offsets[block++] = static_cast<uint32_t>(found);
    Vi words = {};
    for (int64_t j = begin; j < end; ++j) {
      const auto* row = reinterpret_cast<const uint32_t*>(x.data + j * x.stride);
      if (n - g >= kLanes) {
        words = or_words(words, load_words(row + g));
      } else {
        uint32_t tail[kLanes] = {};
        for (int64_t i = 0; i < n - g; ++i) tail[i] = row[g + i];
        words = or_words(words, load_words(tail));
      }
    }
    found += append_nonzero(words, static_cast<uint32_t>(g), groups + found);
  }
  offsets[block] = static_cast<uint32_t>(found);
  // what is fetched ahead behind the end is something that was just used
  for (int64_t i = 0; i < kListAhead; ++i) groups[found + i] = found ? groups[found - 1] : 0;
  return found;
}

inline float dot(const float* a, const float* b, int64_t n) {
  Vf sum = vzero();
  for (int64_t c = 0; c < n; c += kLanes) {
    sum = vfma(vload_tail(a + c, n - c), vload_tail(b + c, n - c), sum);
  }
  return vsum(sum);
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
