// SPDX-License-Identifier: MIT
// RWKV-6 and RWKV-7: a gate of each key channel; a bonus on the current token, or a free low rank
// update.
//
//   RWKV-6   out = (S + diag(u) k v')'r,  then S = diag(exp w) S + k v'       u [heads, Dk]
//   RWKV-7   S = diag(exp w) S + b (a'S) + k v',  out = S'r                   the old S in a'S
//
//   auto out = heed::rwkv6(r, k, v, w, u);
//   auto out = heed::rwkv7(r, k, v, w, a, b);
//
// w is the natural log of the decay (-exp of the models' w'), [batch, heads, tokens, Dk]; so are a
// and b shaped. Scale 1 unless given. Axes, scalars, NaN and errors thrown: see api.hpp;
// errors and cost as in gla.hpp and dplr.hpp.
// Sources: Peng et al. 2024, arXiv 2404.05892, eq. 18 and 19; Peng et al. 2025, arXiv 2503.14456,
// eq. 17.
#pragma once

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/api.hpp"
#include "heed/linear/matrix_state/dplr.hpp"

namespace heed::inline HEED_TARGET {

struct rwkv6_method : matrix_method<rwkv6_method, 5> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: rwkv6 takes r, k, v, w, u");
  }
  template <class C, class W, class U>
  static void describe(C& c, const W& w, const U& u) {
    c.gate_by_channel("w", w);
    c.core.bonus = c.head_values("u", u);
    c.core.read_before = true;
    c.default_scale = 1;
  }
};
inline constexpr linear_function_into<rwkv6_method> rwkv6_into{};
inline constexpr linear_function<rwkv6_method> rwkv6{};

struct rwkv7_method : matrix_method<rwkv7_method, 6> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: rwkv7 takes r, k, v, w, a, b");
  }
  template <class C, class W, class X, class Y>
  static void describe(C& c, const W& w, const X& a, const Y& b) {
    low_rank_method::describe(c, a, b);
    c.gate_by_channel("w", w);
    c.default_scale = 1;
  }
};
inline constexpr linear_function_into<rwkv7_method> rwkv7_into{};
inline constexpr linear_function<rwkv7_method> rwkv7{};

}  // namespace heed::inline HEED_TARGET
