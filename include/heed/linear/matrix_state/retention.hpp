// SPDX-License-Identifier: MIT
// Retention and lightning attention: a decay of each head, the same for every token.
//
//   S = exp(g_h) S + k v',  out = scale S'q
//   retention   exp(g_h) = 1 - 2^(-5-h)
//   lightning   g_h = -(8 / H) (1 - layer / layers) h,  h from 0
//
//   auto out = heed::retention(q, k, v);
//   auto out = heed::lightning_attention(q, k, v, heed::layer_position{.layer = 3, .layers = 24});
//
// h counts the state's heads. Axes, scalars, NaN and errors thrown: see matrix_state/api.hpp;
// errors and cost as in gla.hpp.
// Sources: Sun et al. 2023, arXiv 2307.08621, eq. 6 and 8, without its rotation of q and k and the
// group norm after it; its score normalisations: normalised_retention.hpp; Qin et al. 2024, arXiv
// 2401.04658, and its published code for the decay.
#pragma once

#include <cmath>

#include "heed/core/target.hpp"
#include "heed/linear/matrix_state/api.hpp"

namespace heed::inline HEED_TARGET {

/// The natural log of retention's decay, of head h of the state.
[[nodiscard]] inline double retention_gate(index h) noexcept {
  return std::log1p(-std::exp2(-5.0 - static_cast<double>(h)));
}

struct retention_method : matrix_method<retention_method, 3> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: retention takes q, k, v");
  }
  template <class C>
  static void describe(C& c) {
    c.gate_by_head([](index h, index) { return retention_gate(h); });
  }
};
inline constexpr linear_function_into<retention_method> retention_into{};
inline constexpr linear_function<retention_method> retention{};

/// Which layer of a model a call computes; the decay weakens with depth.
struct layer_position {
  index layer = 0;
  index layers = 1;
};

struct lightning_method : matrix_method<lightning_method, 4> {
  template <bool Given>
  static constexpr void require_inputs() {
    static_assert(Given, "heed: lightning_attention takes q, k, v, layer_position");
  }
  template <class C>
  static void describe(C& c, const layer_position& at) {
    if (at.layers < 1 || at.layer < 0 || at.layer >= at.layers) {
      fail<option_error>("layer is " + std::to_string(at.layer) + ", must be in [0, " +
                         std::to_string(at.layers) + ")");
    }
    c.gate_by_head([&at](index h, index heads) {
      const double depth = double(at.layer) / double(at.layers);
      return -(8.0 / double(heads)) * (1.0 - depth) * double(h);
    });
  }
};
inline constexpr linear_function_into<lightning_method> lightning_attention_into{};
inline constexpr linear_function<lightning_method> lightning_attention{};

}  // namespace heed::inline HEED_TARGET
