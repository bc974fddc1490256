// Kernels for avx512.
#if defined(__x86_64__)

// what is included ahead of the pragma is compiled for every processor
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif

#define DYNKERN_VECTOR_BITS 512
#define DYNKERN_ISA avx512
#include "simd_avx512.h"
// after the vectors that it is written in
#include "isa_table.h"

namespace dynkern {

const Kernels* avx512_kernels() { DYNKERN_TABLE("avx512"); }

}  // namespace dynkern

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
