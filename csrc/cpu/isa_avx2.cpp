// Kernels for avx2.
#if defined(__x86_64__)

// what is included ahead of the pragma is compiled for every processor
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define DYNKERN_VECTOR_BITS 256
#define DYNKERN_ISA avx2
#include "simd_avx2.h"
// after the vectors that it is written in
#include "isa_table.h"

namespace dynkern {

const Kernels* avx2_kernels() { DYNKERN_TABLE("avx2"); }

}  // namespace dynkern

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
