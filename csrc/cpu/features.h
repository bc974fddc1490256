// What the processor has beyond the names that every compiler knows.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace dynkern {

// GCC knows the name from 12 on. That the system keeps 256-bit registers is for AVX2 to say.
inline bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

}  // namespace dynkern
#endif  // __x86_64__
