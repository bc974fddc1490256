// Controller gates of a pass: which rows run a layer (dynkern/runtime/executors/gates.py).
#pragma once

#include <vector>

#include "steps.h"

namespace dynkern {

class PassGates {
 public:
  PassGates(Steps& steps, const Decode& args) : steps_(steps), args_(args) {}

  // The pass of these rows begins: what its gates read that no layer changes.
  void begin(const std::vector<int32_t>& alive);
  // keep[j] for every row of begin(): 1 where it runs the layer.
  void decide(int64_t layer, uint8_t* keep);

 private:
  const float* input(int64_t j);
  bool decide_row(int64_t layer, int64_t j, float* scratch);

  Steps& steps_;
  const Decode& args_;
  std::vector<int32_t> alive_;
  std::vector<float> tokens_;   // [alive, embed], gates on tokens
  std::vector<float> uniform_;  // [alive, num_layers], sampled gates
};

}  // namespace dynkern
