// SPDX-License-Identifier: MIT
// Recurrences with a matrix state as a textbook has them: a token at a time, in double.
//
//   gated, scalar gated    S = diag(exp g) S + k v'                             out = scale S'q
//   retention              S = (1 - 2^(-5-h)) S + k v'                          out = scale S'q
//   delta                  S = S + beta k (v - S'k)'                            out = scale S'q
//   gated delta, KDA       S = diag(exp g) S, then delta                        out = scale S'q
//   low rank, diagonal plus low rank, RWKV-7 (scale 1)
//                          S = diag(exp g) S + b (a'S) + k v', S in a'S undecayed
//                                                                               out = scale S'q
//   RWKV-6 (scale 1)       out = (S + diag(u) k v')'q, then S = diag(exp w) S + k v'
//   SSD (scale 1)          S = exp(A dt) S + dt k v'                            out = S'q + D v
//
//   auto want = heed::naive_gated_delta_attention(q, k, v, g, beta);
//
// Axes as in matrix_state/api.hpp: q, k [batch, heads, tokens, Dk], v [batch, heads, tokens, Dv];
// what a token has is [batch, heads, tokens] or (..., Dk), what a head has is [heads] or
// [heads, Dk]. Every tensor has its batch axis. Fewer heads serve consecutive ones. S begins as 0;
// the result is [batch, heads, tokens, Dv]. scale is 1 / sqrt(Dk) unless said.
// For reading and for tests: 4 Dk Dv FLOPs a token and head, and nothing checked.
// Sources: beside each rule's own function.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/retention.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Where a head, of `heads`, finds its own in a tensor of fewer.
[[nodiscard]] inline index served_by(index head, index heads, index fewer) noexcept {
  return head * fewer / heads;
}

/// S of one head, and the vectors of the token at hand.
struct naive_state {
  index b = 0, h = 0, t = 0, heads = 0;  ///< the token
  std::vector<double> q, k, v;
  std::vector<std::vector<double>> s;  ///< S [Dk][Dv]

  /// A number of the token, a row of it, and the same of the head.
  template <class X>
  [[nodiscard]] double number(const X& x) const {
    if constexpr (rank_of<const X&> == 1) {
      return static_cast<double>(x(served_by(h, heads, as_view(x).extent(0))));
    } else {
      return static_cast<double>(x(b, served_by(h, heads, as_view(x).extent(1)), t));
    }
  }
  template <class X>
  [[nodiscard]] double number(const X& x, index f) const {
    if constexpr (rank_of<const X&> == 2) {
      return static_cast<double>(x(served_by(h, heads, as_view(x).extent(0)), f));
    } else {
      return static_cast<double>(x(b, served_by(h, heads, as_view(x).extent(1)), t, f));
    }
  }
  template <class X>
  [[nodiscard]] std::vector<double> row(const X& x) const {
    std::vector<double> r(static_cast<std::size_t>(as_view(x).extents().back()));
    for (std::size_t f = 0; f < r.size(); ++f) r[f] = number(x, static_cast<index>(f));
    return r;
  }

  /// S'x.
  [[nodiscard]] std::vector<double> read(const std::vector<double>& x) const {
    std::vector<double> y(v.size());
    for (std::size_t f = 0; f < s.size(); ++f) {
      for (std::size_t c = 0; c < y.size(); ++c) y[c] += x[f] * s[f][c];
    }
    return y;
  }
  /// S += by x y'.
  void write(const std::vector<double>& x, const std::vector<double>& y, double by = 1) {
    for (std::size_t f = 0; f < s.size(); ++f) {
      for (std::size_t c = 0; c < y.size(); ++c) s[f][c] += by * x[f] * y[c];
    }
  }
  /// S = diag(exp g(f)) S.
  template <class G>
  void decay(const G& g) {
    for (std::size_t f = 0; f < s.size(); ++f) {
      for (double& x : s[f]) x *= std::exp(g(static_cast<index>(f)));
    }
  }
  template <class G>
  void decay_by(const G& g) {
    decay([&](index f) {
      if constexpr (rank_of<const G&> == 4) {
        return number(g, f);
      } else {
        return number(g);
      }
    });
  }
};

/// step(state) -> output row, for every token of every head.
template <class Q, class K, class V, class Step>
[[nodiscard]] tensor<double, 4> naive_recurrence(const Q& q, const K& k, const V& v, Step&& step) {
  const auto e = as_view(q).extents();
  const index heads = (std::max)({e[1], as_view(k).extent(1), as_view(v).extent(1)});
  tensor<double, 4> out({e[0], heads, e[2], as_view(v).extent(3)});
  for (index b = 0; b < e[0]; ++b) {
    for (index h = 0; h < heads; ++h) {
      naive_state s{b, h, 0, heads, {}, {}, {}, {}};
      s.s.assign(static_cast<std::size_t>(e[3]),
                 std::vector<double>(static_cast<std::size_t>(out.extent(3))));
      for (s.t = 0; s.t < e[2]; ++s.t) {
        s.q = s.row(q);
        s.k = s.row(k);
        s.v = s.row(v);
        const std::vector<double> y = step(s);
        for (std::size_t c = 0; c < y.size(); ++c) out(b, h, s.t, static_cast<index>(c)) = y[c];
      }
    }
  }
  return out;
}

[[nodiscard]] inline std::vector<double> scaled(std::vector<double> x, double by) {
  for (double& y : x) y *= by;
  return x;
}
template <class K>
[[nodiscard]] double default_scale(const K& k) {
  return 1 / std::sqrt(static_cast<double>(as_view(k).extents().back()));
}
[[nodiscard]] inline std::vector<double> difference(std::vector<double> x,
                                                    const std::vector<double>& y) {
  for (std::size_t c = 0; c < x.size(); ++c) x[c] -= y[c];
  return x;
}

}  // namespace detail

/// g [batch, heads, tokens], or (..., Dk).
template <class Q, class K, class V, class G>
[[nodiscard]] tensor<double, 4> naive_gated_attention(const Q& q, const K& k, const V& v,
                                                      const G& g) {
  return detail::naive_recurrence(q, k, v, [&](detail::naive_state& s) {
    s.decay_by(g);
    s.write(s.k, s.v);
    return detail::scaled(s.read(s.q), detail::default_scale(k));
  });
}

template <class Q, class K, class V>
[[nodiscard]] tensor<double, 4> naive_retention(const Q& q, const K& k, const V& v) {
  // h counts the state's heads, of which query heads may share one.
  const index states = (std::max)(as_view(k).extent(1), as_view(v).extent(1));
  return detail::naive_recurrence(q, k, v, [&](detail::naive_state& s) {
    s.decay([&](index) { return retention_gate(detail::served_by(s.h, s.heads, states)); });
    s.write(s.k, s.v);
    return detail::scaled(s.read(s.q), detail::default_scale(k));
  });
}

template <class Q, class K, class V, class Beta>
[[nodiscard]] tensor<double, 4> naive_delta_attention(const Q& q, const K& k, const V& v,
                                                      const Beta& beta) {
  return detail::naive_recurrence(q, k, v, [&](detail::naive_state& s) {
    s.write(s.k, detail::difference(s.v, s.read(s.k)), s.number(beta));
    return detail::scaled(s.read(s.q), detail::default_scale(k));
  });
}

/// g [batch, heads, tokens], or (..., Dk): KDA.
template <class Q, class K, class V, class G, class Beta>
[[nodiscard]] tensor<double, 4> naive_gated_delta_attention(const Q& q, const K& k, const V& v,
                                                            const G& g, const Beta& beta) {
  return detail::naive_recurrence(q, k, v, [&](detail::naive_state& s) {
    s.decay_by(g);
    s.write(s.k, detail::difference(s.v, s.read(s.k)), s.number(beta));
    return detail::scaled(s.read(s.q), detail::default_scale(k));
  });
}

/// a, b, g [batch, heads, tokens, Dk]. RWKV-7 is this with scale 1 and g = w.
template <class Q, class K, class V, class X, class Y, class G>
[[nodiscard]] tensor<double, 4> naive_diagonal_low_rank_attention(
    const Q& q, const K& k, const V& v, const X& a, const Y& b, const G& g,
    std::optional<double> scale = std::nullopt) {
  return detail::naive_recurrence(q, k, v, [&](detail::naive_state& s) {
    const std::vector<double> x = s.read(s.row(a));
    s.decay_by(g);
    s.write(s.row(b), x);
    s.write(s.k, s.v);
    return detail::scaled(s.read(s.q), scale.value_or(detail::default_scale(k)));
  });
}

template <class Q, class K, class V, class W, class X, class Y>
[[nodiscard]] tensor<double, 4> naive_rwkv7(const Q& q, const K& k, const V& v, const W& w,
                                            const X& a, const Y& b) {
  return naive_diagonal_low_rank_attention(q, k, v, a, b, w, 1.0);
}

/// w [batch, heads, tokens, Dk], u [heads, Dk].
template <class Q, class K, class V, class W, class U>
[[nodiscard]] tensor<double, 4> naive_rwkv6(const Q& q, const K& k, const V& v, const W& w,
                                            const U& u) {
  return detail::naive_recurrence(q, k, v, [&](detail::naive_state& s) {
    std::vector<double> out = s.read(s.q);
    double weight = 0;
    for (std::size_t f = 0; f < s.k.size(); ++f) {
      weight += s.q[f] * s.number(u, static_cast<index>(f)) * s.k[f];
    }
    for (std::size_t c = 0; c < out.size(); ++c) out[c] += weight * s.v[c];
    s.decay_by(w);
    s.write(s.k, s.v);
    return out;
  });
}

/// q = C, k = B, v = x; dt [batch, heads, tokens], A and D [heads].
template <class Q, class K, class V, class Dt, class Rate, class Skip>
[[nodiscard]] tensor<double, 4> naive_ssd(const Q& q, const K& k, const V& v, const Dt& dt,
                                          const Rate& rate, const Skip& skip) {
  return detail::naive_recurrence(q, k, v, [&](detail::naive_state& s) {
    s.decay([&](index) { return s.number(rate) * s.number(dt); });
    s.write(s.k, s.v, s.number(dt));
    std::vector<double> out = s.read(s.q);
    for (std::size_t c = 0; c < out.size(); ++c) out[c] += s.number(skip) * s.v[c];
    return out;
  });
}

}  // namespace heed::inline HEED_TARGET
