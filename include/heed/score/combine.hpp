// SPDX-License-Identifier: MIT
// Masks combined with `&&`, `||` and `!`; coverage and visible keys combine along.
//
//   heed::causal() && (heed::window{.left = 4095} || [](heed::position p) { return p.key < 4; })
//
// One side at least is heed's own; a user's callable may be on the other. As with every
// overloaded operator both sides are taken, but the right one is called only where the left one
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

/// A mask as a part of a bound one: itself where small, else where it is.
template <class M>
struct mask_reference {
  static constexpr stage when = stage::mask;
  const M* mask;
  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept { return (*mask)(p); }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    return coverage_of(*mask, t);
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return visible_keys_of(*mask, t);
  }
  [[nodiscard]] constexpr index query_block() const noexcept { return query_block_of(*mask); }
};

/// bind_modifier for a mask that another one holds.
template <class M>
[[nodiscard]] auto bind_part(const M& m, const score_extents& e) {
  if constexpr (binds_to_call<M> || copied_freely<M>) {
    return bind_modifier(m, e);
  } else {
    (void)bind_modifier(m, e);
    return mask_reference<M>{&m};
  }
}
/// What bind_part returns.
template <class M>
using bound_part =
    decltype(bind_part(std::declval<const M&>(), std::declval<const score_extents&>()));

namespace detail {

/// A mask of two others.
template <class A, class B>
struct two_masks {
  static constexpr stage when = stage::mask;

  A a;
  B b;
  constexpr two_masks(A first, B second) : a(std::move(first)), b(std::move(second)) {}
  /// That of the coarser one: cut there, the finer one's rows mostly lie together too.
  [[nodiscard]] constexpr index query_block() const noexcept {
    return query_block_of(a) > query_block_of(b) ? query_block_of(a) : query_block_of(b);
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
  [[nodiscard]] auto bind(const score_extents& e) const {
    return mask_and<bound_part<A>, bound_part<B>>{bind_part(this->a, e), bind_part(this->b, e)};
  }
};

/// f(mask): m, or the part of it that decides in the tile: of a conjunction one side where the other
/// shows all, of a disjunction one side where the other shows nothing. f is not called where m shows
/// all.
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
  [[nodiscard]] auto bind(const score_extents& e) const {
    return mask_or<bound_part<A>, bound_part<B>>{bind_part(this->a, e), bind_part(this->b, e)};
  }
};

/// The same of a disjunction.
template <class A, class B, class F>
constexpr void with_hiding(const mask_or<A, B>& m, const tile& t, F&& f) {
  const coverage a = coverage_of(m.a, t);
  if (a == coverage::full) return;
  if (a == coverage::empty) {
    with_hiding(m.b, t, f);
  } else if (const coverage b = coverage_of(m.b, t); b == coverage::empty) {
    with_hiding(m.a, t, f);
  } else if (b == coverage::partial) {
    f(m);
  }
}

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
  [[nodiscard]] auto bind(const score_extents& e) const {
    return mask_not<bound_part<A>>(bind_part(a, e));
  }
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
