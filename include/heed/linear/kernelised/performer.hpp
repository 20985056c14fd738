// SPDX-License-Identifier: MIT
// Performer (FAVOR+): softmax attention estimated by positive random features, in linear time.
//
//   phi(x)_f = exp(w_f.y - |y|^2 / 2),  y = sqrt(scale) x;   E phi(q).phi(k) = exp(scale q.k)
//   out_i = sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j),   j <= i when causal
//
//   const heed::random_directions<float> w(64, 256, seed);   // head dim, features; w.redraw(seed)
//   auto out = heed::performer_attention(q, k, v, w, state, performer_options{.causal = true});
//   heed::performer_attention_into([executor,] out, q, k, v, w, [state,] [options])
//
// Tensors and grouping as heed::linear_attention; w has the accumulator type; the state has one
// feature a direction.
//
// Stabilisers. A query's features are divided by its own largest, which its normalisation cancels.
// A key's may only be divided by what all keys share: not by anything later ones decide, nor
// anything that a piece of a text would not know. Since w.y - |y|^2 / 2 <= |w|^2 / 2, a constant
// made of the directions alone, max(0, max |w|^2 / 2 - 60), keeps features finite. Those of a key
// of |y|^2 above some 150 may all vanish in float.
//
// Error against exact attention falls as 1 / sqrt(features); it grows with exp(|y_q + y_k|^2 / 2).
// Measured at D = 64 (docs/linear.md): with channels of spread 1/4, 256 features are off by 6 %,
// of spread 1/2 by half, and of unit spread no number one can afford is enough. Arithmetic errors:
// (D + F + tokens / 64) eps of positive sums. A NaN reaches its own token's row, and by a key the
// later ones (all, when not causal). FLOPs a token: 2 F D for features of queries and keys each,
// then as linear_attention with F features. Memory: features of a block of 256 tokens. The same
// bits for any number of threads. Throws shape_error, option_error, std::bad_alloc, before anything
// is written. Source: Choromanski et al. 2020, arXiv 2009.14794, lemma 1 and section 2.3.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/linear/kernelised/feature_blocks.hpp"
#include "heed/linear/kernelised/random_features.hpp"
#include "heed/simd/exponential.hpp"

namespace heed::inline HEED_TARGET {

struct performer_options {
  bool causal = true;
  /// Of softmax; 1 / sqrt(head dim) where absent.
  std::optional<double> scale = std::nullopt;
  workspace* scratch = nullptr;
};

namespace detail {

/// Features of rows of x to rows of r.to.
template <class A>
struct performer_fill {
  view<const A, 2> directions;  // [dim, features]
  A root_scale;
  A shift;

  template <class T>
  void operator()(const view<const T, 4>& x, const feature_request<A>& r) const noexcept {
    for (index t = r.tokens.begin; t < r.tokens.end; ++t) {
      A* const to = &r.to(t - r.tokens.begin, 0);
      const A half = project(x, r, t, to);
      const index count = directions.extent(1);
      A offset = half + shift;
      if (r.query) {
        A most = to[0];
        for (index f = 1; f < count; ++f) most = to[f] > most ? to[f] : most;
        offset = most;
      }
      exponentials(to, offset, count);
    }
  }

 private:
  /// w.y of every direction; returns |y|^2 / 2.
  template <class T>
  A project(const view<const T, 4>& x, const feature_request<A>& r, index t, A* to) const noexcept {
    const index count = directions.extent(1);
    A square = A(0);
    std::fill_n(to, count, A(0));
    for (index c = 0; c < directions.extent(0); ++c) {
      const A y = root_scale * static_cast<A>(x(r.batch, r.head, t, c));
      const A* w = &directions(c, 0);
      square += y * y;
      for (index f = 0; f < count; ++f) to[f] += y * w[f];
    }
    return square / A(2);
  }
  static void exponentials(A* to, A offset, index count) noexcept {
    constexpr index w = simd::lanes<A>;
    index f = 0;
    for (; f + w <= count; f += w) {
      simd::store(to + f,
                  simd::exp_nonpositive<A>(simd::sub(simd::load(to + f), simd::broadcast(offset))));
    }
    for (; f < count; ++f) to[f] = std::exp(to[f] - offset);
  }
};

struct performer_method {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: performer_attention takes q, k, v, random_directions");
  }
  static constexpr std::size_t inputs = 4;
  using options = performer_options;

  template <class Q, class K, class V, class W>
  [[nodiscard]] static auto result(const Q& q, const K&, const V& v, const W&) {
    require_tensors<const Q&, const K&, const V&>();
    return make_linear_result(q, v);
  }
  template <class E, class Out, class Q, class K, class V, class W, class State>
  static void call(E& exec, Out&& out, const Q& q, const K& k, const V& v, const W& w,
                   State&& state, const options& o) {
    require_tensors<const Q&, const K&, const V&>();
    using A = accumulate_t<scalar_of<const Q&>>;
    static_assert(std::is_same_v<W, random_directions<A>>,
                  "heed: performer_attention's fourth argument is a random_directions of the "
                  "accumulator type (float, or double for double)");
    const index d = linear_input(q).extent(3);
    require_equal("the random directions", "dim", w.dim(), "q", d);
    const double scale = o.scale.value_or(1.0 / std::sqrt(static_cast<double>(d)));
    if (!(scale > 0)) {
      fail<option_error>("scale is " + std::to_string(scale) + ", must be positive");
    }
    const double shift = (std::max)(0.0, w.longest_squared() / 2 - 60);
    const auto eps = static_cast<double>((std::numeric_limits<A>::min)());
    call_feature_blocks<A>(
        exec, std::forward<Out>(out), q, k, v, state,
        feature_call<A>{w.count(), o.causal, eps, {}, o.scratch},
        performer_fill<A>{as_view(w.columns()), std::sqrt(checked_finite<A>("scale", scale)),
                          static_cast<A>(shift)});
  }
};

}  // namespace detail

inline constexpr linear_function_into<detail::performer_method> performer_attention_into{};
inline constexpr linear_function<detail::performer_method> performer_attention{};

}  // namespace heed::inline HEED_TARGET
