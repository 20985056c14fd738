// SPDX-License-Identifier: MIT
// Large pages for large tensors, where the system offers them on request.
//
// Streaming through a tensor with pages of 4 KB spends a fifth to a third of the time translating
// addresses, most of all on virtual machines, and the first touch of each page costs microseconds.
#pragma once

#include <cstddef>
#include <cstdint>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>

#include "heed/core/target.hpp"
#endif

namespace heed::inline HEED_TARGET {

/// Asks that fresh memory be backed by large pages. A hint: without the system's help, or for less
/// than a few large pages, nothing happens.
inline void prefer_large_pages(void* data, std::size_t bytes) noexcept {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t{1} << 21U;
  const auto first = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const auto last = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  if (last > first && last - first >= 2 * page) {
    (void)::madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)data;
  (void)bytes;
#endif
}

}  // namespace heed::inline HEED_TARGET
