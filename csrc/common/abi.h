// What both native libraries say of themselves to dynkern/kernels/native.py.
#pragma once

#define DYNKERN_EXPORT extern "C" __attribute__((visibility("default")))

namespace dynkern {

// Raised with every change to an exported signature or struct; native.py refuses other numbers.
constexpr int kCpuAbi = 6;
constexpr int kCudaAbi = 2;

}  // namespace dynkern
