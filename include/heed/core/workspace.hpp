// SPDX-License-Identifier: MIT
// Scratch memory that a caller may keep between calls, aligned to a cache line.
//
// The first touch of a fresh page costs the operating system's zeroing of it; a kernel that runs
// for less than a millisecond would spend more on that than on arithmetic. A kept workspace pays
// once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

/// Bytes at whose multiples scratch memory is aligned.
inline constexpr std::size_t cache_line = 64;

namespace detail {
struct aligned_delete {
  void operator()(std::byte* p) const noexcept {
    ::operator delete(p, std::align_val_t{cache_line});
  }
};
}  // namespace detail

/// Grows on demand and never shrinks. Not for use by two calls at the same time.
class workspace {
 public:
  workspace() = default;
  explicit workspace(std::size_t bytes) { (void)reserve(bytes); }

  /// At least `bytes` bytes at a 64-byte boundary; contents are not kept when it grows.
  /// Throws std::bad_alloc, leaving the workspace as it was.
  [[nodiscard]] std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      std::unique_ptr<std::byte, detail::aligned_delete> grown(
          static_cast<std::byte*>(::operator new(bytes, std::align_val_t{cache_line})));
      memory_ = std::move(grown);
      size_ = bytes;
    }
    return memory_.get();
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

 private:
  std::unique_ptr<std::byte, detail::aligned_delete> memory_;
  std::size_t size_ = 0;
};

/// Hands out consecutive aligned pieces of a block. With a null block it only counts, so that the
/// same code first measures and then allocates.
class arena {
 public:
  explicit arena(std::byte* block = nullptr) noexcept : block_(block) {}

  template <class T>
  [[nodiscard]] T* allocate(index count) noexcept {
    const std::size_t at = used_;
    const auto bytes = static_cast<std::size_t>(count > 0 ? count : 0) * sizeof(T);
    used_ += (bytes + cache_line - 1) / cache_line * cache_line;
    if (block_ == nullptr) return nullptr;
    HEED_ASSERT(reinterpret_cast<std::uintptr_t>(block_ + at) % alignof(T) == 0);
    return reinterpret_cast<T*>(block_ + at);
  }

  [[nodiscard]] std::size_t used() const noexcept { return used_; }

 private:
  std::byte* block_;
  std::size_t used_ = 0;
};

}  // namespace heed::inline HEED_TARGET
