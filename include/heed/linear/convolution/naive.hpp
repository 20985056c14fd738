// SPDX-License-Identifier: MIT
// Depthwise causal convolution as a textbook has it: plain loops in double.
//
//   y[b,c,t] = sum_j weight[c][j] x[b,c,t + j - (W-1)]         j = 0 .. W-1, x = 0 before the first
//
//   auto want = heed::naive_causal_convolution(x, weight);
//
// x [batch, channels, tokens], weight [channels, W]. For reading and for tests; nothing is checked.
// Source: van den Oord et al. 2016, arXiv 1609.03499, section 2.1.
#pragma once

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

template <class X, class W>
[[nodiscard]] tensor<double, 3> naive_causal_convolution(const X& x, const W& weight) {
  const auto e = as_view(x).extents();
  const index taps = as_view(weight).extent(1);
  tensor<double, 3> y(e);
  for (index b = 0; b < e[0]; ++b) {
    for (index c = 0; c < e[1]; ++c) {
      for (index t = 0; t < e[2]; ++t) {
        for (index j = 0; j < taps; ++j) {
          const index at = t + j - (taps - 1);
          if (at < 0) continue;
          y(b, c, t) += static_cast<double>(weight(c, j)) * static_cast<double>(x(b, c, at));
        }
      }
    }
  }
  return y;
}

}  // namespace heed::inline HEED_TARGET
