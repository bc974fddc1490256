#include <vector>

#include "guard.h"
#include "op_common.h"

namespace dynkern {
namespace {

constexpr int32_t kAbsent = -1;

class ResidualBypass {
 public:
  explicit ResidualBypass(const ResidualBypassLayerNormOp& args) : args_(args) {}

  bool check(Fault* fault) {
    const int64_t deltas = args_.delta ? args_.delta_capacity : 0;
    if (!read_count("n_delta", args_.n_delta, deltas, &n_delta_, fault) ||
        !read_count("n_active", args_.n_active, args_.capacity, &n_, fault) ||
        !in_range("delta_rows", args_.delta_rows, n_delta_, 0, args_.n_rows - 1, fault) ||
        !in_range("row_index", args_.row_index, n_, 0, args_.n_rows - 1, fault)) {
      return false;
    }
    delta_of_.assign(static_cast<size_t>(args_.n_rows), kAbsent);
    for (int64_t j = 0; j < n_delta_; ++j) {
      int32_t& slot = delta_of_[static_cast<size_t>(args_.delta_rows[j])];
      if (slot != kAbsent) {
        *fault = {"delta_rows", j, args_.delta_rows[j], 1, 0};
        return false;
      }
      slot = static_cast<int32_t>(j);
    }
    return true;
  }

  void run() {
    const TeamLock lock;
    const int64_t d = args_.hidden;
    const int64_t n_threads = threads_for(args_.n_threads, (n_ + n_delta_) * d);
    Workspace& work = workspace();
    weight_ = as_float(kernel_, args_.weight, args_.weight_dtype, d, work.before);
    bias_ = as_float(kernel_, args_.bias, args_.bias_dtype, d, work.inner);
    room_ = round_up(d, 16);
    temp_ = work.temp.need(n_threads * 2 * room_);
    // rows that are only added to come behind those that are handed out; a row that is asked for
    // twice must have its sum before, so then sums come first
    const bool once = find_outputs();
    std::vector<int32_t> only_added;
    for (int64_t j = 0; j < n_delta_; ++j) {
      const int32_t row = args_.delta_rows[j];
      if (!once || output_of_[static_cast<size_t>(row)] == kAbsent) only_added.push_back(row);
    }
    const auto added = static_cast<int64_t>(only_added.size());
    if (!once) {
      parallel_for(n_threads, added, [&](int64_t i, int64_t thread) {
        add(only_added[static_cast<size_t>(i)], temp_ + 2 * thread * room_);
      });
      delta_of_.assign(delta_of_.size(), kAbsent);
    }
    parallel_for(n_threads, n_ + (once ? added : 0), [&](int64_t item, int64_t thread) {
      float* temp = temp_ + 2 * thread * room_;
      if (item >= n_) {
        add(only_added[static_cast<size_t>(item - n_)], temp);
      } else {
        hand_out(item, add(args_.row_index[item], temp), temp + room_);
      }
    });
  }

 private:
  // Whether no row is handed out twice.
  bool find_outputs() {
    output_of_.assign(static_cast<size_t>(args_.n_rows), kAbsent);
    for (int64_t j = 0; j < n_; ++j) {
      int32_t& slot = output_of_[static_cast<size_t>(args_.row_index[j])];
      if (slot != kAbsent) return false;
      slot = static_cast<int32_t>(j);
    }
    return true;
  }

  // Row i of h with its delta, if it has one, stored, and as it was stored: in place or in `temp`.
  const float* add(int64_t i, float* temp) {
    const int64_t d = args_.hidden;
    const Rows2d h(args_.h, args_.h_stride, args_.dtype);
    auto* stored = const_cast<uint8_t*>(h.row(i));
    float* row = args_.dtype == kFloat32 ? reinterpret_cast<float*>(stored) : temp;
    const int32_t j = delta_of_[static_cast<size_t>(i)];
    if (j != kAbsent) {
      const Rows2d delta(args_.delta, args_.delta_stride, args_.dtype);
      kernel_.add(stored, delta.row(j), args_.dtype, d, row);
      if (args_.norm == kPostNorm) {
        kernel_.layer_norm(row, d, weight_, bias_, static_cast<float>(args_.eps), row);
      }
      if (row == temp) kernel_.narrow(row, args_.dtype, d, stored);
    }
    if (row == temp) kernel_.widen(stored, args_.dtype, d, row);
    return row;
  }

  void hand_out(int64_t j, const float* row, float* temp) {
    const int64_t d = args_.hidden;
    auto* out = static_cast<uint8_t*>(args_.out) + j * d * element_bytes(args_.dtype);
    if (args_.norm == kPreNorm) {
      float* normed = args_.dtype == kFloat32 ? reinterpret_cast<float*>(out) : temp;
      kernel_.layer_norm(row, d, weight_, bias_, static_cast<float>(args_.eps), normed);
      if (normed != temp) return;
      row = temp;
    }
    kernel_.narrow(row, args_.dtype, d, out);
  }

  const ResidualBypassLayerNormOp& args_;
  const Kernels& kernel_ = kernels();
  int64_t n_delta_ = 0;
  int64_t n_ = 0;
  int64_t room_ = 0;
  const float* weight_ = nullptr;
  const float* bias_ = nullptr;
  float* temp_ = nullptr;  // for each thread two rows
  std::vector<int32_t> delta_of_;
  std::vector<int32_t> output_of_;
};

}  // namespace
}  // namespace dynkern

DYNKERN_EXPORT int64_t dynkern_cpu_op_residual_bypass_layer_norm(
    const dynkern::ResidualBypassLayerNormOp* args, dynkern::Fault* fault) {
  return dynkern::guarded([&]() -> int64_t {
    dynkern::ResidualBypass op(*args);
    if (!op.check(fault)) return 1;
    op.run();
    return 0;
  });
}
