// SPDX-License-Identifier: MIT
// The rotation itself: where cosines and sines come from, and the loop over tokens, heads and
// pairs.
//
// Cosines and sines of one token are produced once, a block of pairs at a time, and serve all
// heads.
#pragma once

#include <algorithm>
#include <cmath>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/rotary/embedding.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Cosines and sines are produced for this many pairs at a time, on the stack.
inline constexpr index rotary_block = 64;

template <class A>
using rotary_row = Eigen::Array<A, Eigen::Dynamic, 1, Eigen::ColMajor, rotary_block, 1>;

template <class Positions>
struct computed_rotation {
  const rotary_embedding& rope;
  Positions position;

  [[nodiscard]] bool shared() const noexcept { return position.shared(); }
  template <class A>
  void operator()(index batch, index token, index first, rotary_row<A>& cos,
                  rotary_row<A>& sin) const noexcept {
    const auto p = static_cast<double>(position(batch, token));
    for (index i = 0; i < cos.size(); ++i) {
      const double angle = p * rope.frequencies()[static_cast<std::size_t>(first + i)];
      cos[i] = static_cast<A>(rope.magnitude() * std::cos(angle));
      sin[i] = static_cast<A>(rope.magnitude() * std::sin(angle));
    }
  }
};

template <class C, class S, class Positions>
struct table_rotation {
  view<const C, 2> cos_table;
  view<const S, 2> sin_table;
  Positions position;

  [[nodiscard]] bool shared() const noexcept { return position.shared(); }
  template <class A>
  void operator()(index batch, index token, index first, rotary_row<A>& cos,
                  rotary_row<A>& sin) const noexcept {
    const index row = position(batch, token);
    for (index i = 0; i < cos.size(); ++i) {
      cos[i] = static_cast<A>(cos_table(row, first + i));
      sin[i] = static_cast<A>(sin_table(row, first + i));
    }
  }
};

template <class C, class S>
struct gathered_rotation {
  view<const C, 3> cos_rows;
  view<const S, 3> sin_rows;

  [[nodiscard]] static constexpr bool shared() noexcept { return false; }
  template <class A>
  void operator()(index batch, index token, index first, rotary_row<A>& cos,
                  rotary_row<A>& sin) const noexcept {
    for (index i = 0; i < cos.size(); ++i) {
      cos[i] = static_cast<A>(cos_rows(batch, token, first + i));
      sin[i] = static_cast<A>(sin_rows(batch, token, first + i));
    }
  }
};

/// Pairs (xa[i], xb[i]) into (oa[i], ob[i]); both strides in elements. In place is fine.
template <class A, class T>
void rotate_pairs(T* oa, T* ob, index out_stride, const T* xa, const T* xb, index x_stride,
                  const rotary_row<A>& cos, const rotary_row<A>& sin) noexcept {
  const index n = cos.size();
  if (out_stride == 1 && x_stride == 1) {
    using in = Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>>;
    using out = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>;
    const rotary_row<A> a = in(xa, n).template cast<A>();
    const rotary_row<A> b = in(xb, n).template cast<A>();
    out(oa, n) = (a * cos - b * sin).template cast<T>();
    out(ob, n) = (b * cos + a * sin).template cast<T>();
    return;
  }
  for (index i = 0; i < n; ++i) {
    const auto a = static_cast<A>(xa[i * x_stride]);
    const auto b = static_cast<A>(xb[i * x_stride]);
    oa[i * out_stride] = static_cast<T>(a * cos[i] - b * sin[i]);
    ob[i * out_stride] = static_cast<T>(b * cos[i] + a * sin[i]);
  }
}

/// Every head of one token of one element of the batch, for pairs first .. first + cos.size() - 1.
template <class A, class T>
void rotate_heads(const view<T, 4>& out, const view<const T, 4>& x, index batch, index token,
                  rotary_layout layout, index pairs, index first, const rotary_row<A>& cos,
                  const rotary_row<A>& sin) noexcept {
  const bool split = layout == rotary_layout::half_split;
  const index step = split ? 1 : 2;        // channels from one pair to the next
  const index across = split ? pairs : 1;  // channels from a pair's first to its second
  for (index h = 0; h < x.extent(1); ++h) {
    T* o = &out(batch, h, token, first * step);
    const T* i = &x(batch, h, token, first * step);
    rotate_pairs<A>(o, o + across * out.stride(3), step * out.stride(3), i,
                    i + across * x.stride(3), step * x.stride(3), cos, sin);
  }
}

template <class T, class Rotation>
void rotate_tokens(const view<T, 4>& out, const view<const T, 4>& x, rotary_layout layout,
                   index pairs, const Rotation& rotation) noexcept {
  using A = accumulate_t<T>;
  const index batch = x.extent(0);
  rotary_row<A> cos;
  rotary_row<A> sin;
  if (x.empty()) return;
  for (index n = 0; n < x.extent(2); ++n) {
    for (index first = 0; first < pairs; first += rotary_block) {
      cos.resize((std::min)(rotary_block, pairs - first));
      sin.resize(cos.size());
      for (index b = 0; b < batch; ++b) {
        if (b == 0 || !rotation.shared()) rotation(b, n, first, cos, sin);
        rotate_heads<A>(out, x, b, n, layout, pairs, first, cos, sin);
      }
    }
  }
  if (out.data() == x.data()) return;
  for (index b = 0; b < batch; ++b) {
    for (index h = 0; h < x.extent(1); ++h) {
      for (index n = 0; n < x.extent(2); ++n) {
        for (index c = 2 * pairs; c < x.extent(3); ++c) out(b, h, n, c) = x(b, h, n, c);
      }
    }
  }
}

}  // namespace heed::inline HEED_TARGET::detail
