// SPDX-License-Identifier: MIT
// Tokens normalised as routing wants them, without a copy of them: x - mean(x), of length 1.
//
// Layer normalisation without scale and shift puts tokens on a sphere; of its radius, sqrt(head
// dim), nothing that compares tokens depends. c.x' = (c.x - mean(x) sum(c)) / |x - mean(x)|.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "heed/parallel/executor.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed {

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
    const index d = x.extent(3);
    const index steps = ceil_div(n, step);
    const index tasks = x.extent(0) * x.extent(1) * steps;
    if (tasks == 0) return;
    for_each_task(exec, std::max<index>(1, static_cast<index>(exec.concurrency())), tasks,
                  [&](index, index t) noexcept {
                    const index b = t / steps / x.extent(1);
                    const index h = t / steps % x.extent(1);
                    for (index i = t % steps * step; i < std::min(n, (t % steps + 1) * step); ++i) {
                      A sum = A(0);
                      for (index c = 0; c < d; ++c) sum += static_cast<A>(x(b, h, i, c));
                      const A m = d > 0 ? sum / static_cast<A>(d) : A(0);
                      A square = A(0);
                      for (index c = 0; c < d; ++c) {
                        const A away = static_cast<A>(x(b, h, i, c)) - m;
                        square += away * away;
                      }
                      mean(b, h, i) = m;
                      // What the mean's own rounding may leave of a constant token is no direction.
                      const A left = static_cast<A>(d) * std::numeric_limits<A>::epsilon() * m;
                      const bool constant = square <= static_cast<A>(d) * left * left;
                      inverse(b, h, i) = constant ? A(0) : A(1) / std::sqrt(square);
                    }
                  });
  }
};

}  // namespace heed
