// SPDX-License-Identifier: MIT
// What a score modifier and a mask are, and what they may offer beyond being callable.
//
// A modifier is any callable:
//
//   score modifier   A f(A score, position p)    the new score; -inf removes the pair
//   mask             bool m(position p)          true keeps the pair
//
// with A the accumulator type (a callable that takes float also serves double kernels, in float).
// It may offer, const and noexcept:
//
//   coverage coverage(const tile&)     what the mask leaves of a tile; lets kernels skip or not mask
//   range visible_keys(const tile&)    a range inside tile.keys that holds every visible key; called
//                                      again behind each block, so that holes are skipped
//   index query_block()                queries that lie together: kernels cut rows at multiples
//                                      of it, in positions, and none where it is 0
//
// and, called once a call before anything is written, const and free to throw:
//
//   void check(const score_extents&)   throws where the modifier does not fit the call
//   auto bind(const score_extents&)    in place of check: what serves the call, with all it learns
//                                      from the extents; the modifier itself stays as it is, so that
//                                      calls of several threads may share it
//
// A mask that offers none is correct and merely slower. Kernels pass only rows and keys of the call.
// No kernel copies a modifier that is not small: one that holds a table costs what it would by
// reference.
#pragma once

#include <concepts>
#include <type_traits>
#include <utility>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

/// The extents of a call: scores are [batch, heads, queries, keys].
struct score_extents {
  index batch = 1;
  index heads = 1;
  index kv_heads = 1;
  index queries = 0;
  index keys = 0;
};

/// When a modifier acts. A supplied modifier states it as `static constexpr stage when`; a user's
/// callable acts as `score` or as `mask` by its signature.
enum class stage { softcap, score, bias, mask, sink, dropout, probability };

/// bool m(position)
template <class M>
concept mask_function = std::predicate<const M&, const position&>;

/// A f(A, position)
template <class M, class A>
concept score_function = std::invocable<const M&, A, const position&> &&
                         std::convertible_to<std::invoke_result_t<const M&, A, const position&>, A>;

namespace detail {

template <class M>
concept states_stage = requires {
  { M::when } -> std::convertible_to<stage>;
};

template <class M, class A>
inline constexpr bool is_modifier = states_stage<M> || mask_function<M> || score_function<M, A>;

template <class M, class A>
[[nodiscard]] constexpr stage stage_of() noexcept {
  static_assert(
      is_modifier<M, A>,
      "heed: a modifier is callable as a score modifier (A score, heed::position) -> A or "
      "as a mask (heed::position) -> bool, or is one of heed's own");
  if constexpr (states_stage<M>) {
    return M::when;
  } else if constexpr (mask_function<M>) {
    return stage::mask;
  } else {
    return stage::score;
  }
}

}  // namespace detail

/// Calls a score modifier. One that takes float where A is double gets the score as a float.
template <class A, class M>
[[nodiscard]] constexpr A invoke_score(const M& f, A s, const position& p) noexcept {
  if constexpr (!requires { f({s}, p); } && requires(float narrow) { f({narrow}, p); }) {
    return static_cast<A>(f(static_cast<float>(s), p));
  } else {
    return static_cast<A>(f(s, p));
  }
}

/// What mask `m` leaves of the tile; `partial` where it does not say.
template <class M>
[[nodiscard]] constexpr coverage coverage_of(const M& m, const tile& t) noexcept {
  if constexpr (requires {
                  { m.coverage(t) } -> std::same_as<coverage>;
                }) {
    return m.coverage(t);
  } else {
    return coverage::partial;
  }
}

/// A range inside `t.keys` that holds every key `m` leaves visible to the tile's queries.
template <class M>
[[nodiscard]] constexpr range visible_keys_of(const M& m, const tile& t) noexcept {
  if constexpr (requires {
                  { m.visible_keys(t) } -> std::same_as<range>;
                }) {
    return m.visible_keys(t);
  } else {
    return t.keys;
  }
}

/// Positions at whose multiples the mask's rows change together; 0 where it does not say, and for
/// blocks so large that an edge is seldom met: a tile across one is merely masked.
template <class M>
[[nodiscard]] constexpr index query_block_of(const M& m) noexcept {
  if constexpr (requires {
                  { m.query_block() } -> std::convertible_to<index>;
                }) {
    constexpr index most = index{1} << 16;
    const auto block = static_cast<index>(m.query_block());
    return block > most ? index{0} : block;
  } else {
    return 0;
  }
}

/// A modifier that a kernel may copy into its registers; others it reads where they are.
template <class M>
concept copied_freely = std::is_trivially_copyable_v<M> && sizeof(M) <= 128;

/// How a modifier is kept: a copy of a small one, else a reference to the caller's.
template <class M>
using held_modifier = std::conditional_t<copied_freely<M>, M, const M&>;

/// Offers `bind(extents)`.
template <class M>
concept binds_to_call = requires(const M& m, const score_extents& e) { m.bind(e); };

/// The modifier that serves a call of these extents; refers to `m` unless that is small. Throws
/// where it does not fit.
template <class M>
[[nodiscard]] decltype(auto) bind_modifier(const M& m, const score_extents& e) {
  if constexpr (binds_to_call<M>) {
    return m.bind(e);
  } else {
    if constexpr (requires { m.check(e); }) m.check(e);
    return held_modifier<M>(m);
  }
}
/// What bind_modifier returns.
template <class M>
using bound_modifier =
    decltype(bind_modifier(std::declval<const M&>(), std::declval<const score_extents&>()));

}  // namespace heed::inline HEED_TARGET
