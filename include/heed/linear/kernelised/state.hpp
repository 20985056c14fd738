// SPDX-License-Identifier: MIT
// The state of linear attention, that goes into a call and comes out: S and its normaliser z.
//
//   S [batch, kv heads, features, value dim],   z [batch, kv heads, features]
//
// in the accumulator type. A sequence may be fed in pieces of any length with one state:
//
//   heed::linear_state<float> state({.batch = 1, .kv_heads = 4, .features = 64, .value_dim = 64});
//   auto out = heed::linear_attention(q, k, v, state);             // the prompt
//   auto next = heed::linear_attention(q1, k1, v1, state);         // one more token
#pragma once

#include <concepts>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// The caller's own memory as a state, any strides. Without normalisation `normaliser` may stay
/// empty.
template <class A>
struct linear_state_view {
  using scalar = A;
  view<A, 4> sum{};
  view<A, 3> normaliser{};
};

struct linear_state_extents {
  index batch = 1;
  index kv_heads = 1;
  index features = 0;  ///< the head dim, unless a feature map makes more or fewer of it
  index value_dim = 0;
};

/// Owns a state; begins as zero, the state before the first token.
template <class A>
class linear_state {
  static_assert(std::floating_point<A>, "heed: a linear state is float or double");

 public:
  using scalar = A;

  /// Throws shape_error on a negative extent.
  explicit linear_state(const linear_state_extents& e)
      : sum_({e.batch, e.kv_heads, e.features, e.value_dim}),
        normaliser_({e.batch, e.kv_heads, e.features}) {}

  [[nodiscard]] tensor<A, 4>& sum() noexcept { return sum_; }
  [[nodiscard]] const tensor<A, 4>& sum() const noexcept { return sum_; }
  [[nodiscard]] tensor<A, 3>& normaliser() noexcept { return normaliser_; }
  [[nodiscard]] const tensor<A, 3>& normaliser() const noexcept { return normaliser_; }

  operator linear_state_view<A>() noexcept {  // NOLINT(google-explicit-constructor)
    return {as_view(sum_), as_view(normaliser_)};
  }

 private:
  tensor<A, 4> sum_;
  tensor<A, 3> normaliser_;
};

namespace detail {
template <class S>
inline constexpr bool is_linear_state = false;
template <class A>
inline constexpr bool is_linear_state<linear_state<A>> = true;
template <class A>
inline constexpr bool is_linear_state<linear_state_view<A>> = true;
}  // namespace detail

/// A state that a call may update: `linear_state<A>&`, or a `linear_state_view<A>`.
template <class S>
concept linear_state_like =
    detail::is_linear_state<std::remove_cvref_t<S>> &&
    std::convertible_to<S, linear_state_view<typename std::remove_cvref_t<S>::scalar>>;

}  // namespace heed::inline HEED_TARGET
