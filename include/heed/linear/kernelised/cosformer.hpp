// SPDX-License-Identifier: MIT
// cosFormer: relu features whose products are reweighted by the cosine of the distance.
//
//   weight of the pair (i, j) = relu(q_i).relu(k_j) cos(pi/2 (i - j) / M)
//   out_i = sum_j weight_ij v_j / (sum_j weight_ij + eps),   j <= i when causal
//   cos(a - b) = cos a cos b + sin a sin b, so that 2 D features do: (x cos, x sin) of relu(x)
//
//   auto out = heed::cosformer_attention(q, k, v);
//   cosformer_options o{.horizon = 4096};                                // of the whole text
//   auto out = heed::cosformer_attention(q, k, v, state, o);             // its first piece
//   o.first_position = 1000;                                             // had 1000 tokens
//   auto next = heed::cosformer_attention(q1, k1, v1, state, o);
//   heed::cosformer_attention_into([executor,] out, q, k, v, [state,] [options])
//
// Tensors and grouping as heed::linear_attention; the state has 2 D features. M, the horizon, is
// more than the largest distance: further apart the cosine is negative. It is the tokens of the
// call where absent. A text in pieces has one M, and each piece the position of its first token: a
// call with a state is refused without a horizon, and where its last token is M or more after the
// state's first, which is at position 0 unless said. Not seen, since a state is only numbers: that
// earlier pieces had another M, or a position other than the one they should have had. Angles are
// double, so that every position is exact. Accumulates in the accumulator type; errors as
// heed::linear_attention with F = 2 D. A row without a weight gives 0. Cost: twice that of relu
// features. Not exact softmax: an attention of its own. The same bits for any number of threads.
// Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Source: Qin et al. 2022, arXiv 2202.08791.
#pragma once

#include <cmath>
#include <cstddef>
#include <numbers>
#include <optional>
#include <string>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/linear/kernelised/feature_blocks.hpp"

namespace heed::inline HEED_TARGET {

struct cosformer_options {
  bool causal = true;
  double eps = 1e-6;
  /// M: any two tokens that meet are less apart. The tokens of the call where absent, as it may be
  /// without a state.
  std::optional<index> horizon = std::nullopt;
  /// Position of the first query and of the first key.
  index first_position = 0;
  /// Position of the first token that the state has seen, or is to see in this call.
  index state_begin = 0;
  workspace* scratch = nullptr;
};

namespace detail {

/// Of a call that goes on with a state.
inline void check_cosformer_state(const cosformer_options& o, index tokens) {
  if (!o.horizon) {
    fail<option_error>(
        "horizon is absent, a state needs that of its whole text; the call has tokens " +
        std::to_string(tokens));
  }
  if (o.state_begin < 0 || o.first_position < o.state_begin) {
    fail<option_error>("first_position is " + std::to_string(o.first_position) +
                       ", must be at least state_begin " + std::to_string(o.state_begin) +
                       ", and that at least 0");
  }
  const index before = o.first_position - o.state_begin;
  if (before > *o.horizon - tokens) {
    fail<option_error>("horizon is " + std::to_string(*o.horizon) + ", the state has tokens " +
                       std::to_string(before) + " before the call's " + std::to_string(tokens));
  }
}

struct cosformer_method {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: cosformer_attention takes q, k, v");
  }
  static constexpr std::size_t inputs = 3;
  using options = cosformer_options;

  template <class Q, class K, class V>
  [[nodiscard]] static auto result(const Q& q, const K&, const V& v) {
    require_tensors<const Q&, const K&, const V&>();
    return make_linear_result(q, v);
  }
  template <class E, class Out, class Q, class K, class V, class State>
  static void call(E& exec, Out&& out, const Q& q, const K& k, const V& v, State&& state,
                   const options& o) {
    require_tensors<const Q&, const K&, const V&>();
    using A = accumulate_t<scalar_of<const Q&>>;
    const auto q4 = linear_input(q);
    const index tokens = (std::max)(q4.extent(2), linear_input(k).extent(2));
    const index horizon = o.horizon.value_or(std::max<index>(tokens, 1));
    if (horizon < 1 || horizon < tokens) {
      fail<option_error>("horizon is " + std::to_string(horizon) + ", the call has tokens " +
                         std::to_string(tokens));
    }
    if constexpr (!std::is_same_v<std::remove_cvref_t<State>, no_state>) {
      check_cosformer_state(o, tokens);
    }
    if (!(o.eps >= 0)) {
      fail<option_error>("eps is " + std::to_string(o.eps) + ", must not be negative");
    }
    const double step = std::numbers::pi / 2 / static_cast<double>(horizon);
    call_feature_blocks<A>(exec, std::forward<Out>(out), q, k, v, state,
                           feature_call<A>{2 * q4.extent(3), o.causal, o.eps, {}, o.scratch},
                           [&](const auto& x, const feature_request<A>& r) noexcept {
                             const index d = x.extent(3);
                             for (index t = r.tokens.begin; t < r.tokens.end; ++t) {
                               const double angle =
                                   step * static_cast<double>(o.first_position + t);
                               const auto c = static_cast<A>(std::cos(angle));
                               const auto s = static_cast<A>(std::sin(angle));
                               A* to = &r.to(t - r.tokens.begin, 0);
                               for (index i = 0; i < d; ++i) {
                                 const auto value = static_cast<A>(x(r.batch, r.head, t, i));
                                 const A relu = value < A(0) ? A(0) : value;  // a NaN stays
                                 to[i] = relu * c;
                                 to[d + i] = relu * s;
                               }
                             }
                           });
  }
};

}  // namespace detail

inline constexpr linear_function_into<detail::cosformer_method> cosformer_attention_into{};
inline constexpr linear_function<detail::cosformer_method> cosformer_attention{};

}  // namespace heed::inline HEED_TARGET
