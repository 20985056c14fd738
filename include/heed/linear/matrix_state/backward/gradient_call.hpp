// SPDX-License-Identifier: MIT
// A checked call of a gradient whose scalar no longer matters: rows of tokens are brought to the
// accumulator type and back as in token_input.hpp, states are of that type.
#pragma once

#include <span>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/backward/arguments.hpp"
#include "heed/linear/matrix_state/token_input.hpp"
#include "heed/linear/recurrence.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A>
struct gradient_call {
  token_input<A> q, k, v, gate, beta, a, b, d_out;
  token_output<A> dq, dk, dv, d_gate, d_beta, da, db;
  view<const A, 4> initial_state, d_final_state;
  view<A, 4> d_initial_state;
  view<const A, 2> bonus;
  view<A, 2> d_bonus;
  A scale = A(1);
  index chunk = 64;
  std::span<const index> bounds;

  [[nodiscard]] index heads() const noexcept { return k.extents[1]; }
  [[nodiscard]] index key_channels() const noexcept { return k.extents[3]; }
  [[nodiscard]] index value_channels() const noexcept { return v.extents[3]; }
  /// Query heads of a state.
  [[nodiscard]] index group() const noexcept { return heads() > 0 ? q.extents[1] / heads() : 0; }
  [[nodiscard]] index tasks() const noexcept {
    return sequence_count(bounds, k.extents[0]) * heads();
  }
  /// The batch entry of a sequence: a ragged batch has one.
  [[nodiscard]] index batch_of(index sequence) const noexcept {
    return bounds.empty() ? sequence : 0;
  }
  [[nodiscard]] range tokens_of(index sequence) const noexcept {
    return sequence_tokens(bounds, sequence, k.extents[2]);
  }
  [[nodiscard]] index longest() const noexcept { return longest_sequence(bounds, k.extents[2]); }
};

/// An input, absent where it has no data.
template <class T>
[[nodiscard]] auto given_tokens(const view<const T, 4>& x) noexcept {
  using A = accumulate_t<T>;
  return has_data(x) ? make_token_input<A>(x) : token_input<A>{nullptr, x.extents(), x.strides()};
}
/// An output, absent where it has no data.
template <class T>
[[nodiscard]] auto wanted_tokens(const view<T, 4>& x) noexcept {
  using A = accumulate_t<T>;
  return has_data(x) ? make_token_output<A>(x) : token_output<A>{nullptr, x.extents(), x.strides()};
}

/// What both gradients have.
template <class In, class To>
[[nodiscard]] auto common_call(const In& in, const To& to, std::span<const index> bounds) noexcept {
  gradient_call<std::remove_const_t<typename decltype(in.initial_state)::scalar>> call{};
  call.q = given_tokens(in.q);
  call.k = given_tokens(in.k);
  call.v = given_tokens(in.v);
  call.gate = given_tokens(in.gate);
  call.dq = wanted_tokens(to.q);
  call.dk = wanted_tokens(to.k);
  call.dv = wanted_tokens(to.v);
  call.d_gate = wanted_tokens(to.gate);
  call.initial_state = in.initial_state;
  call.d_initial_state = to.initial_state;
  call.chunk = in.chunk;
  call.bounds = bounds;
  return call;
}

/// Throws where something does not fit.
template <class T>
[[nodiscard]] auto checked_call(const matrix_state_inputs<T>& in,
                                const matrix_state_cotangents<T>& given,
                                const matrix_state_gradients<T>& to,
                                std::span<const index> bounds) {
  check_sequence_bounds(bounds, "k", in.k.extent(0), in.k.extent(2));
  const auto scale = check_matrix_gradients(in, given, to, sequence_count(bounds, in.k.extent(0)));
  auto call = common_call(in, to, bounds);
  call.beta = given_tokens(in.beta);
  call.d_beta = wanted_tokens(to.beta);
  call.d_out = given_tokens(given.out);
  call.d_final_state = given.final_state;
  call.scale = scale;
  return call;
}
template <class T>
[[nodiscard]] auto checked_call(const dplr_backward_inputs<T>& in, const dplr_gradients<T>& to,
                                std::span<const index> bounds) {
  check_sequence_bounds(bounds, "k", in.k.extent(0), in.k.extent(2));
  const auto scale = check_dplr_backward(in, to, sequence_count(bounds, in.k.extent(0)));
  auto call = common_call(in, to, bounds);
  call.a = given_tokens(in.a);
  call.b = given_tokens(in.b);
  call.da = wanted_tokens(to.a);
  call.db = wanted_tokens(to.b);
  call.d_out = given_tokens(in.d_out);
  call.d_final_state = in.d_final_state;
  call.bonus = in.bonus;
  call.d_bonus = to.bonus;
  call.scale = scale;
  return call;
}

}  // namespace heed::inline HEED_TARGET::detail
