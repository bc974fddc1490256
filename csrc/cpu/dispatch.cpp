// Which instruction set the kernels use: the best that the processor has, or the one that was set.
#include <atomic>
#include <cstring>

#include "../common/abi.h"
#include "features.h"
#include "kernels.h"

namespace dynkern {
namespace {

struct Level {
  const char* name;
  const Kernels* (*kernels)();
  bool present, fast;
};

constexpr int kMaxLevels = 6;

// Ascending: the last one that is present and fast is the best.
int levels(Level* out) {
  int n = 0;
  out[n++] = {"portable", portable_kernels, true, true};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
  out[n++] = {"avx2", avx2_kernels, avx2, true};
#if defined(DYNKERN_AVX_VNNI)
  out[n++] = {"avx2_vnni", avx2_vnni_kernels, avx2 && has_avx_vnni(), true};
#else
  out[n++] = {"avx2_vnni", nullptr, false, true};
#endif
  out[n++] = {"avx512", avx512_kernels, avx512, true};
  out[n++] = {"avx512_vnni", avx512_vnni_kernels, vnni, true};
  // Intel's cores take two cycles for a product of bfloat16 pairs and do four of float32 vectors
  // meanwhile: a core of an Emerald Rapids reached 82 GFLOP/s with 6 rows, and 130 by widening
  out[n++] = {"avx512_bf16", avx512_bf16_kernels, bf16, !__builtin_cpu_is("intel")};
#endif
  return n;
}

std::atomic<const Kernels*> in_use{nullptr};

const Kernels* best() {
  Level all[kMaxLevels];
  const Kernels* found = nullptr;
  for (int i = 0, n = levels(all); i < n; ++i) {
    if (all[i].present && all[i].fast) found = all[i].kernels();
  }
  return found;
}

}  // namespace

const Kernels& kernels() {
  const Kernels* found = in_use.load(std::memory_order_acquire);
  if (found == nullptr) {
    found = best();
    in_use.store(found, std::memory_order_release);
  }
  return *found;
}

}  // namespace dynkern

// Name of the level in use.
DYNKERN_EXPORT const char* dynkern_cpu_isa() { return dynkern::kernels().name; }

// Use the level of that name, or "auto" for the best one. Returns 0, -1 for an unknown name, -2 for
// a level that this processor has not. Not to be called while a pass runs.
DYNKERN_EXPORT int dynkern_cpu_set_isa(const char* name) {
  using namespace dynkern;
  if (std::strcmp(name, "auto") == 0) {
    in_use.store(best(), std::memory_order_release);
    return 0;
  }
  Level all[kMaxLevels];
  for (int i = 0, n = levels(all); i < n; ++i) {
    if (std::strcmp(all[i].name, name) != 0) continue;
    if (!all[i].present) return -2;
    in_use.store(all[i].kernels(), std::memory_order_release);
    return 0;
  }
  return -1;
}
