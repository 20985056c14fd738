// SPDX-License-Identifier: MIT
// Gradients of what a modifier reads, a bias, slopes, a relative table or sink logits, told to a
// callback by a backward pass:
//
//   with_gradient(modifier, accumulate)    accumulate(d_score, position) for each pair
//
// d_score is the gradient of the score behind that modifier. Of a sink it is that of the head's
// logit, one call a query row, with key -1. Pairs of probability 0 are left out.
#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/score/combine.hpp"
#include "heed/score/concepts.hpp"

namespace heed::inline HEED_TARGET {

/// When a modifier acts: as it declares, else a mask where it returns bool, else on scores.
template <class M>
[[nodiscard]] constexpr stage stage_of_modifier() noexcept {
  if constexpr (requires { M::when; }) {
    return M::when;
  } else {
    return mask_function<M> ? stage::mask : stage::score;
  }
}

/// Modifier M, which tells `accumulate` the gradients of its scores in a backward pass. In a forward
/// pass it is M.
template <class M, class F>
struct gradient_modifier : M {
  static constexpr stage when = stage_of_modifier<M>();
  F accumulate;

  constexpr gradient_modifier(M m, F f) : M(std::move(m)), accumulate(std::move(f)) {}

  /// What M becomes in a call, with the same callback.
  [[nodiscard]] auto bind(const score_extents& e) const
    requires binds_to_call<M>
  {
    using bound = std::remove_cvref_t<decltype(M::bind(e))>;
    return gradient_modifier<bound, F>(M::bind(e), accumulate);
  }
};

/// `with_gradient(heed::bias(b), [&](float d, heed::position p) { db(p.row, p.key) += d; })`.
/// The callback is called by one thread, in an order that does not depend on the executor.
template <class M, class F>
[[nodiscard]] constexpr auto with_gradient(M modifier, F accumulate) {
  using result = gradient_modifier<M, F>;
  static_assert(std::is_class_v<M>, "heed: with_gradient takes a modifier, not a pointer to one");
  static_assert(std::invocable<const F&, float, const position&> ||
                    std::invocable<const F&, double, const position&>,
                "heed: with_gradient calls accumulate(d_score, heed::position)");
  static_assert(
      result::when == stage::score || result::when == stage::bias || result::when == stage::sink,
      "heed: with_gradient takes a score modifier, a bias or a sink: nothing else has "
      "gradients to tell");
  return result(std::move(modifier), std::move(accumulate));
}

}  // namespace heed::inline HEED_TARGET
