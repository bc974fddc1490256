// Counter-based draws: Philox-4x32-10, the words and floats of dynkern/rng.py bit for bit.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Said by translation units whose target is set by a pragma, since g++ does not update its macros
// then.
#if !defined(DYNKERN_VECTOR_BITS)
#if defined(__AVX512F__)
#define DYNKERN_VECTOR_BITS 512
#elif defined(__AVX2__)
#define DYNKERN_VECTOR_BITS 256
#else
#define DYNKERN_VECTOR_BITS 128
#endif
#endif

#include <cstdint>

#include "float_math.h"

namespace dynkern {
namespace DYNKERN_ISA {

constexpr uint32_t kStreamStep = 1;
constexpr uint32_t kStreamGate = 2;
constexpr uint32_t kStreamSample = 3;

struct Philox4 {
  uint32_t word[4];
};

static inline Philox4 philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  // unrolled, so that loops over counters vectorise
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t p1 = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// In [0, 1), a multiple of 2^-24.
static inline float word_uniform(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}

// rng.layer_uniforms of one row: out [num_layers]. Counters count modulo 2^32.
static inline void layer_uniforms(uint64_t seed, int64_t request, int64_t token, int64_t num_layers,
                                  uint32_t stream, float* out) {
  for (int64_t l = 0; l < num_layers; ++l) {
    out[l] = word_uniform(philox(static_cast<uint32_t>(request), static_cast<uint32_t>(token),
                                 static_cast<uint32_t>(l), stream, seed)
                              .word[0]);
  }
}

// Layers whose draw is below their probability [num_layers].
static inline void keep_bernoulli(const float* draw, const float* probability, int64_t num_layers,
                                  uint8_t* keep) {
  for (int64_t l = 0; l < num_layers; ++l) keep[l] = draw[l] < probability[l];
}

// The `budget` smallest draws; the lower layer wins a tie, force_first makes layer 0 the smallest.
static inline void keep_subset(float* draw, int64_t budget, bool force_first, int64_t num_layers,
                               uint8_t* keep) {
  if (force_first) draw[0] = -1.0f;
  for (int64_t l = 0; l < num_layers; ++l) {
    int64_t rank = 0;
    for (int64_t other = 0; other < l; ++other) rank += draw[other] <= draw[l];
    for (int64_t other = l + 1; other < num_layers; ++other) rank += draw[other] < draw[l];
    keep[l] = rank < budget;
  }
}

// TokenProgram.draw of one row: `probability` [num_layers] for a bernoulli program, null for a
// subset. scratch: [num_layers] floats; keep: [num_layers] of 0/1.
static inline void program_keep(uint64_t seed, int64_t request, int64_t token, int64_t num_layers,
                                const float* probability, int64_t budget, bool force_first,
                                float* scratch, uint8_t* keep) {
  layer_uniforms(seed, request, token, num_layers, kStreamStep, scratch);
  if (probability) {
    keep_bernoulli(scratch, probability, num_layers, keep);
  } else {
    keep_subset(scratch, budget, force_first, num_layers, keep);
  }
}

// Four entries of the vocabulary share a counter; so many entries are drawn together.
constexpr int64_t kDrawChunk = 128;
constexpr int64_t kChunkBlocks = kDrawChunk / 4;

#if defined(__SSE2__)

// Counters in the low halves of 64-bit lanes: one multiplication gives the low and the high word,
// and what is left in the high halves is never looked at. Compilers do not find that by themselves.
#if DYNKERN_VECTOR_BITS == 512
typedef uint64_t Counters __attribute__((vector_size(64)));
static inline Counters multiply_low(Counters a, Counters b) {
  return (Counters)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
}
static inline Counters even_pairs(Counters a, Counters b) {
  return (Counters)_mm512_maskz_unpacklo_epi64(0xff, (__m512i)a, (__m512i)b);
}
static inline Counters odd_pairs(Counters a, Counters b) {
  return (Counters)_mm512_maskz_unpackhi_epi64(0xff, (__m512i)a, (__m512i)b);
}
#elif DYNKERN_VECTOR_BITS == 256
typedef uint64_t Counters __attribute__((vector_size(32)));
static inline Counters multiply_low(Counters a, Counters b) {
  return (Counters)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
static inline Counters even_pairs(Counters a, Counters b) {
  return (Counters)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
}
static inline Counters odd_pairs(Counters a, Counters b) {
  return (Counters)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
}
#else
typedef uint64_t Counters __attribute__((vector_size(16)));
static inline Counters multiply_low(Counters a, Counters b) {
  return (Counters)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
static inline Counters even_pairs(Counters a, Counters b) {
  return (Counters)_mm_unpacklo_epi64((__m128i)a, (__m128i)b);
}
static inline Counters odd_pairs(Counters a, Counters b) {
  return (Counters)_mm_unpackhi_epi64((__m128i)a, (__m128i)b);
}
#endif

// The words of counters (request, step, block + i, kStreamSample), i < kChunkBlocks, in their
// order.
static inline void chunk_words(uint64_t seed, uint32_t request, uint32_t step, uint32_t block,
                               uint32_t* out) {
  constexpr int kLanes64 = sizeof(Counters) / 8;
  const Counters zero = {};
  Counters lane = zero;
  // pairs go out even lanes first
  for (int i = 0; i < kLanes64; ++i)
    lane[i] = static_cast<uint64_t>(i / 2 + i % 2 * (kLanes64 / 2));
  for (int64_t first = 0; first < kChunkBlocks; first += kLanes64) {
    Counters c0 = zero + request, c1 = zero + step, c3 = zero + kStreamSample;
    Counters c2 = lane + (block + static_cast<uint64_t>(first));
    uint64_t k0 = seed & 0xffffffffu, k1 = seed >> 32;
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const Counters p0 = multiply_low(c0, zero + 0xD2511F53u);
      const Counters p1 = multiply_low(c2, zero + 0xCD9E8D57u);
      c0 = (p1 >> 32) ^ c1 ^ k0;
      c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ k1;
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const Counters low = (c0 & 0xffffffffu) | (c1 << 32), high = (c2 & 0xffffffffu) | (c3 << 32);
    const Counters even = even_pairs(low, high), odd = odd_pairs(low, high);
    std::memcpy(out + 4 * first, &even, sizeof(even));
    std::memcpy(out + 4 * first + 2 * kLanes64, &odd, sizeof(odd));
  }
}

#else

static inline void chunk_words(uint64_t seed, uint32_t request, uint32_t step, uint32_t block,
                               uint32_t* out) {
  for (uint32_t i = 0; i < kChunkBlocks; ++i) {
    const Philox4 drawn = philox(request, step, block + i, kStreamSample, seed);
    for (int w = 0; w < 4; ++w) out[4 * i + w] = drawn.word[w];
  }
}

#endif

// In (0, 1); the largest draw would round to 1, and its Gumbel value to infinity.
static inline float vocabulary_uniform(uint32_t word) {
  const float u = (static_cast<float>(static_cast<int32_t>(word >> 8)) + 0.5f) * 0x1p-24f;
  return u < 1.0f - 0x1p-24f ? u : 1.0f - 0x1p-24f;
}

// The words behind rng.vocabulary_uniforms of entries [first, first + kDrawChunk) of a row; 4
// divides `first`.
static inline void vocabulary_words(uint64_t seed, int64_t request, int64_t step, int64_t first,
                                    uint32_t* out) {
  chunk_words(seed, static_cast<uint32_t>(request), static_cast<uint32_t>(step),
              static_cast<uint32_t>(first / 4), out);
}

// Those uniforms themselves.
static inline void vocabulary_uniforms(uint64_t seed, int64_t request, int64_t step, int64_t first,
                                       float* out) {
  uint32_t words[kDrawChunk];
  vocabulary_words(seed, request, step, first, words);
  for (int64_t i = 0; i < kDrawChunk; ++i) out[i] = vocabulary_uniform(words[i]);
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
