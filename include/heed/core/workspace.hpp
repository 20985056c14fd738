// SPDX-License-Identifier: MIT
// Scratch memory that a caller may keep between calls, aligned to a cache line.
//
// The first touch of a fresh page costs the operating system's zeroing of it; a kernel that runs
// for less than a millisecond would spend more on that than on arithmetic. A kept workspace pays
// once.
#pragma once

#include <algorithm>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

#include "heed/core/checked.hpp"
#include "heed/core/config.hpp"
#include "heed/core/errors.hpp"
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

/// Grows on demand and never shrinks. Not for use by two calls at the same time: the second of them
/// is refused (see `scratch_lease`).
class workspace {
 public:
  workspace() = default;
  explicit workspace(std::size_t bytes) { (void)reserve(bytes); }
  workspace(workspace&& other) noexcept
      : memory_(std::move(other.memory_)), size_(std::exchange(other.size_, 0)) {}
  workspace& operator=(workspace&& other) noexcept {
    memory_ = std::move(other.memory_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~workspace() = default;

  /// At least `bytes` bytes at a 64-byte boundary; contents are not kept when it grows.
  /// Throws std::bad_alloc, or shape_error where no memory could hold them, leaving the workspace
  /// as it was.
  [[nodiscard]] std::byte* reserve(std::size_t bytes) {
    if (bytes > size_) {
      if (bytes >= most_bytes) {
        fail<shape_error>("the extents need more scratch than memory can hold");
      }
      std::unique_ptr<std::byte, detail::aligned_delete> grown(
          static_cast<std::byte*>(::operator new(bytes, std::align_val_t{cache_line})));
      memory_ = std::move(grown);
      size_ = bytes;
    }
    return memory_.get();
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  /// What counts of bytes saturate at: whole cache lines.
  static constexpr std::size_t most_bytes =
      static_cast<std::size_t>(largest_index) / cache_line * cache_line;

 private:
  friend class scratch_lease;

  std::unique_ptr<std::byte, detail::aligned_delete> memory_;
  std::size_t size_ = 0;
  std::atomic<bool> in_use_{false};
};

/// The scratch of one call for as long as the lease lives: the caller's workspace, or one of its own
/// where he gave none. Throws option_error where another call has the caller's.
class scratch_lease {
 public:
  explicit scratch_lease(workspace* given) : given_(given) {
    if (given_ != nullptr && given_->in_use_.exchange(true, std::memory_order_acquire)) {
      fail<option_error>(
          "scratch is in use by another call: calls at the same time need a workspace each");
    }
  }
  scratch_lease(const scratch_lease&) = delete;
  scratch_lease& operator=(const scratch_lease&) = delete;
  ~scratch_lease() {
    if (given_ != nullptr) given_->in_use_.store(false, std::memory_order_release);
  }

  [[nodiscard]] workspace& memory() noexcept { return given_ != nullptr ? *given_ : own_; }
  [[nodiscard]] std::byte* reserve(std::size_t bytes) { return memory().reserve(bytes); }
  /// `each` bytes for each of `workers`.
  [[nodiscard]] std::byte* reserve(std::size_t each, index workers) {
    return reserve(static_cast<std::size_t>(saturating_product(static_cast<index>(each), workers)));
  }

 private:
  workspace own_;
  workspace* given_;
};

/// Hands out consecutive aligned pieces of a block. With a null block it only counts, so that the
/// same code first measures and then allocates. What memory could not hold counts as
/// workspace::most_bytes, which `workspace::reserve` refuses.
class arena {
 public:
  explicit arena(std::byte* block = nullptr) noexcept : block_(block) {}

  /// Of as many T as the product of the counts.
  template <class T, std::convertible_to<index>... More>
  [[nodiscard]] T* allocate(index count, More... more) noexcept {
    constexpr auto most = workspace::most_bytes;
    const std::size_t at = used_;
    const auto bytes = static_cast<std::size_t>(
        saturating_product(static_cast<index>(sizeof(T)), std::max<index>(count, 0),
                           std::max<index>(static_cast<index>(more), 0)...));
    const std::size_t lines = (std::min)(bytes, most - cache_line) + cache_line - 1;
    used_ = (std::min)(used_ + lines / cache_line * cache_line, most);
    if (bytes > most - cache_line) used_ = most;
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
