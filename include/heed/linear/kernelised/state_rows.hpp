// SPDX-License-Identifier: MIT
// Rows of one head: where they lie, and those of its state S and z, copied to scratch and back.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/kernel/chunk/gemm.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/linear/kernelised/state.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Rows of one head from token `first` on.
template <class T>
[[nodiscard]] rectangle<T> head_rows(const view<T, 4>& x, index b, index h, index first) noexcept {
  return {x.data() + b * x.stride(0) + h * x.stride(1) + first * x.stride(2), x.stride(2),
          x.stride(3)};
}

/// Whether packets may run along the rows of a matrix where it lies.
template <class A, class T>
[[nodiscard]] bool packets_fit(index row_stride, index column_stride, index columns) noexcept {
  return std::is_same_v<A, std::remove_const_t<T>> && column_stride == 1 &&
         columns % simd::lanes<A> == 0 &&
         row_stride * static_cast<index>(sizeof(A)) % tile_plan<A>::aliasing_bytes != 0;
}

/// z of one head.
template <class A>
[[nodiscard]] A* head_normaliser(const linear_state_view<A>& of, index b, index h) noexcept {
  return of.normaliser.data() + b * of.normaliser.stride(0) + h * of.normaliser.stride(1);
}

/// S to rows padded with zeros; zeros alone where `from` has no data.
template <class A>
void load_sum(const linear_state_view<A>& from, index b, index h, matrix_rows<A> to, index features,
              index channels) noexcept {
  for (index f = 0; f < features; ++f) std::fill_n(to[f], to.stride, A(0));
  if (from.sum.data() == nullptr) return;
  const auto rows = head_rows(from.sum, b, h, 0);
  copy_tile(rectangle<const A>{rows.data, rows.row, rows.column},
            rectangle<A>{to.data, to.stride, 1}, features, channels);
}
template <class A>
void load_normaliser(const linear_state_view<A>& from, index b, index h, A* to,
                     index features) noexcept {
  std::fill_n(to, round_up(features, simd::lanes<A>), A(0));
  if (from.normaliser.data() == nullptr) return;
  const A* numbers = head_normaliser(from, b, h);
  for (index f = 0; f < features; ++f) to[f] = numbers[f * from.normaliser.stride(2)];
}

/// And back, where `to` has data.
template <class A>
void store_sum(matrix_rows<A> from, const linear_state_view<A>& to, index b, index h,
               index features, index channels) noexcept {
  if (to.sum.data() == nullptr) return;
  copy_tile(rectangle<const A>{from.data, from.stride, 1}, head_rows(to.sum, b, h, 0), features,
            channels);
}
template <class A>
void store_normaliser(const A* from, const linear_state_view<A>& to, index b, index h,
                      index features) noexcept {
  if (to.normaliser.data() == nullptr) return;
  A* numbers = head_normaliser(to, b, h);
  for (index f = 0; f < features; ++f) numbers[f * to.normaliser.stride(2)] = from[f];
}

}  // namespace heed::inline HEED_TARGET::detail
