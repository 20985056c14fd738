// SPDX-License-Identifier: MIT
// The delta rule and its gated kinds: what the state reads for k is moved towards v.
//
//   S = diag(exp g) S,  S += beta k (v - S'k)',  out = scale S'q      (no gate: g = 0)
//
//   auto out = heed::delta_attention(q, k, v, beta);              // beta [batch, heads, tokens]
//   auto out = heed::gated_delta_attention(q, k, v, g, beta);     // g [batch, heads, tokens]
//   auto out = heed::channel_gated_delta_attention(q, k, v, g, beta);   // g (..., Dk): KDA
//
// For a state that stays bounded |k| <= 1 and beta in [0, 2]; nothing here normalises k. Errors of
// one step are of the sizes in gla.hpp, and pass through (I - beta k k') of the later ones. Axes,
// scalars, NaN and errors thrown: see api.hpp. There is no quadratic form (option_error).
// FLOPs a head and token: 6 Dk Dv + 2 (C + 1)(Dk + Dv), in chunks of C as in gla.hpp.
// Sources: Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, eq. 24; Yang et al. 2024, arXiv
// 2406.06484 (chunks); gated: Yang, Kautz, Hatamizadeh 2024, arXiv 2412.06464, section 3.1; per
// channel: Kimi Team 2025, arXiv 2510.26692.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/api.hpp"

namespace heed::inline HEED_TARGET {

struct delta_method : matrix_method<delta_method, 4> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: delta_attention takes q, k, v, beta");
  }
  template <class C, class Beta>
  static void describe(C& c, const Beta& beta) {
    c.core.writes = detail::write_kind::delta;
    c.core.value_scale = c.token_numbers("beta", beta);
  }
};
inline constexpr linear_function_into<delta_method> delta_attention_into{};
inline constexpr linear_function<delta_method> delta_attention{};

struct gated_delta_method : matrix_method<gated_delta_method, 5> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: gated_delta_attention takes q, k, v, gate, beta");
  }
  template <class C, class G, class Beta>
  static void describe(C& c, const G& g, const Beta& beta) {
    delta_method::describe(c, beta);
    c.gate_by_token("g", g);
  }
};
inline constexpr linear_function_into<gated_delta_method> gated_delta_attention_into{};
inline constexpr linear_function<gated_delta_method> gated_delta_attention{};

struct channel_gated_delta_method : matrix_method<channel_gated_delta_method, 5> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: channel_gated_delta_attention takes q, k, v, gate, beta");
  }
  template <class C, class G, class Beta>
  static void describe(C& c, const G& g, const Beta& beta) {
    delta_method::describe(c, beta);
    c.gate_by_channel("g", g);
  }
};
inline constexpr linear_function_into<channel_gated_delta_method>
    channel_gated_delta_attention_into{};
inline constexpr linear_function<channel_gated_delta_method> channel_gated_delta_attention{};

}  // namespace heed::inline HEED_TARGET
