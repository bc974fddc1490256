// What the CPU library says of itself and of the processor it runs on.
#include "../common/abi.h"
#include "features.h"

namespace {

struct Feature {
  const char* name;
  bool present;
};

}  // namespace

DYNKERN_EXPORT int dynkern_cpu_abi() { return dynkern::kCpuAbi; }

// Name of the index-th instruction set that kernels may choose among and this processor has;
// nullptr behind the last one.
DYNKERN_EXPORT const char* dynkern_cpu_feature(int index) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const Feature features[] = {
      {"avx2", __builtin_cpu_supports("avx2") != 0},
      {"avxvnni", dynkern::has_avx_vnni()},
      {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},
      {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0},
      {"avx512vnni", __builtin_cpu_supports("avx512vnni") != 0},
      {"avx512bf16", __builtin_cpu_supports("avx512bf16") != 0},
  };
  for (const Feature& feature : features) {
    if (feature.present && index-- == 0) return feature.name;
  }
#endif
  (void)index;
  return nullptr;
}
