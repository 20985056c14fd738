// SPDX-License-Identifier: MIT
// Where the rows of a block lie, as the few-query kernel reads them: a fixed stride apart, or
// each where a list says. A row's channels are next to each other.
#pragma once

#include <cstddef>

#include "heed/core/config.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Asks for a row of `channels` numbers to come into the cache of `Level` 1 or 2. Of rows that lie
/// anywhere nothing but a list knows which ones come next.
template <int Level, class T>
HEED_INLINE void prefetch_row(const T* row, index channels) noexcept {
  const auto* const bytes = reinterpret_cast<const std::byte*>(row);
  for (index at = 0; at < channels * static_cast<index>(sizeof(T)); at += 64) {
    simd::prefetch<Level>(bytes + at);
  }
}

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
  /// Where to prefetch while the first `rows` rows are computed with: the rows `ahead` of them
  /// where the run still holds those. Rows with gaps between them are prefetched at once, and what
  /// is here already a second time, which costs nothing.
  [[nodiscard]] HEED_INLINE const T* prefetch_from(index rows, index ahead,
                                                   index channels) const noexcept {
    if (rows + ahead > left) return data;
    const T* const next = data + ahead * stride;
    if (stride == channels) return next;
    for (index r = 0; r < rows; ++r) prefetch_row<1>(next + r * stride, channels);
    return data;
  }
};

/// Rows of which each lies where its pointer says. They are few enough, and near enough, that the
/// processor runs ahead to the next ones by itself: nothing is prefetched.
template <class T>
struct listed_rows {
  using scalar = T;
  const void* const* row = nullptr;

  [[nodiscard]] HEED_INLINE const T* operator()(index j) const noexcept {
    return static_cast<const T*>(row[j]);
  }
  [[nodiscard]] HEED_INLINE listed_rows from(index j) const noexcept { return {row + j}; }
  [[nodiscard]] HEED_INLINE const T* prefetch_from(index, index, index) const noexcept {
    return (*this)(0);
  }
};

}  // namespace heed::inline HEED_TARGET::kernel
