// SPDX-License-Identifier: MIT
// Kernelised linear attention as a textbook has it: plain loops over every pair, in double.
//
//   out_i = sum_j (phi(q_i).phi(k_j)) v_j / (sum_j phi(q_i).phi(k_j) + eps)          normalised
//   out_i = scale sum_j (phi(q_i).phi(k_j)) v_j                                      otherwise
//
// over j <= i when causal, else over every key. For reading and for tests: O(N M (D + Dv)).
//
//   auto want = heed::naive_linear_attention(q, k, v, options);                      // elu + 1
//   auto same = heed::naive_linear_attention(q, k, v, options, [](double x) { return x * x; });
//
// q [batch, heads, N, D], k and v [batch, kv heads, M, D or Dv]; ranks 2 and 3 leave out batch, or
// batch and heads. Of the options `causal`, `normalise`, `eps` and `scale` are read. The result is
// [batch, heads, N, Dv]. Throws what linear_attention does for shapes.
// Source: Katharopoulos et al. 2020, arXiv 2006.16236, eq. 5.
#pragma once

#include <cmath>

#include "heed/core/target.hpp"
#include "heed/linear/kernelised/linear_attention.hpp"

namespace heed::inline HEED_TARGET {

/// elu(x) + 1 of a number.
struct naive_elu_plus_one {
  [[nodiscard]] double operator()(double x) const noexcept { return x > 0 ? x + 1 : std::exp(x); }
};

template <tensor_like Q, tensor_like K, tensor_like V, class Map = naive_elu_plus_one>
[[nodiscard]] tensor<double, 4> naive_linear_attention(const Q& q_, const K& k_, const V& v_,
                                                       const linear_options& o = {},
                                                       const Map& phi = {}) {
  const auto q = as_rank4(as_view(q_));
  const auto k = as_rank4(as_view(k_));
  const auto v = as_rank4(as_view(v_));
  detail::check_linear_shapes(q.extents(), k.extents(), v.extents(), o.causal);
  const index d = q.extent(3);
  const double scale = o.scale.value_or(d > 0 ? 1 / std::sqrt(static_cast<double>(d)) : 1.0);
  tensor<double, 4> out({q.extent(0), q.extent(1), q.extent(2), v.extent(3)});
  for (index b = 0; b < q.extent(0); ++b) {
    for (index h = 0; h < q.extent(1); ++h) {
      const index kv = h / (q.extent(1) / k.extent(1));
      for (index i = 0; i < q.extent(2); ++i) {
        double sum = 0;
        for (index j = 0; j < (o.causal ? i + 1 : k.extent(2)); ++j) {
          double weight = 0;
          for (index f = 0; f < d; ++f) {
            weight +=
                phi(static_cast<double>(q(b, h, i, f))) * phi(static_cast<double>(k(b, kv, j, f)));
          }
          sum += weight;
          for (index c = 0; c < v.extent(3); ++c) {
            out(b, h, i, c) += weight * static_cast<double>(v(b, kv, j, c));
          }
        }
        const double factor = o.normalise ? 1 / (sum + o.eps) : scale;
        for (index c = 0; c < v.extent(3); ++c) out(b, h, i, c) *= factor;
      }
    }
  }
  return out;
}

}  // namespace heed::inline HEED_TARGET
