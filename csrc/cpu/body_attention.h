// Attention of one head: one step over the cache, or a whole prompt.
#pragma once

#include "body_math.h"
#include "kernels.h"

namespace dynkern {
namespace DYNKERN_ISA {

template <class T>
inline Vf load_entry(const T* p, int64_t n) {
  return n >= kLanes ? vload(p) : vload_n(p, n);
}

// Soft-max weights in place over n scores (room up to a multiple of kLanes); returns 1 / their sum.
inline float soft_max(float* scores, int64_t n) {
  const int64_t padded = round_up(n, kLanes);
  for (int64_t t = n; t < padded; ++t) scores[t] = -__builtin_inff();
  Vf largest = vload(scores);
  for (int64_t t = kLanes; t < padded; t += kLanes) largest = vmax(largest, vload(scores + t));
  const Vf shift = vset(-vmaximum(largest));
  Vf sum = vzero();
  for (int64_t t = 0; t < padded; t += kLanes) {
    const Vf p = vexp(vadd(vload(scores + t), shift));
    vstore(scores + t, p);
    sum = vadd(p, sum);
  }
  return 1.0f / vsum(sum);
}

// An entry of a head in NV vectors: in order, or its even and its odd numbers apart, which costs
// half the work for bfloat16. Queries and outputs are arranged the same way.
template <class T, int NV>
struct Entry;

template <int NV>
struct Entry<float, NV> {
  static void load(const float* p, Vf (&x)[NV]) {
    for (int i = 0; i < NV; ++i) x[i] = vload(p + i * kLanes);
  }
  static void split(const float* p, Vf (&x)[NV]) { load(p, x); }
  static void join(const Vf (&x)[NV], float* p) {
    for (int i = 0; i < NV; ++i) vstore(p + i * kLanes, x[i]);
  }
};

template <int NV>
struct Entry<uint16_t, NV> {
  static void load(const uint16_t* p, Vf (&x)[NV]) {
    for (int i = 0; i < NV; i += 2) vload_pairs(p + i * kLanes, &x[i], &x[i + 1]);
  }
  static void split(const float* p, Vf (&x)[NV]) {
    float even[kLanes], odd[kLanes];
    for (int i = 0; i < NV; i += 2) {
      for (int64_t c = 0; c < kLanes; ++c) {
        even[c] = p[i * kLanes + 2 * c];
        odd[c] = p[i * kLanes + 2 * c + 1];
      }
      x[i] = vload(even), x[i + 1] = vload(odd);
    }
  }
  static void join(const Vf (&x)[NV], float* p) {
    float even[kLanes], odd[kLanes];
    for (int i = 0; i < NV; i += 2) {
      vstore(even, x[i]), vstore(odd, x[i + 1]);
      for (int64_t c = 0; c < kLanes; ++c) {
        p[i * kLanes + 2 * c] = even[c];
        p[i * kLanes + 2 * c + 1] = odd[c];
      }
    }
  }
};

template <int NV>
struct Entry<Half, NV> {
  static void load(const Half* p, Vf (&x)[NV]) {
    for (int i = 0; i < NV; ++i) x[i] = vload(p + i * kLanes);
  }
  static void split(const float* p, Vf (&x)[NV]) { Entry<float, NV>::load(p, x); }
  static void join(const Vf (&x)[NV], float* p) { Entry<float, NV>::join(x, p); }
};

// Entries are short streams, and a stream's start is what the hardware does not foresee: values are
// fetched while keys are read, and the next head's keys while values are.
template <class T, int NV>
inline void fetch_entry(const T* p) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t at = 0; at < NV * kLanes; at += kLine) prefetch(p + at);
}

// head_size is NV whole vectors, an even number of them. next_k: the keys of the head that is
// likely to follow.
template <class T, int NV>
void attend(const float* q, const T* k, const T* v, const T* next_k, int64_t n, int64_t stride,
            float scale, float* scores, float* out) {
  Vf query[NV];
  Entry<T, NV>::split(q, query);
  for (int i = 0; i < NV; ++i) query[i] = vmul(query[i], vset(scale));
  for (int64_t t = 0; t < n; t += kLanes) {
    // as many dot products as a vector has lanes: their sums come out side by side
    Vf sum[kLanes];
    const int64_t left = n - t < kLanes ? n - t : kLanes;
    for (int64_t i = 0; i < left; ++i) {
      Vf entry[NV];
      fetch_entry<T, NV>(v + (t + i) * stride);
      Entry<T, NV>::load(k + (t + i) * stride, entry);
      sum[i] = vmul(query[0], entry[0]);
      for (int c = 1; c < NV; ++c) sum[i] = vfma(query[c], entry[c], sum[i]);
    }
    for (int64_t i = left; i < kLanes; ++i) sum[i] = vzero();
    vstore(scores + t, vsum_each(sum));
  }
  const float inverse = soft_max(scores, n);
  // even and odd entries apart: a single chain of sums would wait for itself
  Vf even[NV], odd[NV];
  for (int i = 0; i < NV; ++i) even[i] = odd[i] = vzero();
  const auto add = [&](int64_t t, Vf(&sum)[NV]) __attribute__((always_inline)) {
    const Vf p = vset(scores[t]);
    Vf entry[NV];
    fetch_entry<T, NV>(next_k + t * stride);
    Entry<T, NV>::load(v + t * stride, entry);
    for (int i = 0; i < NV; ++i) sum[i] = vfma(p, entry[i], sum[i]);
  };
  int64_t t = 0;
  for (; t + 2 <= n; t += 2) {
    add(t, even);
    add(t + 1, odd);
  }
  if (t < n) add(t, even);
  for (int i = 0; i < NV; ++i) even[i] = vmul(vadd(even[i], odd[i]), vset(inverse));
  Entry<T, NV>::join(even, out);
}

// Any head_size.
template <class T>
void attend_any(const float* q, const T* k, const T* v, int64_t n, int64_t stride,
                int64_t head_size, float scale, float* scores, float* out) {
  for (int64_t t = 0; t < n; ++t) {
    Vf sum = vzero();
    for (int64_t d = 0; d < head_size; d += kLanes) {
      const int64_t left = head_size - d;
      sum = vfma(load_entry(q + d, left), load_entry(k + t * stride + d, left), sum);
    }
    scores[t] = vsum(sum) * scale;
  }
  const float inverse = soft_max(scores, n);
  for (int64_t d = 0; d < head_size; d += kLanes) {
    Vf sum = vzero();
    for (int64_t t = 0; t < n; ++t) {
      sum = vfma(vset(scores[t]), load_entry(v + t * stride + d, head_size - d), sum);
    }
    vstore_tail(out + d, vmul(sum, vset(inverse)), head_size - d);
  }
}

template <class T>
void attend_head(const float* q, const T* k, const T* v, int64_t head_stride, int64_t n,
                 int64_t stride, int64_t head_size, float scale, float* scores, float* out) {
#define DYNKERN_CASE(nv) \
  case nv* kLanes:       \
    return attend<T, nv>(q, k, v, k + head_stride, n, stride, scale, scores, out)
  switch (head_size) {
    DYNKERN_CASE(2);
    DYNKERN_CASE(4);
    DYNKERN_CASE(6);
    DYNKERN_CASE(8);
    DYNKERN_CASE(16);
    default:
      return attend_any(q, k, v, n, stride, head_size, scale, scores, out);
  }
#undef DYNKERN_CASE
}

template <class T>
void decode_head(const DecodeAttention& job, int64_t j, int64_t head, float* scores) {
  const int64_t at = head * job.head_stride, own = j * job.ld + head * job.head_size;
  attend_head(job.q + own, reinterpret_cast<const T*>(job.k_row[j]) + at,
              reinterpret_cast<const T*>(job.v_row[j]) + at, job.head_stride, job.length[j],
              job.entry_stride, job.head_size, job.scale, scores, job.out + own);
}

inline void decode_attention(const DecodeAttention& job, int64_t j, int64_t head, float* scores) {
  if (job.kv_dtype == kBFloat16) return decode_head<uint16_t>(job, j, head, scores);
  if (job.kv_dtype == kFloat16) return decode_head<Half>(job, j, head, scores);
  decode_head<float>(job, j, head, scores);
}

constexpr int kQueries = 4;

inline int64_t prefill_scratch(int64_t n, int64_t head_size) {
  const int64_t padded = round_up(n, 64), wide = round_up(head_size, 64);
  return padded * wide * 2 + (padded + wide) * kQueries;
}

// A few queries at a time against keys turned on their side, so that scores of many entries come
// out of one vector, and every key and value is loaded once for all of the queries.
template <class T>
void prefill_head(float* q, const T* k, const T* v, int64_t n, int64_t ld, int64_t k_ld,
                  int64_t v_ld, int64_t head_size, float scale, float* scratch) {
  const int64_t padded = round_up(n, 64), wide = round_up(head_size, 64);
  float* keys = scratch;                        // [head_size, padded]
  float* values = keys + padded * wide;         // [n, wide]
  float* scores = values + padded * wide;       // [kQueries, padded]
  float* queries = scores + padded * kQueries;  // [kQueries, wide]
  for (int64_t t = 0; t < n; ++t) {
    float row[kLanes];
    for (int64_t d = 0; d < head_size; d += kLanes) {
      const int64_t left = head_size - d;
      vstore(row, load_entry(k + t * k_ld + d, left));
      for (int64_t i = 0; i < kLanes && i < left; ++i) keys[(d + i) * padded + t] = row[i];
      vstore(values + t * wide + d, load_entry(v + t * v_ld + d, left));
    }
  }
  for (int64_t d = 0; d < head_size; ++d) {
    for (int64_t t = n; t < padded; ++t) keys[d * padded + t] = 0.0f;
  }
  for (int64_t first = 0; first < n; first += kQueries) {
    const int64_t n_queries = n - first < kQueries ? n - first : kQueries;
    for (int64_t i = 0; i < kQueries; ++i) {
      // queries beyond the prompt repeat the last one and are dropped
      const float* row = q + (first + (i < n_queries ? i : n_queries - 1)) * ld;
      for (int64_t d = 0; d < head_size; ++d) queries[i * wide + d] = row[d] * scale;
    }
    const int64_t seen = first + n_queries;
    constexpr int64_t kStep = 2 * kLanes;
    for (int64_t t = 0; t < seen; t += kStep) {
      Vf sum[kQueries][2];
      for (auto& s : sum) s[0] = s[1] = vzero();
      for (int64_t d = 0; d < head_size; ++d) {
        const Vf k0 = vload(keys + d * padded + t), k1 = vload(keys + d * padded + t + kLanes);
#pragma GCC unroll 4
        for (int i = 0; i < kQueries; ++i) {
          const Vf x = vset(queries[i * wide + d]);
          sum[i][0] = vfma(x, k0, sum[i][0]);
          sum[i][1] = vfma(x, k1, sum[i][1]);
        }
      }
      for (int i = 0; i < kQueries; ++i) {
        vstore(scores + i * padded + t, sum[i][0]);
        vstore(scores + i * padded + t + kLanes, sum[i][1]);
      }
    }
    float inverse[kQueries];
    for (int64_t i = 0; i < kQueries; ++i) {
      const int64_t own = first + (i < n_queries ? i : n_queries - 1) + 1;
      inverse[i] = soft_max(scores + i * padded, own);
      for (int64_t t = own; t < seen; ++t) scores[i * padded + t] = 0.0f;
    }
    for (int64_t d = 0; d < head_size; d += 2 * kLanes) {
      Vf sum[kQueries][2];
      for (auto& s : sum) s[0] = s[1] = vzero();
      for (int64_t t = 0; t < seen; ++t) {
        const Vf v0 = vload(values + t * wide + d), v1 = vload(values + t * wide + d + kLanes);
#pragma GCC unroll 4
        for (int i = 0; i < kQueries; ++i) {
          const Vf p = vset(scores[i * padded + t]);
          sum[i][0] = vfma(p, v0, sum[i][0]);
          sum[i][1] = vfma(p, v1, sum[i][1]);
        }
      }
      for (int64_t i = 0; i < n_queries; ++i) {
        for (int half = 0; half < 2; ++half) {
          const int64_t at = d + half * kLanes;
          if (at >= head_size) break;
          const Vf y = vmul(sum[i][half], vset(inverse[i]));
          vstore_tail(q + (first + i) * ld + at, y, head_size - at);
        }
      }
    }
  }
}

inline void prefill_attention(float* q, const uint8_t* k, const uint8_t* v, int64_t kv_dtype,
                              int64_t n, int64_t ld, int64_t k_ld, int64_t v_ld, int64_t head_size,
                              float scale, float* scratch) {
  const auto run = [&](auto element) {
    using T = decltype(element);
    prefill_head(q, reinterpret_cast<const T*>(k), reinterpret_cast<const T*>(v), n, ld, k_ld, v_ld,
                 head_size, scale, scratch);
  };
  if (kv_dtype == kBFloat16) return run(uint16_t{});
  if (kv_dtype == kFloat16) return run(Half{});
  run(float{});
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
