// Memory that passes work in: aligned, grown when needed, kept for the next pass.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace dynkern {

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
      const size_t bytes = (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
      data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
      if (data_ == nullptr) throw std::bad_alloc();
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
