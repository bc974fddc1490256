#include "../common/abi.h"
#include "ops.h"

// Keep bits to row lists. The next free place moves on by the bit itself: bits at random would
// mislead a branch half of the time.
DYNKERN_EXPORT int64_t dynkern_cpu_op_route_compact(const dynkern::RouteCompactOp* args,
                                                    dynkern::Fault*) {
  for (int64_t layer = 0; layer < args->n_layers; ++layer) {
    const uint8_t* keep = args->keep + layer * args->keep_stride;
    int32_t* index = args->row_index + layer * args->n_rows;
    int64_t kept = 0;
    for (int64_t i = 0; i < args->n_rows; ++i) kept += keep[i] != 0;
    int64_t next[2] = {kept, 0};
    for (int64_t i = 0; i < args->n_rows; ++i) {
      index[next[keep[i] != 0]++] = static_cast<int32_t>(i);
    }
    args->n_active[layer] = static_cast<int32_t>(kept);
  }
  return 0;
}
