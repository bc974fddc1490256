// Kernels for portable: whatever the compiler takes for granted.

// what is included ahead of the pragma is compiled for every processor
#include <cstdint>
#include <cstring>

#include "kernels.h"

#define DYNKERN_VECTOR_BITS 128
#define DYNKERN_ISA portable
#include "simd_portable.h"
// after the vectors that it is written in
#include "isa_table.h"

namespace dynkern {

const Kernels* portable_kernels() { DYNKERN_TABLE("portable"); }

}  // namespace dynkern
