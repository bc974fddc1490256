// Kernels for avx512_vnni.
#if defined(__x86_64__)

// what is included ahead of the pragma is compiled for every processor
#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
#endif

#define DYNKERN_VECTOR_BITS 512
#define DYNKERN_ISA avx512_vnni
#define DYNKERN_VNNI
#include "simd_avx512.h"
// after the vectors that it is written in
#include "isa_table.h"

namespace dynkern {

const Kernels* avx512_vnni_kernels() { DYNKERN_TABLE("avx512_vnni"); }

}  // namespace dynkern

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__
