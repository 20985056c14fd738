// SPDX-License-Identifier: MIT
// Masks combined with `&&`, `||` and `!`; coverage and visible keys combine along.
//
//   heed::causal() && (heed::window{.left = 4095} || [](heed::position p) { return p.key < 4; })
//
// One side at least is heed's own; a user's callable may stand on the other. As with every
// overloaded operator both sides are taken, but the right one is asked only where the left one
// leaves it open.
#pragma once

#include <utility>

#include "heed/core/target.hpp"
#include "heed/score/concepts.hpp"

namespace heed::inline HEED_TARGET {

/// A mask that says so itself (`static constexpr stage when = stage::mask`), as heed's own do.
template <class M>
concept heed_mask = mask_function<M> && requires { requires M::when == stage::mask; };

/// Two masks that `&&` or `||` combines: one of them heed's own, so that the operator is found.
template <class A, class B>
concept mask_pair = (heed_mask<A> && mask_function<B>) || (mask_function<A> && heed_mask<B>);

namespace detail {
/// A mask of two others checks both.
template <class A, class B>
struct two_masks {
  static constexpr stage when = stage::mask;

  A a;
  B b;
  constexpr two_masks(A first, B second) : a(std::move(first)), b(std::move(second)) {}
  /// That of the coarser one: cut there, the finer one's rows mostly stand together too.
  [[nodiscard]] constexpr index query_block() const noexcept {
    return query_block_of(a) > query_block_of(b) ? query_block_of(a) : query_block_of(b);
  }
  void check(const score_extents& e) const {
    check_modifier(a, e);
    check_modifier(b, e);
  }
};
}  // namespace detail

/// `a && b`: the pairs that both masks keep.
template <class A, class B>
struct mask_and : detail::two_masks<A, B> {
  using detail::two_masks<A, B>::two_masks;
  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return this->a(p) && this->b(p);
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    const heed::coverage x = coverage_of(this->a, t);
    if (x == heed::coverage::empty) return x;
    const heed::coverage y = coverage_of(this->b, t);
    return y == heed::coverage::full ? x : y;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return intersect(visible_keys_of(this->a, t), visible_keys_of(this->b, t));
  }
};

/// f(mask): m, or where one side of a conjunction shows all of the tile the other side alone, which
/// then decides. f is not called where m shows all.
template <class M, class F>
constexpr void with_hiding(const M& m, const tile& t, F&& f) {
  if (coverage_of(m, t) != coverage::full) f(m);
}
template <class A, class B, class F>
constexpr void with_hiding(const mask_and<A, B>& m, const tile& t, F&& f) {
  if (coverage_of(m.a, t) == coverage::full) {
    with_hiding(m.b, t, f);
  } else if (coverage_of(m.b, t) == coverage::full) {
    with_hiding(m.a, t, f);
  } else {
    f(m);
  }
}

/// `a || b`: the pairs that one of the masks keeps.
template <class A, class B>
struct mask_or : detail::two_masks<A, B> {
  using detail::two_masks<A, B>::two_masks;
  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return this->a(p) || this->b(p);
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    const heed::coverage x = coverage_of(this->a, t);
    if (x == heed::coverage::full) return x;
    const heed::coverage y = coverage_of(this->b, t);
    return y == heed::coverage::empty ? x : y;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return hull(visible_keys_of(this->a, t), visible_keys_of(this->b, t));
  }
};

/// `!a`: the pairs that the mask hides.
template <class A>
struct mask_not {
  static constexpr stage when = stage::mask;

  A a;
  explicit constexpr mask_not(A mask) : a(std::move(mask)) {}
  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept { return !a(p); }
  [[nodiscard]] constexpr index query_block() const noexcept { return query_block_of(a); }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    switch (coverage_of(a, t)) {
      case heed::coverage::empty:
        return heed::coverage::full;
      case heed::coverage::full:
        return heed::coverage::empty;
      default:
        return heed::coverage::partial;
    }
  }
  void check(const score_extents& e) const { check_modifier(a, e); }
};

template <class A, class B>
  requires mask_pair<A, B>
[[nodiscard]] constexpr mask_and<A, B> operator&&(A a, B b) {
  return {std::move(a), std::move(b)};
}

template <class A, class B>
  requires mask_pair<A, B>
[[nodiscard]] constexpr mask_or<A, B> operator||(A a, B b) {
  return {std::move(a), std::move(b)};
}

template <heed_mask A>
[[nodiscard]] constexpr mask_not<A> operator!(A a) {
  return mask_not<A>(std::move(a));
}

}  // namespace heed::inline HEED_TARGET
