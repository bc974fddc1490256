// Memory that passes work in: aligned, grown when needed, kept for the next pass.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace dynkern {

constexpr size_t kHugePage = size_t{2} << 20;

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // At least n elements; what was there before is lost where it has to grow.
  T* need(int64_t n) {
    if (n > size_) {
      std::free(data_);
      size_ = 0;
      // rows of a long prompt lie on more small pages than a processor keeps addresses of
      const size_t wanted = static_cast<size_t>(n) * sizeof(T);
      const size_t alignment = wanted < kHugePage ? 64 : kHugePage;
      const size_t bytes = (wanted + alignment - 1) / alignment * alignment;
      data_ = static_cast<T*>(std::aligned_alloc(alignment, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      if (alignment == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
      size_ = n;
    }
    return data_;
  }

  T* data() { return data_; }

  // Gives memory back that only a long prompt needed.
  void trim(int64_t most_bytes) {
    if (size_ * static_cast<int64_t>(sizeof(T)) <= most_bytes) return;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace dynkern
