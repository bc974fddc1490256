// Packed weights: layout in kernels.h.
#pragma once

#include "engine.h"

namespace dynkern {

// Row n of a packed matrix back as float32 [k].
void unpack_row(const Matrix& w, int64_t format, int64_t n, float* dst);

}  // namespace dynkern
