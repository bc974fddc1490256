// One batch's decode passes: which rows run a layer, what fills the holes, which token comes out.
#pragma once

#include <vector>

#include "gates.h"
#include "steps.h"

namespace dynkern {

using Rows = std::vector<int32_t>;

// Where K/V of a (layer, slot) goes, and how far it has come.
class CacheView {
 public:
  CacheView(const Model& model, const Decode& args);

  // Entries of one head are head_stride() apart from those of the next.
  int64_t head_stride() const { return args_.capacity * model_.head_size; }
  // Entry `at` of head 0.
  Place place(int64_t layer, int64_t slot, int64_t at) const;
  int32_t& length(int64_t layer, int64_t slot) const {
    return args_.length[layer * args_.slot_stride + slot];
  }
  int32_t lane(int64_t layer, int64_t slot) const {
    return args_.lane[layer * args_.slot_stride + slot];
  }

 private:
  const Model& model_;
  const Decode& args_;
  const int64_t element_;
};

// Rules for K/V of layers that a token skipped (dynkern/runtime/executors/kv_fill.py).
class KvFiller {
 public:
  KvFiller(Steps& steps, const Decode& args, const CacheView& cache);

  void before_layer(int64_t layer, const Rows& rows);
  void skipped(int64_t layer, const Rows& rows);
  void end_pass(const Rows& alive, const uint8_t* ran);
  // int64 [num_layers]: tokens projected in the current pass
  void count_into(int64_t* filled) { filled_ = filled; }

 private:
  void project(int64_t layer, const float* source, const Rows& rows,
               const std::vector<int32_t>& at);
  void flush(int64_t layer, const Rows& rows);
  void copy_forward(const Rows& alive, const uint8_t* ran);

  Steps& steps_;
  const Decode& args_;
  const CacheView& cache_;
  const Model& model_;
  int64_t* filled_ = nullptr;
};

class DecodePass {
 public:
  DecodePass(Steps& steps, const Decode& args);

  // Pass number p of the call; false where no row is alive.
  bool run(int64_t p);
  // Whether a row ended in the last pass.
  bool ended() const { return ended_; }
  // Only embedding and head, or only K/V fills of every layer: parts to be timed.
  void run_fixed();
  void run_fill();

 private:
  void find_alive();
  void embed();
  void run_layer(int64_t layer, const Rows& rows);
  // What is likely to be read after a layer.
  const Matrix* after(int64_t layer) const;
  void visit(int64_t layer, const Rows& rows, const Rows& skipping);
  void run_planned();
  void run_drawn();
  void run_confidence();
  void run_controller();
  Rows leaving(const Rows& rows, const std::vector<float>& before);
  void pick(const Rows& rows);
  void advance(int64_t p);

  Steps& steps_;
  const Decode& args_;
  const Model& model_;
  const CacheView cache_;
  KvFiller fill_;
  PassGates gates_;
  Rows alive_;
  std::vector<int64_t> token_;
  std::vector<uint8_t> settled_;
  uint8_t* ran_ = nullptr;
  int64_t head_rows_ = 0;
  bool ended_ = false;
};

}  // namespace dynkern
