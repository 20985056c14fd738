// SPDX-License-Identifier: MIT
// Modifiers run backward: from the gradient of a final score to that of the scaled product q.k, and
// to the gradients of what the modifiers were given.
//
// A score modifier f is differentiated
//
//   by its member   A derivative(A score, position) const      df / d score, where it offers one,
//   else by calling it with a dual number                      a generic lambda: (auto s, position)
//
// softcap, alibi and bias know theirs. What a modifier reads gets its gradient through a callback
// (score/with_gradient.hpp).
#pragma once

#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/score/dual.hpp"
#include "heed/score/program.hpp"
#include "heed/score/with_gradient.hpp"

namespace heed::inline HEED_TARGET::kernel {

template <class M>
inline constexpr bool accumulates = false;
template <class M, class F>
inline constexpr bool accumulates<gradient_modifier<M, F>> = true;

/// Which threads may call a modifier's callback.
template <class M>
inline constexpr told_by teller = told_by::nobody;
template <class M, class F>
inline constexpr told_by teller<gradient_modifier<M, F>> = callers_of<F>;

/// Whether d f / d score is 1 whatever the score.
template <class M>
inline constexpr bool adds_only = std::derived_from<M, alibi>;
template <class M>
  requires(M::adds_only)
inline constexpr bool adds_only<M> = true;
template <class M, class F>
inline constexpr bool adds_only<gradient_modifier<M, F>> = adds_only<M>;
template <class T>
inline constexpr bool adds_only<bias_modifier<T>> = true;

/// d f / d score at score s.
template <class A, class M>
[[nodiscard]] HEED_INLINE A score_derivative(const M& f, A s, const position& p) noexcept {
  if constexpr (adds_only<M>) {
    return A(1);
  } else if constexpr (requires { f.derivative(s, p); }) {
    return static_cast<A>(f.derivative(s, p));
  } else {
    constexpr bool generic = requires { f(dual<A>(s, A(1)), p); };
    static_assert(
        generic,
        "heed: this score modifier cannot be differentiated: write it as a generic lambda "
        "(auto score, heed::position), or give it a member derivative(score, position)");
    if constexpr (generic) {
      using result = std::remove_cvref_t<decltype(f(dual<A>(s, A(1)), p))>;
      if constexpr (std::is_arithmetic_v<result>) {
        return A(0);  // a constant
      } else {
        return f(dual<A>(s, A(1)), p).derivative;
      }
    } else {
      return A(0);
    }
  }
}

/// The modifiers of a call in the order in which they act on scores, run backward.
template <class A, class... Mods>
class score_gradient {
  template <class M>
  static constexpr bool acts(stage s) {
    return stage_of_modifier<M>() == s;
  }

 public:
  static_assert(!((stage_of_modifier<Mods>() == stage::probability) || ... || false),
                "heed: a change of the probabilities has no backward pass");

  /// Whether anything is told to a callback; then a task is a whole kv head.
  static constexpr bool tells = (accumulates<Mods> || ... || false);
  /// Whether that takes one thread.
  static constexpr bool tells_one_thread = ((teller<Mods> == told_by::one_thread) || ... || false);
  /// Whether tasks have tables of their own.
  static constexpr bool tables = ((teller<Mods> == told_by::tables) || ... || false);
  /// Whether a score modifier or bias has work to do backward.
  static constexpr bool reverses =
      ((acts<Mods>(stage::score) && !(adds_only<Mods> && !accumulates<Mods>)) || ... || false) ||
      ((acts<Mods>(stage::bias) && accumulates<Mods>) || ... || false);
  static constexpr bool softcaps = (acts<Mods>(stage::softcap) || ... || false);

  /// The modifiers as the call binds them, the large ones by reference, as in its program.
  explicit score_gradient([[maybe_unused]] const score_extents& e, const Mods&... mods)
      : mods_{bind_modifier(mods, e)...} {
    index before = 0;
    each_table([&](std::size_t i, const auto& table) {
      first_[i] = before;
      before += table.numbers();
    });
    numbers_ = before;
  }

  /// Numbers of a task's tables, which `reverse` and `tell_sinks` then add to.
  [[nodiscard]] index table_numbers() const noexcept { return numbers_; }
  /// A task's tables to the caller's.
  void merge_tables(const A* own) const noexcept {
    each_table([&](std::size_t i, const auto& table) { table.merge(own + first_[i]); });
  }

  /// From d, the gradient of the final score, to that of `s`, the score before the score modifiers
  /// and behind the softcap. Callbacks are told: tables, the caller's where the task has none.
  [[nodiscard]] HEED_INLINE A reverse(A s, const position& p, A d,
                                      A* own = nullptr) const noexcept {
    return reverse_stage<stage::score>(s, p, d, own, [&](A t, A g) HEED_INLINE_LAMBDA {
      return reverse_stage<stage::bias>(t, p, g, own, [](A, A h) HEED_INLINE_LAMBDA { return h; });
    });
  }
  /// The derivative of the softcaps at the scaled score s.
  [[nodiscard]] A softcap_derivative(A s) const noexcept {
    A product = A(1);
    each<stage::softcap>([&](const auto& m) {
      const A cap = static_cast<A>(m.cap);
      const A t = std::tanh(s / cap);
      product *= A(1) - t * t;
      s = cap * t;
    });
    return product;
  }
  /// Sinks that want to know are told the gradient of their logit from one row: -p delta.
  void tell_sinks(A lse, A delta, const position& p, A* own = nullptr) const noexcept {
    each_index([&](auto i) {
      const auto& m = std::get<decltype(i)::value>(mods_);
      using M = std::tuple_element_t<decltype(i)::value, std::tuple<Mods...>>;
      if constexpr (acts<M>(stage::sink) && accumulates<M>) {
        const A logit = static_cast<A>(m.logits[static_cast<std::size_t>(p.head)]);
        const A share = std::exp(logit - lse);
        if (share != A(0)) tell<decltype(i)::value>(-share * delta, p, own);
      }
    });
  }

  template <stage S, class F>
  HEED_INLINE void each(F&& f) const noexcept {
    std::apply([&](const auto&... m) { (visit<S, Mods>(m, f), ...); }, mods_);
  }

 private:
  template <stage S, class M, class Bound, class F>
  HEED_INLINE static void visit(const Bound& m, F& f) noexcept {
    if constexpr (stage_of_modifier<M>() == S) f(m);
  }
  template <class F>
  static void each_index(F&& f) noexcept {
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (f(std::integral_constant<std::size_t, I>{}), ...);
    }(std::index_sequence_for<Mods...>{});
  }
  /// f(place of the modifier, its table)
  template <class F>
  void each_table(F&& f) const noexcept {
    each_index([&]([[maybe_unused]] auto i) {
      using M = std::tuple_element_t<decltype(i)::value, std::tuple<Mods...>>;
      if constexpr (teller<M> == told_by::tables) {
        const auto& table = std::get<decltype(i)::value>(mods_).accumulate;
        static_assert(std::is_same_v<typename std::remove_cvref_t<decltype(table)>::scalar, A>,
                      "heed: a table of gradients has the accumulator type (float, or double for "
                      "double)");
        f(decltype(i)::value, table);
      }
    });
  }
  /// Modifier I's callback.
  template <std::size_t I>
  HEED_INLINE void tell(A d, const position& p, [[maybe_unused]] A* own) const noexcept {
    const auto& told = std::get<I>(mods_).accumulate;
    if constexpr (teller<std::tuple_element_t<I, std::tuple<Mods...>>> == told_by::tables) {
      if (own != nullptr) return told.add_to(own + first_[I], d, p);
    }
    told(d, p);
  }
  /// Forward through the stage's modifiers from the I-th on, then `inner`, then back.
  template <stage S, std::size_t I = 0, class Inner>
  HEED_INLINE A reverse_stage(A s, const position& p, A d, [[maybe_unused]] A* own,
                              const Inner& inner) const noexcept {
    if constexpr (I == sizeof...(Mods)) {
      return inner(s, d);
    } else {
      const auto& m = std::get<I>(mods_);
      using M = std::tuple_element_t<I, std::tuple<Mods...>>;
      if constexpr (stage_of_modifier<M>() != S) {
        return reverse_stage<S, I + 1>(s, p, d, own, inner);
      } else {
        const A next = invoke_score<A>(m, s, p);
        const A g = reverse_stage<S, I + 1>(next, p, d, own, inner);
        if constexpr (accumulates<M>) tell<I>(g, p, own);
        if constexpr (adds_only<M>) {
          return g;
        } else {
          return g * score_derivative<A>(m, s, p);
        }
      }
    }
  }

  std::tuple<bound_modifier<Mods>...> mods_;
  std::array<index, sizeof...(Mods) + 1> first_{};  // of a modifier's table among a task's numbers
  index numbers_ = 0;
};

/// The gradients of one task, which sums tables of its own.
template <class Gradient, class A>
struct task_gradient {
  const Gradient& all;
  A* own;
  static constexpr bool tells = Gradient::tells;
  static constexpr bool reverses = Gradient::reverses;
  static constexpr bool softcaps = Gradient::softcaps;

  [[nodiscard]] HEED_INLINE A reverse(A s, const position& p, A d) const noexcept {
    return all.reverse(s, p, d, own);
  }
  void tell_sinks(A lse, A delta, const position& p) const noexcept {
    all.tell_sinks(lse, delta, p, own);
  }
  template <stage S, class F>
  HEED_INLINE void each(F&& f) const noexcept {
    all.template each<S>(f);
  }
};

}  // namespace heed::inline HEED_TARGET::kernel
