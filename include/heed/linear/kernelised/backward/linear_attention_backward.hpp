// SPDX-License-Identifier: MIT
// Gradients of kernelised attention, in time linear in tokens: of any feature map that acts on
// each channel, of cosFormer, and of Performer.
//
//   heed::linear_attention_backward([executor,] {q, k, v, d_out}, {dq, dk, dv}, options = {}, map)
//   heed::cosformer_attention_backward([executor,] {q, k, v, d_out}, {dq, dk, dv}, options = {})
//   heed::performer_attention_backward([executor,] {q, k, v, d_out}, {dq, dk, dv}, directions,
//                                      options = {})
//
// Features are computed again, and their gradients (feature_gradient.hpp) go back through the map:
//
//   phi(x) of a channel     dx = phi'(x) dphi, phi' by a dual number
//   cosFormer at angle a    dx = [x > 0] (cos a dphi_cos + sin a dphi_sin)
//   Performer, y = sqrt(scale) x:  dy = sum_f dphi_f phi_f w_f of a query, w_f - y of a key
//
// What divides a Performer query's features is cancelled by the normaliser and passes no gradient.
// Tensors [batch, heads, tokens, channels], float or double, any strides; dk and dv are sums over the
// heads of a group. From an empty state, options as in the forward call, of which the form, chunks and
// scratch are not read. Errors of a few eps of the sums' terms; Performer's exponentials as in
// performer.hpp. A NaN may reach every gradient of its head; without keys dq is 0.
//
// Cost, F features a head: a forward pass where normalised, and matrix_state_backward of states
// [F, Dv + 1], or three forward passes where not causal; each map twice, Performer's being 2 F D FLOPs
// a row. Memory: N (4 F + 3 Dv) numbers a head. The same bits for any number of threads. Throws
// shape_error, option_error, std::bad_alloc, before anything is written.
// naive_linear_attention_backward is the oracle.
// Sources: those of linear_attention.hpp, cosformer.hpp, performer.hpp; reverse accumulation.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>

#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"
#include "heed/linear/kernelised/backward/feature_gradient.hpp"
#include "heed/linear/kernelised/backward/naive_linear_attention_backward.hpp"
#include "heed/linear/kernelised/cosformer.hpp"
#include "heed/linear/kernelised/performer.hpp"
#include "heed/parallel/openmp.hpp"
#include "heed/score/dual.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// f(batch, head, token) for every row of x, heads as tasks.
template <class E, class T, class F>
void for_each_row(E& exec, const view<T, 4>& x, F&& f) {
  for_each_head(exec, x, [&](index b, index h) noexcept {
    for (index t = 0; t < x.extent(2); ++t) f(b, h, t);
  });
}

/// Features of every channel, and the derivatives in their place afterwards.
template <class A, class E, class Map>
void map_channels(E& exec, const view<const A, 4>& x, const Map& phi, const view<A, 4>& value) {
  for_each_row(exec, x, [&](index b, index h, index t) noexcept {
    for (index c = 0; c < x.extent(3); ++c) {
      value(b, h, t, c) = phi(dual<A>(x(b, h, t, c), A(1))).value;
    }
  });
}
template <class A, class E, class Map>
void unmap_channels(E& exec, const view<const A, 4>& x, const Map& phi, const tensor<A, 4>& d,
                    const view<A, 4>& to) {
  for_each_row(exec, x, [&](index b, index h, index t) noexcept {
    for (index c = 0; c < x.extent(3); ++c) {
      const dual<A> y = phi(dual<A>(x(b, h, t, c), A(1)));
      to(b, h, t, c) = y.derivative * d(b, h, t, c);
    }
  });
}

/// relu features times cosine and sine of a token's angle, and back.
template <class A>
struct cosformer_features {
  double step;
  index first;

  template <class E>
  void map(E& exec, const view<const A, 4>& x, const view<A, 4>& phi) const {
    const index d = x.extent(3);
    for_each_row(exec, x, [&](index b, index h, index t) noexcept {
      const double angle = step * static_cast<double>(first + t);
      const auto c = static_cast<A>(std::cos(angle)), s = static_cast<A>(std::sin(angle));
      for (index i = 0; i < d; ++i) {
        const A value = x(b, h, t, i);
        const A relu = value < A(0) ? A(0) : value;
        phi(b, h, t, i) = relu * c;
        phi(b, h, t, d + i) = relu * s;
      }
    });
  }
  template <class E>
  void back(E& exec, const view<const A, 4>& x, const tensor<A, 4>& g, const view<A, 4>& to) const {
    const index d = x.extent(3);
    for_each_row(exec, x, [&](index b, index h, index t) noexcept {
      const double angle = step * static_cast<double>(first + t);
      const auto c = static_cast<A>(std::cos(angle)), s = static_cast<A>(std::sin(angle));
      for (index i = 0; i < d; ++i) {
        const A both = c * g(b, h, t, i) + s * g(b, h, t, d + i);
        to(b, h, t, i) = x(b, h, t, i) > A(0) ? both : A(0);
      }
    });
  }
};

/// Performer's features as the forward pass makes them, and back.
template <class A>
struct performer_features {
  performer_fill<A> fill;

  template <class E>
  void map(E& exec, const view<const A, 4>& x, const view<A, 4>& phi, bool query) const {
    for_each_head(exec, x, [&](index b, index h) noexcept {
      fill(x, feature_request<A>{b, h, {0, x.extent(2)}, query, phi[b][h]});
    });
  }
  template <class E>
  void back(E& exec, const view<const A, 4>& x, const tensor<A, 4>& phi, const tensor<A, 4>& g,
            const view<A, 4>& to, bool query) const {
    const A root = fill.root_scale;
    const index count = fill.directions.extent(1);
    for_each_row(exec, x, [&](index b, index h, index t) noexcept {
      const A* const f = &phi(b, h, t, 0);
      const A* const df = &g(b, h, t, 0);
      A total = A(0);
      for (index n = 0; n < count; ++n) total += df[n] * f[n];
      for (index c = 0; c < x.extent(3); ++c) {
        const A* const w = &fill.directions(c, 0);
        A sum = query ? A(0) : -root * x(b, h, t, c) * total;
        for (index n = 0; n < count; ++n) sum += df[n] * f[n] * w[n];
        to(b, h, t, c) = root * sum;
      }
    });
  }
};

}  // namespace detail

/// The gradients `to` of kernelised attention. phi is a generic callable (A or heed::dual) -> same.
template <executor E, class A, class Map = generic_elu_plus_one>
void linear_attention_backward(E&& exec, const linear_attention_backward_inputs<A>& in,
                               const linear_attention_gradients<A>& to,
                               const linear_options& o = {}, const Map& phi = {}) {
  detail::check_linear_gradients(in, to, o.causal);
  detail::check_linear_options(o);
  const index d = in.q.extent(3);
  const double scale = o.scale.value_or(d > 0 ? 1 / std::sqrt(static_cast<double>(d)) : 1.0);
  tensor<A, 4> fq(in.q.extents()), fk(in.k.extents());
  detail::map_channels(exec, in.q, phi, as_view(fq));
  detail::map_channels(exec, in.k, phi, as_view(fk));
  const auto g = detail::kernelised_backward(exec, fq, fk, in, to.v, o.causal, o.normalise,
                                             static_cast<A>(o.eps), scale);
  detail::unmap_channels(exec, in.q, phi, g.q, to.q);
  detail::unmap_channels(exec, in.k, phi, g.k, to.k);
}
template <class A, class Map = generic_elu_plus_one>
void linear_attention_backward(const linear_attention_backward_inputs<A>& in,
                               const linear_attention_gradients<A>& to,
                               const linear_options& o = {}, const Map& phi = {}) {
  linear_attention_backward(default_executor{}, in, to, o, phi);
}

/// The gradients `to` of cosformer_attention.
template <executor E, class A>
void cosformer_attention_backward(E&& exec, const linear_attention_backward_inputs<A>& in,
                                  const linear_attention_gradients<A>& to,
                                  const cosformer_options& o = {}) {
  detail::check_linear_gradients(in, to, o.causal);
  const index tokens = (std::max)(in.q.extent(2), in.k.extent(2));
  const index horizon = o.horizon.value_or(std::max<index>(tokens, 1));
  if (horizon < 1 || horizon < tokens) {
    fail<option_error>("horizon is " + std::to_string(horizon) + ", the call has tokens " +
                       std::to_string(tokens));
  }
  if (!(o.eps >= 0)) {
    fail<option_error>("eps is " + std::to_string(o.eps) + ", must not be negative");
  }
  const detail::cosformer_features<A> features{std::numbers::pi / 2 / static_cast<double>(horizon),
                                               o.first_position};
  const auto twice = [](std::array<index, 4> e) {
    e[3] *= 2;
    return e;
  };
  tensor<A, 4> fq(twice(in.q.extents())), fk(twice(in.k.extents()));
  features.map(exec, in.q, as_view(fq));
  features.map(exec, in.k, as_view(fk));
  const auto g = detail::kernelised_backward(exec, fq, fk, in, to.v, o.causal, true,
                                             static_cast<A>(o.eps), 1.0);
  features.back(exec, in.q, g.q, to.q);
  features.back(exec, in.k, g.k, to.k);
}
template <class A>
void cosformer_attention_backward(const linear_attention_backward_inputs<A>& in,
                                  const linear_attention_gradients<A>& to,
                                  const cosformer_options& o = {}) {
  cosformer_attention_backward(default_executor{}, in, to, o);
}

/// The gradients `to` of performer_attention by directions w, which have none of their own.
template <executor E, class A>
void performer_attention_backward(E&& exec, const linear_attention_backward_inputs<A>& in,
                                  const linear_attention_gradients<A>& to,
                                  const random_directions<A>& w, const performer_options& o = {}) {
  detail::check_linear_gradients(in, to, o.causal);
  const index d = in.q.extent(3);
  require_equal("the random directions", "dim", w.dim(), "q", d);
  const double scale = o.scale.value_or(1.0 / std::sqrt(static_cast<double>(d)));
  if (!(scale > 0)) {
    fail<option_error>("scale is " + std::to_string(scale) + ", must be positive");
  }
  const double shift = (std::max)(0.0, w.longest_squared() / 2 - 60);
  const detail::performer_features<A> features{
      {as_view(w.columns()), std::sqrt(checked_finite<A>("scale", scale)), static_cast<A>(shift)}};
  const auto featured = [&](std::array<index, 4> e) {
    e[3] = w.count();
    return e;
  };
  tensor<A, 4> fq(featured(in.q.extents())), fk(featured(in.k.extents()));
  features.map(exec, in.q, as_view(fq), true);
  features.map(exec, in.k, as_view(fk), false);
  const auto g = detail::kernelised_backward(exec, fq, fk, in, to.v, o.causal, true,
                                             (std::numeric_limits<A>::min)(), 1.0);
  features.back(exec, in.q, fq, g.q, to.q, true);
  features.back(exec, in.k, fk, g.k, to.k, false);
}
template <class A>
void performer_attention_backward(const linear_attention_backward_inputs<A>& in,
                                  const linear_attention_gradients<A>& to,
                                  const random_directions<A>& w, const performer_options& o = {}) {
  performer_attention_backward(default_executor{}, in, to, w, o);
}

}  // namespace heed::inline HEED_TARGET
