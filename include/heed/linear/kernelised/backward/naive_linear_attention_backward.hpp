// SPDX-License-Identifier: MIT
// The textbook gradient of kernelised linear attention, pair by pair.
//
//   w_ij = phi(q_i).phi(k_j),  n_i = sum_j w_ij + eps,  out_i = sum_j w_ij v_j / n_i
//   e_i = d_out_i / n_i;  dv_j = sum_i w_ij e_i;  dw_ij = e_i.(v_j - out_i)
//   dq_i = phi'(q_i) sum_j dw_ij phi(k_j);  dk_j = phi'(k_j) sum_i dw_ij phi(q_i)
//
// over j <= i when causal, else over every key. Unnormalised: e_i = scale d_out_i, dw_ij = e_i.v_j.
// phi acts on each channel; its derivative is found by calling it with a dual number (heed::dual),
// so that it is a generic callable.
//
// The same gradients in time linear in tokens: linear_attention_backward.hpp, whose oracle this is.
//
// q, dq [batch, heads, N, D]; d_out [batch, heads, N, Dv]; k, v and their gradients [batch, kv
// heads, M, D or Dv], sums over the heads of a group. Accumulates in A. A NaN propagates as the
// sums have it; without keys dq is 0. Cost a head: N M (8 D + 6 Dv) FLOPs; (2 N + 3 M) D numbers
// of scratch. Serial. Throws shape_error, std::bad_alloc, the former before anything is written.
// Katharopoulos et al. 2020, arXiv 2006.16236, section 3.3.1; reverse accumulation.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/linear/kernelised/backward/feature_gradient.hpp"
#include "heed/score/dual.hpp"

namespace heed::inline HEED_TARGET {

/// elu(x) + 1 of a number or a dual number.
struct generic_elu_plus_one {
  template <class T>
  [[nodiscard]] T operator()(const T& x) const noexcept {
    using std::exp;
    return x > T(0) ? x + T(1) : exp(x);
  }
};

namespace detail {

/// Features of the rows of one head, and their derivatives.
template <class A>
struct naive_features {
  template <class Map>
  naive_features(const view<const A, 2>& x, const Map& phi)
      : columns(x.extent(1)),
        value(static_cast<std::size_t>(x.extent(0) * columns)),
        derivative(value.size()) {
    for (index i = 0; i < x.extent(0); ++i) {
      for (index f = 0; f < columns; ++f) {
        const dual<A> y = phi(dual<A>(x(i, f), A(1)));
        value[static_cast<std::size_t>(i * columns + f)] = y.value;
        derivative[static_cast<std::size_t>(i * columns + f)] = y.derivative;
      }
    }
  }
  [[nodiscard]] const A* row(index i) const noexcept { return value.data() + i * columns; }

  index columns;
  std::vector<A> value, derivative;
};

/// Row i of a query head: its share of the gradients, those of features not yet times phi'.
template <class A>
void linear_row_back(const linear_attention_backward_inputs<A>& in, const linear_options& o,
                     A scale, const naive_features<A>& fq, const naive_features<A>& fk, index b,
                     index h, index kv, index i, std::vector<A>& out, A* dq, A* dk,
                     const view<A, 2>& dv) noexcept {
  const index d = fq.columns;
  const index channels = in.v.extent(3);
  const index keys = o.causal ? i + 1 : in.k.extent(2);
  const auto weight = [&](index j) noexcept {
    A w = A(0);
    for (index f = 0; f < d; ++f) w += fq.row(i)[f] * fk.row(j)[f];
    return w;
  };
  A factor = scale;
  A past = A(0);  // e_i . out_i
  if (o.normalise) {
    std::fill(out.begin(), out.end(), A(0));
    A sum = static_cast<A>(o.eps);
    for (index j = 0; j < keys; ++j) {
      const A w = weight(j);
      sum += w;
      for (index c = 0; c < channels; ++c) {
        out[static_cast<std::size_t>(c)] += w * in.v(b, kv, j, c);
      }
    }
    factor = 1 / sum;
    for (index c = 0; c < channels; ++c) {
      past += factor * factor * in.d_out(b, h, i, c) * out[static_cast<std::size_t>(c)];
    }
  }
  for (index j = 0; j < keys; ++j) {
    const A w = weight(j);
    A dw = -past;
    for (index c = 0; c < channels; ++c) {
      const A e = factor * in.d_out(b, h, i, c);
      dw += e * in.v(b, kv, j, c);
      dv(j, c) += w * e;
    }
    for (index f = 0; f < d; ++f) {
      dq[f] += dw * fk.row(j)[f];
      dk[j * d + f] += dw * fq.row(i)[f];
    }
  }
}

}  // namespace detail

/// The gradients `to` of what the forward pass read. Of the options `causal`, `normalise`, `eps`
/// and `scale` are read.
template <class A, class Map = generic_elu_plus_one>
void naive_linear_attention_backward(const linear_attention_backward_inputs<A>& in,
                                     const linear_attention_gradients<A>& to,
                                     const linear_options& o = {}, const Map& phi = {}) {
  const auto q = in.q.extents();
  const auto k = in.k.extents();
  detail::check_linear_gradients(in, to, o.causal);
  const index d = q[3];
  const auto scale =
      static_cast<A>(o.scale.value_or(d > 0 ? 1 / std::sqrt(static_cast<double>(d)) : 1.0));
  std::vector<A> dk(static_cast<std::size_t>(k[2] * d));
  std::vector<A> dq(static_cast<std::size_t>(d));
  std::vector<A> out(static_cast<std::size_t>(in.v.extent(3)));
  detail::clear_sum(to.v);
  for (index b = 0; b < k[0]; ++b) {
    for (index kv = 0; kv < k[1]; ++kv) {
      const detail::naive_features<A> fk(in.k[b][kv], phi);
      std::fill(dk.begin(), dk.end(), A(0));
      const index group = q[1] / k[1];
      for (index h = kv * group; h < (kv + 1) * group; ++h) {
        const detail::naive_features<A> fq(in.q[b][h], phi);
        for (index i = 0; i < q[2]; ++i) {
          std::fill(dq.begin(), dq.end(), A(0));
          detail::linear_row_back(in, o, scale, fq, fk, b, h, kv, i, out, dq.data(), dk.data(),
                                  to.v[b][kv]);
          for (index f = 0; f < d; ++f) {
            to.q(b, h, i, f) = dq[static_cast<std::size_t>(f)] *
                               fq.derivative[static_cast<std::size_t>(i * d + f)];
          }
        }
      }
      for (index j = 0; j < k[2]; ++j) {
        for (index f = 0; f < d; ++f) {
          const auto n = static_cast<std::size_t>(j * d + f);
          to.k(b, kv, j, f) = dk[n] * fk.derivative[n];
        }
      }
    }
  }
}

}  // namespace heed::inline HEED_TARGET
