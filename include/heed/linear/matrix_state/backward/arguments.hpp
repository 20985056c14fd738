// SPDX-License-Identifier: MIT
// What the gradients of the recurrences with a matrix state read and write, and the checks of both.
//
// | tensor             | axes                                                     |
// |--------------------|----------------------------------------------------------|
// | q, d_out           | [batch, heads, tokens, Dk or Dv], heads a multiple of H  |
// | k, a, b; v         | [batch, H, tokens, Dk]; [batch, H, tokens, Dv]           |
// | gate               | [batch, H, tokens, Dk], or 1 for Dk                      |
// | beta               | [batch, H, tokens, 1]                                    |
// | bonus              | [H, Dk]                                                  |
// | states             | [batch, H, Dk, Dv]; of a ragged batch [sequences, ...]   |
//
// Any strides. Gates are natural logs. T is float, double, half or bfloat16; what has no tokens is of
// its accumulator type.
#pragma once

#include <array>
#include <cmath>
#include <optional>
#include <string>

#include "heed/core/checked.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/linear/kept_states.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

/// What the forward pass read. A view without data is absent: gate, beta, initial_state.
template <class T>
struct matrix_state_inputs {
  view<const T, 4> q;
  view<const T, 4> k;
  view<const T, 4> v;
  view<const T, 4> gate{};
  view<const T, 4> beta{};  ///< given, the delta rule
  view<const accumulate_t<T>, 4> initial_state{};
  std::optional<double> scale = std::nullopt;  ///< 1 / sqrt(Dk) where absent
  index chunk = 64;                            ///< tokens from one kept state to the next
};

/// The gradients of what the forward pass wrote. A view without data is zeros.
template <class T>
struct matrix_state_cotangents {
  view<const T, 4> out{};
  view<const accumulate_t<T>, 4> final_state{};
};

/// Where gradients go. One without data is not wanted.
template <class T>
struct matrix_state_gradients {
  view<T, 4> q{};
  view<T, 4> k{};
  view<T, 4> v{};
  view<T, 4> gate{};
  view<T, 4> beta{};
  view<accumulate_t<T>, 4> initial_state{};
};

/// What a diagonal plus low rank, or RWKV-6 or 7, read, and what is known of what it wrote. A view
/// without data is absent, or zeros: gate, a, b, bonus, initial_state, d_out, d_final_state.
template <class T>
struct dplr_backward_inputs {
  view<const T, 4> q;
  view<const T, 4> k;
  view<const T, 4> v;
  view<const T, 4> gate{};
  view<const T, 4> a{};
  view<const T, 4> b{};
  view<const accumulate_t<T>, 2> bonus{};
  view<const accumulate_t<T>, 4> initial_state{};
  view<const T, 4> d_out{};
  view<const accumulate_t<T>, 4> d_final_state{};
  double scale = 1;
  index chunk = 64;  ///< tokens from one kept state to the next
};

/// Where its gradients go. One without data is not wanted.
template <class T>
struct dplr_gradients {
  view<T, 4> q{};
  view<T, 4> k{};
  view<T, 4> v{};
  view<T, 4> gate{};
  view<T, 4> a{};
  view<T, 4> b{};
  view<accumulate_t<T>, 2> bonus{};
  view<accumulate_t<T>, 4> initial_state{};
};

namespace detail {

/// Throws unless q's heads are a multiple of k's, and everything else of q is as k has it.
template <class T>
void check_query_heads(const view<const T, 4>& q, const view<const T, 4>& k) {
  require_equal("k", "batch", k.extent(0), "q", q.extent(0));
  require_equal("k", "tokens", k.extent(2), "q", q.extent(2));
  require_equal("k", "head dim", k.extent(3), "q", q.extent(3));
  if (k.extent(1) == 0 ? q.extent(1) != 0 : q.extent(1) % k.extent(1) != 0) {
    fail<shape_error>("q has " + std::to_string(q.extent(1)) + " heads, not a multiple of k's " +
                      std::to_string(k.extent(1)));
  }
}

/// What both gradients have; states have `sequences` entries.
template <class In, class To, class S, class D, class F>
void check_common_gradients(const In& in, const To& to, index sequences, const D& d_out,
                            const char* final_name, const F& d_final, const S& d_initial) {
  check_state_chunk(in.chunk);
  check_query_heads(in.q, in.k);
  const auto q = in.q.extents(), k = in.k.extents();
  const index dv = in.v.extent(3);
  const std::array<index, 4> state{sequences, k[1], k[3], dv};
  check_extents("v", in.v, std::array<index, 4>{k[0], k[1], k[2], dv});
  check_extents_if_given("initial_state", in.initial_state, state);
  check_extents_if_given("d_out", d_out, std::array<index, 4>{q[0], q[1], q[2], dv});
  check_extents_if_given(final_name, d_final, state);
  check_extents_if_given("dq", to.q, q);
  check_extents_if_given("dk", to.k, k);
  check_extents_if_given("dv", to.v, in.v.extents());
  check_gradient_of("d_gate", to.gate, "gate", in.gate);
  check_extents_if_given("d_initial_state", d_initial, state);
}

/// Throws where something does not fit; returns the scale.
template <class T>
[[nodiscard]] accumulate_t<T> check_matrix_gradients(const matrix_state_inputs<T>& in,
                                                     const matrix_state_cotangents<T>& given,
                                                     const matrix_state_gradients<T>& to,
                                                     index sequences) {
  check_common_gradients(in, to, sequences, given.out, "d_state", given.final_state,
                         to.initial_state);
  auto row = in.k.extents();
  if (in.gate.extent(3) == 1) row[3] = 1;
  check_extents_if_given("gate", in.gate, row);
  row[3] = 1;
  check_extents_if_given("beta", in.beta, row);
  check_gradient_of("d_beta", to.beta, "beta", in.beta);
  const auto d = static_cast<double>(in.k.extent(3));
  return checked_finite<accumulate_t<T>>("scale", in.scale.value_or(d > 0 ? 1 / std::sqrt(d) : 1));
}

template <class T>
[[nodiscard]] accumulate_t<T> check_dplr_backward(const dplr_backward_inputs<T>& in,
                                                  const dplr_gradients<T>& to, index sequences) {
  check_common_gradients(in, to, sequences, in.d_out, "d_final_state", in.d_final_state,
                         to.initial_state);
  const auto k = in.k.extents();
  check_extents_if_given("gate", in.gate, k);
  if (has_data(in.a) != has_data(in.b)) {
    fail<option_error>("a and b are given together or not at all");
  }
  check_extents_if_given("a", in.a, k);
  check_extents_if_given("b", in.b, k);
  check_extents_if_given("bonus", in.bonus, std::array<index, 2>{k[1], k[3]});
  check_gradient_of("da", to.a, "a", in.a);
  check_gradient_of("db", to.b, "b", in.b);
  check_gradient_of("d_bonus", to.bonus, "bonus", in.bonus);
  return checked_finite<accumulate_t<T>>("scale", in.scale);
}

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
