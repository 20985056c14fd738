// SPDX-License-Identifier: MIT
// Tokens normalised as routing wants them, without a copy of them: x - mean(x), of length 1.
//
// Layer normalisation without scale and shift puts tokens on a sphere; of its radius, sqrt(head
// dim), nothing that compares tokens depends. c.x' = (c.x - mean(x) sum(c)) / |x - mean(x)|.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/simd/convert.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Mean, and sum of squares around it, of `n` numbers `stride` apart.
template <class A, class T>
void moments(const T* x, index stride, index n, A& mean, A& square) noexcept {
  using simd::lanes;
  const index whole = stride == 1 ? n / lanes<A> * lanes<A> : 0;
  auto sums = simd::zero<A>();
  for (index c = 0; c < whole; c += lanes<A>) sums = simd::add(sums, simd::load_widened<A>(x + c));
  A sum = simd::sum(sums);
  for (index c = whole; c < n; ++c) sum += static_cast<A>(x[c * stride]);
  mean = n > 0 ? sum / static_cast<A>(n) : A(0);
  auto squares = simd::zero<A>();
  for (index c = 0; c < whole; c += lanes<A>) {
    const auto away = simd::sub(simd::load_widened<A>(x + c), simd::broadcast(mean));
    squares = simd::fmadd(away, away, squares);
  }
  square = simd::sum(squares);
  for (index c = whole; c < n; ++c) {
    const A away = static_cast<A>(x[c * stride]) - mean;
    square += away * away;
  }
}

}  // namespace detail

/// Mean and 1 / |x - mean| of each token, [batch, heads, tokens]; the latter is 0 where x is
/// constant: such a token is near nothing.
template <class A>
struct token_norms {
  tensor<A, 3> mean;
  tensor<A, 3> inverse;

  template <executor E, class T>
  token_norms(E& exec, const view<const T, 4>& x)
      : mean({x.extent(0), x.extent(1), x.extent(2)}), inverse(mean.extents()) {
    constexpr index step = 256;
    const index n = x.extent(2);
    const auto d = static_cast<A>(x.extent(3));
    const index steps = ceil_div(n, step);
    const index tasks = x.extent(0) * x.extent(1) * steps;
    if (tasks == 0) return;
    for_each_task(exec, detail::worker_count(exec, tasks), tasks, [&](index, index t) noexcept {
      const index b = t / steps / x.extent(1);
      const index h = t / steps % x.extent(1);
      for (index i = t % steps * step; i < (std::min)(n, (t % steps + 1) * step); ++i) {
        A m = A(0);
        A square = A(0);
        const T* const token = x.data() + b * x.stride(0) + h * x.stride(1) + i * x.stride(2);
        detail::moments(token, x.stride(3), x.extent(3), m, square);
        // What the mean's own rounding may leave of a constant token is no direction.
        const A left = d * std::numeric_limits<A>::epsilon() * m;
        mean(b, h, i) = m;
        inverse(b, h, i) = square <= d * left * left ? A(0) : A(1) / std::sqrt(square);
      }
    });
  }
};

}  // namespace heed::inline HEED_TARGET
