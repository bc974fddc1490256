// ragged_linear for 1 to 8 rows, by streaming the weights: y[j] = act(x[row_index[j]] W^T + bias).
//
// Written over shim.h. Each warp owns kOutputs rows of W at a time and walks along them, its lanes
// side by side in 16-byte pieces; a piece meets every row of x while it is in registers. Sums are
// float32, each lane's in order, then across the warp in a butterfly: the order does not depend on
// the number of rows. A warp leaves before it touches W where no row is active.
// Not yet run on a GPU.
#pragma once

#include "number.h"
#include "shim.h"

namespace dynkern {

enum class Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2 };
enum class Number : int32_t { kFloat = 0, kBf16 = 1, kHalf = 2 };

// x: [*, stride_x], weight: [n_out, stride_w], bias: [n_out] or null, row_index: [capacity] or
// null, n_active: one element or null, out: [capacity, n_out]; strides in elements. Mirrored by
// native.py.
struct RaggedLinear {
  const uint8_t* x;
  const uint8_t* weight;
  const uint8_t* bias;
  const int32_t* row_index;
  const int32_t* n_active;
  uint8_t* out;
  int64_t capacity;
  int64_t n_out;
  int64_t n_in;
  int64_t stride_x;
  int64_t stride_w;
  int32_t activation;
  int32_t number;
};

constexpr int kLinearMostRows = 8;
constexpr int kLinearWarps = 4;
// A warp's lanes have this many pieces in flight; x is read once for all of them.
constexpr int kLinearOutputs = 2;

// Numbers that one access brings: 16 bytes of them, or a single one.
template <typename T, bool kWide>
struct Piece {
  static constexpr int kCount = kWide ? 16 / sizeof(T) : 1;
  T numbers[kCount];
};

template <typename T, bool kWide>
DYNKERN_DEVICE Piece<T, kWide> load_numbers(const uint8_t* at) {
  Piece<T, kWide> piece;
  if (kWide) {
    const Piece16 raw = load<Piece16>(at);
    copy_bits(&piece, &raw);
  } else {
    piece.numbers[0] = load<T>(at);
  }
  return piece;
}

DYNKERN_DEVICE float activate(float y, Activation activation) {
  if (activation == Activation::kRelu) return y < 0.0f ? 0.0f : y;
  if (activation == Activation::kGelu) return 0.5f * y * (1.0f + erff(y * 0.70710678f));
  return y;
}

// Grid: groups of kLinearWarps * kLinearOutputs outputs. kRows: capacity, rounded up to 1, 2, 4, 8.
template <typename T, int kRows, bool kWide>
DYNKERN_DEVICE void ragged_linear_body(const RaggedLinear& args) {
  constexpr int kCount = Piece<T, kWide>::kCount;
  const int lane = static_cast<int>(thread_index().x % 32);
  const int64_t warp = block_index().x * int64_t{kLinearWarps} + thread_index().x / 32;
  const int64_t first = warp * kLinearOutputs;
  int64_t n_rows = args.capacity;
  if (args.n_active != nullptr) {
    const int64_t n = load<int32_t>(reinterpret_cast<const uint8_t*>(args.n_active));
    n_rows = n < n_rows ? n : n_rows;
  }
  if (n_rows <= 0 || first >= args.n_out) return;
  const uint8_t* x[kRows];
  DYNKERN_UNROLL
  for (int j = 0; j < kRows; ++j) {
    // rows beyond the active ones read row 0 again, whose piece is in L1, and are not stored
    const int64_t at = j < n_rows ? j : 0;
    const int64_t row = args.row_index == nullptr
                            ? at
                            : load<int32_t>(reinterpret_cast<const uint8_t*>(args.row_index + at));
    x[j] = args.x + row * args.stride_x * sizeof(T);
  }
  const uint8_t* w[kLinearOutputs];
  DYNKERN_UNROLL
  for (int o = 0; o < kLinearOutputs; ++o) {
    const int64_t n = first + o < args.n_out ? first + o : first;
    w[o] = args.weight + n * args.stride_w * sizeof(T);
  }
  float sum[kLinearOutputs][kRows] = {};
  DYNKERN_UNROLL_TWICE
  for (int64_t k = lane * kCount; k < args.n_in; k += 32 * kCount) {
    Piece<T, kWide> weights[kLinearOutputs];
    DYNKERN_UNROLL
    for (int o = 0; o < kLinearOutputs; ++o) {
      weights[o] = load_numbers<T, kWide>(w[o] + k * sizeof(T));
    }
    DYNKERN_UNROLL
    for (int j = 0; j < kRows; ++j) {
      const Piece<T, kWide> inputs = load_numbers<T, kWide>(x[j] + k * sizeof(T));
      DYNKERN_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const float input = to_float(inputs.numbers[i]);
        DYNKERN_UNROLL
        for (int o = 0; o < kLinearOutputs; ++o) {
          sum[o][j] += to_float(weights[o].numbers[i]) * input;
        }
      }
    }
  }
  DYNKERN_UNROLL
  for (int o = 0; o < kLinearOutputs; ++o) {
    DYNKERN_UNROLL
    for (int j = 0; j < kRows; ++j) {
      DYNKERN_UNROLL
      for (int apart = 16; apart > 0; apart /= 2) {
        sum[o][j] += shuffle_xor(sum[o][j], apart);
      }
      // every lane holds the sum: lane j stores row j
      if (lane != j || j >= n_rows || first + o >= args.n_out) continue;
      float y = sum[o][j];
      if (args.bias != nullptr) y += to_float(load<T>(args.bias + (first + o) * sizeof(T)));
      y = activate(y, static_cast<Activation>(args.activation));
      store<T>(args.out + (j * args.n_out + first + o) * sizeof(T), from_float<T>(y));
    }
  }
}

// Calls launch(T{}, rows, wide) with the types and constants that fit the arguments.
template <typename Launch>
auto with_linear_shape(const RaggedLinear& args, Launch launch) {
  const auto by_rows = [&](auto number, auto wide) {
    if (args.capacity <= 1) return launch(number, std::integral_constant<int, 1>{}, wide);
    if (args.capacity <= 2) return launch(number, std::integral_constant<int, 2>{}, wide);
    if (args.capacity <= 4) return launch(number, std::integral_constant<int, 4>{}, wide);
    return launch(number, std::integral_constant<int, 8>{}, wide);
  };
  const auto by_width = [&](auto number) {
    const uint64_t bytes = sizeof(number);
    const uint64_t all =
        reinterpret_cast<uintptr_t>(args.x) | reinterpret_cast<uintptr_t>(args.weight) |
        static_cast<uint64_t>(args.stride_x) * bytes |
        static_cast<uint64_t>(args.stride_w) * bytes | static_cast<uint64_t>(args.n_in) * bytes;
    return all % 16 == 0 ? by_rows(number, std::true_type{}) : by_rows(number, std::false_type{});
  };
  switch (static_cast<Number>(args.number)) {
    case Number::kBf16:
      return by_width(Bf16{});
    case Number::kHalf:
      return by_width(Half{});
    default:
      return by_width(float{});
  }
}

// Blocks that cover all outputs.
inline int64_t ragged_linear_blocks(const RaggedLinear& args) {
  constexpr int64_t kEach = kLinearWarps * kLinearOutputs;
  return (args.n_out + kEach - 1) / kEach;
}

}  // namespace dynkern
