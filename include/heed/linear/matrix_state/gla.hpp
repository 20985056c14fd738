// SPDX-License-Identifier: MIT
// Gated linear attention: the state decays by a gate of each token, or of each key channel.
//
//   S = diag(exp g) S + k v',   out = scale S'q
//
//   auto out = heed::gated_attention(q, k, v, g);                 // g [batch, heads, tokens, Dk]
//   auto out = heed::scalar_gated_attention(q, k, v, g, state);   // g [batch, heads, tokens]
//
// Axes, scalars, NaN and errors thrown: see api.hpp. Accumulates in float, or double.
// Relative to the terms' absolute sum the error is at most (T + Dk + C + 4) eps, the gates' own
// |g| eps aside. FLOPs a head and token: 4 Dk Dv + (C + 1)(Dk + Dv), chunks of C = 64 (16 for gates
// of channels); recurrent 4 Dk Dv and the decay.
// Sources: Yang, Wang, Shen, Panda, Kim 2023, arXiv 2312.06635, section 4.1 (scalar: its
// special case, as simple GLA in its code); the scalar gate is also Mamba-2's, arXiv 2405.21060,
// eq. 16.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/api.hpp"

namespace heed::inline HEED_TARGET {

struct gated_method : matrix_method<gated_method, 4> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: gated_attention takes q, k, v, gate");
  }
  template <class C, class G>
  static void describe(C& c, const G& g) {
    c.gate_by_channel("g", g);
  }
};
inline constexpr linear_function_into<gated_method> gated_attention_into{};
inline constexpr linear_function<gated_method> gated_attention{};

struct scalar_gated_method : matrix_method<scalar_gated_method, 4> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: scalar_gated_attention takes q, k, v, gate");
  }
  template <class C, class G>
  static void describe(C& c, const G& g) {
    c.gate_by_token("g", g);
  }
};
inline constexpr linear_function_into<scalar_gated_method> scalar_gated_attention_into{};
inline constexpr linear_function<scalar_gated_method> scalar_gated_attention{};

}  // namespace heed::inline HEED_TARGET
