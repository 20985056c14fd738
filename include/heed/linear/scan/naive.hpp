// SPDX-License-Identifier: MIT
// Diagonal scans as a textbook has them: a token at a time, channel by channel, in double.
//
//   HGRN     h = exp(g) h + x,                                    out = h
//   S6       h_n = exp(dt A_n) h_n + dt x B_n,                    out = sum_n C_n h_n
//   RWKV-4   out_t = sum_{j<=t} weight_tj v_j / sum_{j<=t} weight_tj,
//            weight_tj = exp(k_j - (t - 1 - j) exp(decay)) for j < t, exp(u + k_t) for j = t
//
//   auto want = heed::naive_selective_scan(x, dt, a, b, c);
//
// Axes as hgrn, selective_scan and rwkv4 have them; the state begins empty. For reading and for
// tests: nothing is checked, and RWKV-4 visits every pair of tokens, its weights less their largest.
// Sources: as of the fast forms.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

template <class X, class G>
[[nodiscard]] tensor<double, 3> naive_hgrn(const X& x, const G& g) {
  const auto e = as_view(x).extents();
  tensor<double, 3> out(e);
  for (index b = 0; b < e[0]; ++b) {
    for (index c = 0; c < e[2]; ++c) {
      double h = 0;
      for (index t = 0; t < e[1]; ++t) {
        h = std::exp(static_cast<double>(g(b, t, c))) * h + static_cast<double>(x(b, t, c));
        out(b, t, c) = h;
      }
    }
  }
  return out;
}

/// b, c [batch, tokens, N]: one group. No softplus, skip or gate.
template <class X, class Dt, class A, class B, class C>
[[nodiscard]] tensor<double, 3> naive_selective_scan(const X& x, const Dt& dt, const A& a,
                                                     const B& b, const C& c) {
  const auto e = as_view(x).extents();
  const index states = as_view(a).extent(1);
  tensor<double, 3> out(e);
  for (index n = 0; n < e[0]; ++n) {
    for (index ch = 0; ch < e[2]; ++ch) {
      std::vector<double> h(static_cast<std::size_t>(states));
      for (index t = 0; t < e[1]; ++t) {
        const auto step = static_cast<double>(dt(n, t, ch));
        for (index s = 0; s < states; ++s) {
          double& z = h[static_cast<std::size_t>(s)];
          z = std::exp(step * static_cast<double>(a(ch, s))) * z +
              step * static_cast<double>(x(n, t, ch)) * static_cast<double>(b(n, t, s));
          out(n, t, ch) += static_cast<double>(c(n, t, s)) * z;
        }
      }
    }
  }
  return out;
}

template <class K, class V, class W, class U>
[[nodiscard]] tensor<double, 3> naive_rwkv4(const K& k, const V& v, const W& decay,
                                            const U& bonus) {
  const auto e = as_view(k).extents();
  tensor<double, 3> out(e);
  for (index b = 0; b < e[0]; ++b) {
    for (index c = 0; c < e[2]; ++c) {
      const double w = std::exp(static_cast<double>(decay(c)));
      for (index t = 0; t < e[1]; ++t) {
        const auto log_weight = [&](index j) {
          const auto key = static_cast<double>(k(b, j, c));
          return j == t ? static_cast<double>(bonus(c)) + key
                        : key - static_cast<double>(t - 1 - j) * w;
        };
        double most = std::numeric_limits<double>::lowest(), sum = 0, mean = 0;
        for (index j = 0; j <= t; ++j) most = (std::max)(most, log_weight(j));
        for (index j = 0; j <= t; ++j) {
          const double weight = std::exp(log_weight(j) - most);
          sum += weight;
          mean += weight * static_cast<double>(v(b, j, c));
        }
        out(b, t, c) = sum == 0 ? 0 : mean / sum;
      }
    }
  }
  return out;
}

}  // namespace heed::inline HEED_TARGET
