// SPDX-License-Identifier: MIT
// What a gradient of the recurrences with a matrix state reads and writes, and the checks of both.
//
// | tensor           | axes                                              |
// |------------------|---------------------------------------------------|
// | q                | [batch, heads, tokens, Dk], heads a multiple of H |
// | k, v             | [batch, H, tokens, Dk], [batch, H, tokens, Dv]    |
// | gate             | [batch, H, tokens, 1] or [batch, H, tokens, Dk]   |
// | beta             | [batch, H, tokens, 1]                             |
// | states           | [batch, H, Dk, Dv]                                |
//
// Any strides. Gates are natural logs.
#pragma once

#include <array>
#include <cmath>
#include <optional>
#include <string>

#include "heed/core/checked.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET {

/// What the forward pass read. A view without data is absent: gate, beta, initial_state.
template <class A>
struct matrix_state_inputs {
  view<const A, 4> q;
  view<const A, 4> k;
  view<const A, 4> v;
  view<const A, 4> gate{};
  view<const A, 4> beta{};  ///< given, the delta rule
  view<const A, 4> initial_state{};
  std::optional<double> scale = std::nullopt;  ///< 1 / sqrt(Dk) where absent
  index chunk = 64;                            ///< tokens from one kept state to the next
};

/// The gradients of what the forward pass wrote. A view without data is zeros.
template <class A>
struct matrix_state_cotangents {
  view<const A, 4> out{};
  view<const A, 4> final_state{};
};

/// Where gradients go. One without data is not wanted.
template <class A>
struct matrix_state_gradients {
  view<A, 4> q{};
  view<A, 4> k{};
  view<A, 4> v{};
  view<A, 4> gate{};
  view<A, 4> beta{};
  view<A, 4> initial_state{};
};

namespace detail {

template <class T>
void check_gradient_extents(const char* name, const view<T, 4>& x,
                            const std::array<index, 4>& expected) {
  if (x.data() != nullptr && x.extents() != expected) {
    fail<shape_error>(std::string(name) + " has extents " + format_extents(x.extents()) +
                      ", the call needs " + format_extents(expected));
  }
}

/// Throws where something does not fit; returns the scale.
template <class A>
[[nodiscard]] A check_matrix_gradients(const matrix_state_inputs<A>& in,
                                       const matrix_state_cotangents<A>& given,
                                       const matrix_state_gradients<A>& to) {
  const std::array<index, 4> q = in.q.extents();
  const std::array<index, 4> k = in.k.extents();
  const std::array<index, 4> v{k[0], k[1], k[2], in.v.extent(3)};
  const std::array<index, 4> state{k[0], k[1], k[3], v[3]};
  const index rows = in.gate.extent(3) == 1 ? 1 : k[3];
  if (in.chunk < 1) {
    fail<option_error>("chunk is " + std::to_string(in.chunk) + ", must be at least 1");
  }
  require_equal("k", "batch", k[0], "q", q[0]);
  require_equal("k", "tokens", k[2], "q", q[2]);
  require_equal("k", "head dim", k[3], "q", q[3]);
  if (k[1] == 0 ? q[1] != 0 : q[1] % k[1] != 0) {
    fail<shape_error>("q has " + std::to_string(q[1]) + " heads, not a multiple of k's " +
                      std::to_string(k[1]));
  }
  if (in.v.extents() != v) {
    fail<shape_error>("v has extents " + format_extents(in.v.extents()) + ", the call needs " +
                      format_extents(v));
  }
  check_gradient_extents("gate", in.gate, {k[0], k[1], k[2], rows});
  check_gradient_extents("beta", in.beta, {k[0], k[1], k[2], 1});
  check_gradient_extents("initial_state", in.initial_state, state);
  check_gradient_extents("d_out", given.out, {q[0], q[1], q[2], v[3]});
  check_gradient_extents("d_state", given.final_state, state);
  check_gradient_extents("dq", to.q, q);
  check_gradient_extents("dk", to.k, k);
  check_gradient_extents("dv", to.v, v);
  check_gradient_extents("d_gate", to.gate, in.gate.extents());
  check_gradient_extents("d_beta", to.beta, in.beta.extents());
  check_gradient_extents("d_initial_state", to.initial_state, state);
  return checked_finite<A>(
      "scale", in.scale.value_or(k[3] > 0 ? 1 / std::sqrt(static_cast<double>(k[3])) : 1.0));
}

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
