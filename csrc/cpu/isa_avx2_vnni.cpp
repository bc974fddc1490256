// Kernels for avx2_vnni. DYNKERN_AVX_VNNI: the assembler knows the instruction (setup.py asks it).
#if defined(__x86_64__) && defined(DYNKERN_AVX_VNNI)

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
#define DYNKERN_ISA avx2_vnni
#define DYNKERN_VNNI
#include "simd_avx2.h"
// after the vectors that it is written in
#include "isa_table.h"

namespace dynkern {

const Kernels* avx2_vnni_kernels() { DYNKERN_TABLE("avx2_vnni"); }

}  // namespace dynkern

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // __x86_64__ && DYNKERN_AVX_VNNI
