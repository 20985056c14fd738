// SPDX-License-Identifier: MIT
// Where the rows of a block lie, as the few-query kernel reads them: a fixed stride apart, or
// each where a list says. A row's channels are next to each other.
#pragma once

#include <cstddef>
#include <type_traits>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Prefetches a row of `channels` numbers into the cache of `Level` 1 or 2. Of rows that lie anywhere
/// nothing but a list knows which ones come next.
template <int Level, class T>
HEED_INLINE void prefetch_row(const T* row, index channels) noexcept {
  const auto* const bytes = reinterpret_cast<const std::byte*>(row);
  for (index at = 0; at < channels * static_cast<index>(sizeof(T)); at += 64) {
    simd::prefetch<Level>(bytes + at);
  }
}

/// Prefetches the lines of `Count` numbers at `p`, rounded up.
template <index Count, class T>
HEED_INLINE void prefetch_numbers(const T* p) noexcept {
  constexpr auto lines = static_cast<int>(ceil_div(Count * static_cast<index>(sizeof(T)), 64));
  simd::unroll<lines>([&](auto i) HEED_INLINE_LAMBDA {
    simd::prefetch(reinterpret_cast<const char*>(p) + 64 * i);
  });
}

/// What is prefetched while other rows are computed with: rows of `channels` numbers, `step` of
/// `next` apart, which is a pointer to the row that follows or to its place in a list. With step 0 it
/// stays with one row.
template <class T, class Next>
struct rows_ahead {
  const T* at = nullptr;
  index left = 0;  // numbers of this row
  Next next{};
  index step = 0;
  index channels = 0;

  /// The next `Count` numbers, which begin a row where the last one ended among those before.
  template <index Count>
  HEED_INLINE void issue() noexcept {
    prefetch_numbers<Count>(at);
    at += Count;
    left -= Count;
    if (left > 0) return;
    if constexpr (std::is_same_v<Next, const T*>) {
      at = next;
    } else {
      at = static_cast<const T*>(*next);
    }
    left = channels;
    next += step;
  }
};

/// Rows of a run, of which `left` begin at `data`: those may be prefetched.
template <class T>
struct strided_rows {
  using scalar = T;
  const T* data = nullptr;
  index stride = 0;
  index left = 0;

  [[nodiscard]] HEED_INLINE const T* operator()(index j) const noexcept {
    return data + j * stride;
  }
  [[nodiscard]] HEED_INLINE strided_rows from(index j) const noexcept {
    return {data + j * stride, stride, left - j};
  }
  /// What to prefetch while the first `rows` rows are computed with: the rows `ahead` of them where
  /// the run still holds those.
  [[nodiscard]] HEED_INLINE rows_ahead<T, const T*> ahead_of(index rows, index ahead,
                                                             index channels) const noexcept {
    if (rows + ahead > left) return stay(channels);
    const T* const first = data + ahead * stride;
    // Rows without a gap are one.
    if (stride == channels) return {first, (rows + 1) * channels, first, 0, channels};
    return {first, channels, first + stride, stride, channels};
  }
  [[nodiscard]] HEED_INLINE rows_ahead<T, const T*> stay(index channels) const noexcept {
    return {data, channels, data, 0, channels};
  }
};

/// Rows of which each lies where its pointer says: those of a block in pages, `left` from here on,
/// which may be prefetched, or selected ones. Those are few enough, and near enough, that the
/// processor runs ahead to the next ones by itself: none is prefetched, and `left` is 0.
template <class T>
struct listed_rows {
  using scalar = T;
  const void* const* row = nullptr;
  index left = 0;

  [[nodiscard]] HEED_INLINE const T* operator()(index j) const noexcept {
    return static_cast<const T*>(row[j]);
  }
  [[nodiscard]] HEED_INLINE listed_rows from(index j) const noexcept { return {row + j, left - j}; }
  [[nodiscard]] HEED_INLINE rows_ahead<T, const void* const*> ahead_of(
      index rows, index ahead, index channels) const noexcept {
    if (rows + ahead >= left) return stay(channels);
    return {(*this)(ahead), channels, row + ahead + 1, 1, channels};
  }
  [[nodiscard]] HEED_INLINE rows_ahead<T, const void* const*> stay(index channels) const noexcept {
    return {(*this)(0), channels, row, 0, channels};
  }
};

}  // namespace heed::inline HEED_TARGET::kernel
