// The edge of the C ABI: no exception leaves the library.
#pragma once

#include <new>
#include <stdexcept>

#include "engine.h"

namespace dynkern {

// What function() returns, or kNoMemory.
template <class Function>
int64_t guarded(Function&& function) noexcept {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  } catch (const std::length_error&) {  // of a vector: more than any memory holds
    return kNoMemory;
  }
}

}  // namespace dynkern
