// The token of one row, as dynkern/kernels/reference/sample.py picks it.
//
// Entries are ranked by falling score, lower ids first among equals; top-k and top-p both keep a
// head of that ranking, so one place in it, a Rank, says what is kept. For top-p nothing is sorted:
// the best perturbed entry of all is the best of the kept ones if it is kept itself, and if it is
// not, neither is any entry behind it, and the search goes on before it. As it is drawn in
// proportion to its probability, 1 - log(top_p) searches are enough on average.
#pragma once

#include "philox.h"

namespace dynkern {
namespace DYNKERN_ISA {

struct SampleRow {
  const float* logits;     // [vocab]
  int64_t vocab;           // below 2^31
  const int64_t* history;  // [history_length], negative where none; null without a penalty
  int64_t history_length;
  int64_t request;
  int64_t step;
  uint64_t seed;
  double temperature;  // 0: arg-max
  int64_t top_k;       // 0: off
  double top_p;        // 1: off
  double repetition_penalty;
};

static inline int64_t sample_chunks(int64_t vocab) { return (vocab + kDrawChunk - 1) / kDrawChunk; }
static inline int64_t sample_scratch_floats(int64_t vocab) {
  return 2 * sample_chunks(vocab) * kDrawChunk;
}
static inline int64_t sample_scratch_indices(int64_t vocab) {
  return 2 * sample_chunks(vocab) + 2 * (sample_chunks(vocab) * kDrawChunk + 1);
}

// An integer that orders as the float does, and back; -0.0 comes right before 0.0.
static inline int32_t order_key(float x) {
  const uint32_t bits = float_bits(x);
  return static_cast<int32_t>(bits ^ ((0u - (bits >> 31)) & 0x7fffffffu));
}
static inline float key_float(int32_t key) {
  const auto bits = static_cast<uint32_t>(key);
  return bits_float(bits ^ ((0u - (bits >> 31)) & 0x7fffffffu));
}

// Compares integers: without -ffast-math, a maximum of floats is not vectorised.
static inline int32_t chunk_top(const float* x) {
  int32_t top = INT32_MIN;
  for (int64_t i = 0; i < kDrawChunk; ++i) {
    const int32_t key = order_key(x[i]);
    top = key > top ? key : top;
  }
  return top;
}

struct Scores {
  float* score;      // penalised, over the temperature; -inf behind the vocabulary
  float* perturbed;  // less -log(-log(u)), in chunks that are drawn
  int32_t* top;      // order_key of the largest score of each chunk
  int32_t* drawn;    // whether the chunk's perturbed scores are there
  int64_t n_chunks;
  int64_t top_chunk;  // the first one with the largest score
  float largest;
};

static inline Scores score_row(const SampleRow& row, float* scratch, int32_t* index_scratch) {
  const int64_t n_chunks = sample_chunks(row.vocab);
  float* score = scratch;
  int32_t* top = index_scratch;
  int32_t* drawn = index_scratch + n_chunks;
  const float divisor = row.temperature == 0.0 ? 1.0f : static_cast<float>(row.temperature);
  for (int64_t c = 0; c < n_chunks; ++c) {
    const int64_t first = c * kDrawChunk, n = row.vocab - first;
    float tail[kDrawChunk];
    const float* from = row.logits + first;
    if (n < kDrawChunk) {
      for (int64_t i = 0; i < kDrawChunk; ++i) tail[i] = i < n ? from[i] : -__builtin_inff();
      from = tail;
    }
    float* to = score + first;
    // -0.0 must rank as 0.0 does
    for (int64_t i = 0; i < kDrawChunk; ++i) to[i] = from[i] / divisor + 0.0f;
    top[c] = chunk_top(to);
    drawn[c] = 0;
  }
  if (row.history && row.repetition_penalty != 1.0) {
    const auto penalty = static_cast<float>(row.repetition_penalty);
    for (int64_t h = 0; h < row.history_length; ++h) {
      const int64_t id = row.history[h];
      if (id < 0 || id >= row.vocab) continue;
      const float logit = row.logits[id];
      score[id] = (logit > 0.0f ? logit / penalty : logit * penalty) / divisor + 0.0f;
    }
    for (int64_t c = 0; c < n_chunks; ++c) top[c] = chunk_top(score + c * kDrawChunk);
  }
  int64_t best = 0;
  for (int64_t c = 1; c < n_chunks; ++c) best = top[c] > top[best] ? c : best;
  return {score, score + n_chunks * kDrawChunk, top, drawn, n_chunks, best, key_float(top[best])};
}

// Everything before (score, index) in the ranking.
struct Rank {
  float score;
  int64_t index;
};

// Whether a chunk has no entry before `limit`.
static inline bool is_behind(const Scores& s, int64_t chunk, Rank limit) {
  return s.top[chunk] < order_key(limit.score);
}

// Entries of a chunk that come before `limit` where they equal its score: the first so many.
static inline int32_t ties_before(int64_t chunk, Rank limit) {
  const int64_t n = limit.index - chunk * kDrawChunk;
  return static_cast<int32_t>(n < 0 ? 0 : n > kDrawChunk ? kDrawChunk : n);
}

// All bits set for entry i of a chunk that comes before the limit.
static inline uint32_t mask_before(float x, int32_t i, float limit, int32_t ties) {
  return 0u - (static_cast<uint32_t>(x > limit) |
               (static_cast<uint32_t>(x == limit) & static_cast<uint32_t>(i < ties)));
}

// Perturbs a chunk unless its largest score under its largest draw stays below `reached`, which
// most chunks do: two logarithms a chunk instead of two an entry. Says whether the chunk is there.
static inline bool draw_chunk(const SampleRow& row, const Scores& s, int64_t chunk,
                              int32_t reached) {
  // more than log_approx may be off
  constexpr float kSlack = 1e-3f;
  uint32_t words[kDrawChunk];
  vocabulary_words(row.seed, row.request, row.step, chunk * kDrawChunk, words);
  uint32_t largest = 0;
  for (int64_t i = 0; i < kDrawChunk; ++i) largest = words[i] > largest ? words[i] : largest;
  const float most = -log_approx(-log_approx(vocabulary_uniform(largest)));
  if (order_key(key_float(s.top[chunk]) + most + kSlack) < reached) return false;
  float draw[kDrawChunk];
  for (int64_t i = 0; i < kDrawChunk; ++i) draw[i] = vocabulary_uniform(words[i]);
  const float* x = s.score + chunk * kDrawChunk;
  float* out = s.perturbed + chunk * kDrawChunk;
  for (int64_t i = 0; i < kDrawChunk; ++i) out[i] = x[i] - log_approx(-log_approx(draw[i]));
  s.drawn[chunk] = 1;
  return true;
}

// order_key of the largest perturbed score among a drawn chunk's entries before `limit`, or
// INT32_MIN.
static inline int32_t best_of_chunk(const Scores& s, int64_t chunk, Rank limit) {
  const float* x = s.score + chunk * kDrawChunk;
  const float* y = s.perturbed + chunk * kDrawChunk;
  const int32_t ties = ties_before(chunk, limit);
  const float bound = limit.score;
  int32_t best = INT32_MIN;
  for (int32_t i = 0; i < kDrawChunk; ++i) {
    const uint32_t kept = mask_before(x[i], i, bound, ties);
    const auto key = static_cast<int32_t>((static_cast<uint32_t>(order_key(y[i])) & kept) |
                                          (0x80000000u & ~kept));
    best = key > best ? key : best;
  }
  return best;
}

// The entry before `limit` with the largest perturbed score, or -1 if there is none.
static inline int64_t gumbel_argmax(const SampleRow& row, const Scores& s, Rank limit) {
  // -log(-log(u)) stays below that
  constexpr float kLargestDraw = 16.7f;
  // what cannot reach the best of the likeliest chunk need not be drawn
  if (!s.drawn[s.top_chunk]) draw_chunk(row, s, s.top_chunk, INT32_MIN);
  int32_t reached = best_of_chunk(s, s.top_chunk, limit);
  int32_t best = INT32_MIN;
  int64_t chunk = -1;
  for (int64_t c = 0; c < s.n_chunks; ++c) {
    if (is_behind(s, c, limit)) continue;
    if (order_key(key_float(s.top[c]) + kLargestDraw) < reached) continue;
    if (!s.drawn[c] && !draw_chunk(row, s, c, reached)) continue;
    const int32_t top = best_of_chunk(s, c, limit);
    if (top > best) {
      best = top;
      chunk = c;
    }
    reached = top > reached ? top : reached;
  }
  if (chunk < 0) return -1;
  const int32_t ties = ties_before(chunk, limit);
  for (int32_t i = 0; i < kDrawChunk; ++i) {
    const int64_t index = chunk * kDrawChunk + i;
    if (order_key(s.perturbed[index]) == best &&
        mask_before(s.score[index], i, limit.score, ties)) {
      return index;
    }
  }
  return -1;
}

// Pairs of key and index as 64-bit integers, the larger the further ahead in the ranking; no two
// are equal. The scratch behind them is of 32-bit integers.
static inline uint64_t load_pair(const int32_t* pairs, int64_t i) {
  uint64_t pair;
  std::memcpy(&pair, pairs + 2 * i, sizeof(pair));
  return pair;
}
static inline void store_pair(int32_t* pairs, int64_t i, uint64_t pair) {
  std::memcpy(pairs + 2 * i, &pair, sizeof(pair));
}
static inline uint64_t make_pair(int32_t key, int64_t index) {
  return static_cast<uint64_t>(static_cast<uint32_t>(key) ^ 0x80000000u) << 32 |
         (0xffffffffu - static_cast<uint32_t>(index));
}
static inline int32_t pair_key(uint64_t pair) {
  return static_cast<int32_t>(static_cast<uint32_t>(pair >> 32) ^ 0x80000000u);
}
static inline int64_t pair_index(uint64_t pair) { return 0xffffffffu - (pair & 0xffffffffu); }

// The k-th largest of n pairs, 1 <= k <= n; reorders them.
static inline uint64_t kth_largest(int32_t* pairs, int64_t n, int64_t k) {
  int64_t low = 0, high = n;
  uint64_t random = 1;
  while (high - low > 1) {
    // any fixed place would be the worst one for some order
    random = random * 6364136223846793005u + 1442695040888963407u;
    const int64_t at =
        low + static_cast<int64_t>((random >> 33) % static_cast<uint64_t>(high - low));
    const uint64_t pivot = load_pair(pairs, at);
    store_pair(pairs, at, load_pair(pairs, high - 1));
    int64_t split = low;
    for (int64_t i = low; i < high - 1; ++i) {
      // without a branch, which would go either way
      const uint64_t pair = load_pair(pairs, i);
      store_pair(pairs, i, load_pair(pairs, split));
      store_pair(pairs, split, pair);
      split += pair > pivot;
    }
    store_pair(pairs, high - 1, load_pair(pairs, split));
    store_pair(pairs, split, pivot);
    if (split == k - 1) return pivot;
    if (split < k) {
      low = split + 1;
    } else {
      high = split;
    }
  }
  return load_pair(pairs, low);
}

// Where the first k entries of the ranking end.
static inline Rank rank_behind(const Scores& s, int64_t k, int32_t* pairs) {
  int32_t least = INT32_MIN;
  if (k <= s.n_chunks) {
    // k chunks reach that score: so do k entries
    for (int64_t c = 0; c < s.n_chunks; ++c) store_pair(pairs, c, make_pair(s.top[c], c));
    least = pair_key(kth_largest(pairs, s.n_chunks, k));
  }
  int64_t n = 0;
  for (int64_t c = 0; c < s.n_chunks; ++c) {
    if (s.top[c] < least) continue;
    for (int64_t i = c * kDrawChunk; i < (c + 1) * kDrawChunk; ++i) {
      const int32_t key = order_key(s.score[i]);
      store_pair(pairs, n, make_pair(key, i));
      n += key >= least;
    }
  }
  const uint64_t last = kth_largest(pairs, n, k);
  return {key_float(pair_key(last)), pair_index(last) + 1};
}

// Sum of exp(score - largest) over the entries before `limit`.
static inline double mass_before(const Scores& s, Rank limit) {
  float sums[kDrawChunk] = {};
  const float bound = limit.score, largest = s.largest;
  for (int64_t c = 0; c < s.n_chunks; ++c) {
    if (is_behind(s, c, limit)) continue;
    const float* x = s.score + c * kDrawChunk;
    const int32_t ties = ties_before(c, limit);
    for (int32_t i = 0; i < kDrawChunk; ++i) {
      const uint32_t mass = float_bits(exp_approx(x[i] - largest));
      sums[i] += bits_float(mass & mask_before(x[i], i, bound, ties));
    }
  }
  double sum = 0.0;
  for (const float part : sums) sum += static_cast<double>(part);
  return sum;
}

// How far a mass may be off; closer calls are worked out exactly.
constexpr double kMassError = 1e-4;

// A place before `limit` that the nucleus does not reach beyond: few entries are left to draw where
// a few likely ones hold most of the mass.
static inline Rank nucleus_bound(const Scores& s, Rank limit, double total, double top_p) {
  for (float depth = 2.0f; depth <= 16.0f && s.largest - depth > limit.score; depth *= 2.0f) {
    const Rank end = {s.largest - depth, 0};
    if (mass_before(s, end) > (top_p + kMassError) * total) return end;
  }
  return limit;
}

// Whether the probabilities of the entries before `token` sum to less than top_p.
static inline bool is_in_nucleus(const Scores& s, int64_t token, double total, double top_p) {
  const Rank limit = {s.score[token], token};
  const double before = mass_before(s, limit) / total;
  if (before < top_p - kMassError) return true;
  if (before > top_p + kMassError) return false;
  // so close to it, round as the reference does: equal scores often meet top_p exactly
  const auto divisor = static_cast<float>(total);
  double sum = 0.0;
  for (int64_t c = 0; c < s.n_chunks; ++c) {
    if (is_behind(s, c, limit)) continue;
    const float* x = s.score + c * kDrawChunk;
    const int32_t ties = ties_before(c, limit);
    for (int32_t i = 0; i < kDrawChunk; ++i) {
      if (mask_before(x[i], i, limit.score, ties)) {
        sum += static_cast<double>(exp_approx(x[i] - s.largest) / divisor);
      }
    }
  }
  const float chance = exp_approx(limit.score - s.largest) / divisor;
  return static_cast<float>(sum + static_cast<double>(chance)) - chance < static_cast<float>(top_p);
}

// The token. scratch: sample_scratch_floats(vocab); index_scratch: sample_scratch_indices(vocab).
static inline int64_t sample_row(const SampleRow& row, float* scratch, int32_t* index_scratch) {
  constexpr float kInf = __builtin_inff();
  const Scores s = score_row(row, scratch, index_scratch);
  if (row.temperature == 0.0 || !(s.largest < kInf && s.largest > -kInf)) {
    // compares keys: a NaN, too, is found where it is
    int64_t token = s.top_chunk * kDrawChunk;
    while (order_key(s.score[token]) != s.top[s.top_chunk]) ++token;
    return token;
  }
  Rank limit = {-kInf, row.vocab};
  if (row.top_k > 0 && row.top_k < row.vocab) {
    limit = rank_behind(s, row.top_k, index_scratch + 2 * s.n_chunks);
  }
  if (row.top_p >= 1.0) return gumbel_argmax(row, s, limit);
  const double total = mass_before(s, limit);
  limit = nucleus_bound(s, limit, total, row.top_p);
  int64_t token = gumbel_argmax(row, s, limit);
  while (token >= 0 && !is_in_nucleus(s, token, total, row.top_p)) {
    limit = {s.score[token], token};
    token = gumbel_argmax(row, s, limit);
  }
  // a top_p of 0 keeps nothing
  return token < 0 ? 0 : token;
}

}  // namespace DYNKERN_ISA
}  // namespace dynkern
