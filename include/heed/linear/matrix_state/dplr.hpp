// SPDX-License-Identifier: MIT
// Identity, or a diagonal, plus low rank: the state takes in b (a'S), a and b free.
//
//   low rank (IPLR)            S = S + b (a'S) + k v',               out = scale S'q
//   diagonal plus low (DPLR)   S = diag(exp g) S + b (a'S) + k v'    the undecayed S in a'S
//
//   auto out = heed::low_rank_attention(q, k, v, a, b);
//   auto out = heed::diagonal_low_rank_attention(q, k, v, a, b, g);      // all [..., tokens, Dk]
//
// What a and b must be for a state that stays bounded is the model's affair. Axes, scalars, NaN and
// errors thrown: see api.hpp. There is no quadratic form (option_error). FLOPs a head and
// token: 8 Dk Dv + 4 (C + 1)(Dk + Dv), in chunks of C as in gla.hpp.
// Sources: Yang et al. 2024, arXiv 2406.06484 (identity plus low rank); Peng et al. 2025,
// arXiv 2503.14456, eq. 17 (diagonal plus low rank).
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/api.hpp"

namespace heed::inline HEED_TARGET {

struct low_rank_method : matrix_method<low_rank_method, 5> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: low_rank_attention takes q, k, v, a, b");
  }
  template <class C, class X, class Y>
  static void describe(C& c, const X& a, const Y& b) {
    c.core.writes = detail::write_kind::low_rank;
    c.core.a = c.token_rows("a", a);
    c.core.b = c.token_rows("b", b);
  }
};
inline constexpr linear_function_into<low_rank_method> low_rank_attention_into{};
inline constexpr linear_function<low_rank_method> low_rank_attention{};

struct diagonal_low_rank_method : matrix_method<diagonal_low_rank_method, 6> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: diagonal_low_rank_attention takes q, k, v, a, b, gate");
  }
  template <class C, class X, class Y, class G>
  static void describe(C& c, const X& a, const Y& b, const G& g) {
    low_rank_method::describe(c, a, b);
    c.gate_by_channel("g", g);
  }
};
inline constexpr linear_function_into<diagonal_low_rank_method> diagonal_low_rank_attention_into{};
inline constexpr linear_function<diagonal_low_rank_method> diagonal_low_rank_attention{};

}  // namespace heed::inline HEED_TARGET
