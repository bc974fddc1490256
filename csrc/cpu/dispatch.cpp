// Which instruction set the kernels use: the best that the processor has, or the cap that was set.
#include <atomic>
#include <cstring>

#include "../common/abi.h"
#include "kernels.h"

namespace dynkern {
namespace {

struct Level {
  const Kernels* (*kernels)();
  bool present;
};

constexpr int kMaxLevels = 5;

// Ascending; each entry runs what those before it run.
int levels(Level* out) {
  int n = 0;
  out[n++] = {portable_kernels, true};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  out[n++] = {avx2_kernels, avx2};
  out[n++] = {avx512_kernels, avx512};
  out[n++] = {avx512_vnni_kernels, vnni};
  out[n++] = {avx512_bf16_kernels, vnni && __builtin_cpu_supports("avx512bf16")};
#endif
  return n;
}

std::atomic<const Kernels*> in_use{nullptr};

const Kernels* best() {
  Level all[kMaxLevels];
  const Kernels* found = nullptr;
  for (int i = 0, n = levels(all); i < n; ++i) {
    if (all[i].present) found = all[i].kernels();
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

// Name of the index-th level that this build knows, lowest first; nullptr behind the last one.
DYNKERN_EXPORT const char* dynkern_cpu_isa_name(int index) {
  dynkern::Level all[dynkern::kMaxLevels];
  return index < dynkern::levels(all) ? all[index].kernels()->name : nullptr;
}

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
    const Kernels* candidate = all[i].kernels();
    if (std::strcmp(candidate->name, name) != 0) continue;
    if (!all[i].present) return -2;
    in_use.store(candidate, std::memory_order_release);
    return 0;
  }
  return -1;
}
