// SPDX-License-Identifier: MIT
// Copies a rectangle between any strides and scalars, transposing in registers where rows meet
// columns.
//
// How queries are packed across lanes, keys of foreign layout or scalar are brought to rows of the
// accumulator type, and outputs are written back. Widening is exact; narrowing rounds to nearest
// even.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/simd/convert.hpp"
#include "heed/simd/packet.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Where a rectangle lies: element (r, c) at data[r * row + c * column].
template <class T>
struct rectangle {
  T* data = nullptr;
  index row = 0;
  index column = 0;

  [[nodiscard]] constexpr rectangle transposed() const noexcept { return {data, column, row}; }
  [[nodiscard]] constexpr T* at(index r, index c) const noexcept {
    return data + r * row + c * column;
  }
};

/// n numbers in packets, for rows that are short and many: a call of memmove for each would hold up
/// the loads of the next.
template <class T>
HEED_INLINE void copy_row(const T* from, T* to, index n) noexcept {
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    simd::widen_row(from, to, n);
  } else {
    std::copy_n(from, n, to);
  }
}

/// rows x columns numbers of `from` to `to`; they do not overlap.
template <class S, class D>
void copy_tile(rectangle<const S> from, rectangle<D> to, index rows, index columns) noexcept {
  if (to.column != 1 && to.row == 1) {
    from = from.transposed();
    to = to.transposed();
    std::swap(rows, columns);
  }
  if (from.column == 1 && to.column == 1) {
    for (index r = 0; r < rows; ++r) {
      if constexpr (std::is_same_v<S, D>) {
        copy_row(from.at(r, 0), to.at(r, 0), columns);
      } else if constexpr (sizeof(D) > sizeof(S)) {
        simd::widen_row(from.at(r, 0), to.at(r, 0), columns);
      } else if constexpr (std::is_same_v<accumulate_t<D>, S>) {
        simd::narrow_row(from.at(r, 0), to.at(r, 0), columns);
      } else {
        std::transform(from.at(r, 0), from.at(r, 0) + columns, to.at(r, 0),
                       [](const S& x) { return static_cast<D>(x); });
      }
    }
    return;
  }
  using A = accumulate_t<std::conditional_t<(sizeof(S) > sizeof(D)), S, D>>;
  constexpr index w = simd::lanes<A>;
  if (from.row == 1 && to.column == 1 && w > 1) {
    // Blocks of w x w: columns of `from` are contiguous and become rows of `to`.
    A block[std::size_t{w * w}];
    A transposed[std::size_t{w * w}];
    for (index r = 0; r < rows; r += w) {
      const index height = rows - r < w ? rows - r : w;
      for (index c = 0; c < columns; c += w) {
        const index width = columns - c < w ? columns - c : w;
        if constexpr (std::is_same_v<S, A> && std::is_same_v<D, A>) {
          if (height == w && width == w) {
            simd::transpose(from.at(r, c), from.column, to.at(r, c), to.row);
            continue;
          }
        }
        for (index i = 0; i < width; ++i) {
          simd::widen_row(from.at(r, c + i), block + i * w, height);
        }
        simd::transpose(block, w, transposed, w);
        for (index i = 0; i < height; ++i) {
          simd::narrow_row(transposed + i * w, to.at(r + i, c), width);
        }
      }
    }
    return;
  }
  for (index r = 0; r < rows; ++r) {
    for (index c = 0; c < columns; ++c) *to.at(r, c) = static_cast<D>(*from.at(r, c));
  }
}

}  // namespace heed::inline HEED_TARGET::kernel
