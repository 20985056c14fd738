// SPDX-License-Identifier: MIT
// Mamba-2's state space duality: a scalar gate A dt of each token, and a skip D x.
//
//   S = exp(A dt) S + dt B x',   out = S'C + D x
//
//   auto y = heed::ssd(C, B, x, dt, A, D);
//
// In the place of q and k are C and B [batch, groups, tokens, state dim], of v x [batch, heads,
// tokens, head dim]; dt [batch, heads, tokens] is positive (its softplus taken), A [heads]
// negative, D [heads]. Scale 1 unless given. Axes, scalars, NaN and errors thrown: see
// api.hpp; errors and cost as in gla.hpp. Source: Dao, Gu 2024, arXiv 2405.21060, eq. 16
// and section 6 (chunks).
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/api.hpp"

namespace heed::inline HEED_TARGET {

struct ssd_method : matrix_method<ssd_method, 6> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: ssd takes C, B, x, dt, A, D");
  }
  template <class C, class Dt, class Rate, class Skip>
  static void describe(C& c, const Dt& dt, const Rate& rate, const Skip& skip) {
    c.gate_by_token("dt", dt);
    c.core.value_scale = c.token_numbers("dt", dt);
    c.core.gate_factor = c.head_values("A", rate);
    c.core.skip = c.head_values("D", skip);
    c.default_scale = 1;
  }
};
inline constexpr linear_function_into<ssd_method> ssd_into{};
inline constexpr linear_function<ssd_method> ssd{};

}  // namespace heed::inline HEED_TARGET
