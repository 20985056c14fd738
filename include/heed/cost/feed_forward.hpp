// SPDX-License-Identifier: MIT
// The cost of a feed-forward layer, plain or gated.
//
//   plain   W2 f(W1 x)                 2 d h weights,  4 n d h FLOPs
//   gated   W2 (f(W1 x) * (W3 x))      3 d h weights,  6 n d h FLOPs
//
// for n tokens, model dim d and hidden dim h: linear in n, quadratic in the width.
// Source of the gated form: Shazeer, GLU Variants Improve Transformer (2020), arXiv:2002.05202.
#pragma once

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/cost/work.hpp"

namespace heed::inline HEED_TARGET::cost {

struct feed_forward_shape {
  index model_dim = 0;
  index hidden_dim = 0;
  bool gated = false;

  [[nodiscard]] constexpr double weights() const noexcept {
    return (gated ? 3.0 : 2.0) * static_cast<double>(model_dim) * static_cast<double>(hidden_dim);
  }
};

/// `scalar_bytes` is that of weights and activations. Extra memory is the hidden layer.
[[nodiscard]] constexpr work feed_forward(const feed_forward_shape& s, index tokens,
                                          index scalar_bytes = 2) noexcept {
  const double n = static_cast<double>(tokens);
  const double bytes = static_cast<double>(scalar_bytes);
  const double hidden = n * static_cast<double>(s.hidden_dim) * bytes;
  const double copies = s.gated ? 2.0 : 1.0;
  // Input and output once, the weights once, each hidden matrix written and read.
  return {
      2 * n * s.weights(),
      2 * n * static_cast<double>(s.model_dim) * bytes + s.weights() * bytes + 2 * copies * hidden,
      copies * hidden};
}

}  // namespace heed::inline HEED_TARGET::cost
