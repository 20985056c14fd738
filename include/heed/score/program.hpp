// SPDX-License-Identifier: MIT
// The modifiers of one call, in the order they act: softcap, score modifiers as written, bias,
// masks.
//
// A program holds the modifiers as the call binds them, the large ones by reference, and answers
// what a kernel needs: is there anything to do, what does a tile hold, what is the score at a
// position. What a call learns from its extents is here; the caller's modifiers stay as they are.
#pragma once

#include <concepts>
#include <limits>
#include <tuple>

#include "heed/core/target.hpp"
#include "heed/score/broadcast.hpp"
#include "heed/score/combine.hpp"
#include "heed/score/concepts.hpp"
#include "heed/score/masks.hpp"
#include "heed/score/modifiers.hpp"

namespace heed::inline HEED_TARGET {

/// What kernels need of a program: `score_program`, or one under other names of positions
/// (score/remap.hpp). `P::has<stage>` says what there is to do.
template <class P>
concept kernel_program = requires(const P& p, const tile& t, const position& at, index head) {
  { P::changes_scores } -> std::convertible_to<bool>;
  { P::hides } -> std::convertible_to<bool>;
  { P::template has<stage::mask> } -> std::convertible_to<bool>;
  { p.coverage_in(t) } -> std::same_as<coverage>;
  { p.visible_keys(t) } -> std::same_as<range>;
  { p.sink_logit(head) } -> std::floating_point;
  { p.dropout_factor(at) } -> std::floating_point;
};

/// A is the accumulator type. The modifiers must outlive the program.
template <class A, class... Mods>
class score_program {
 public:
  /// Throws where a modifier does not fit a call of these extents.
  explicit score_program([[maybe_unused]] const score_extents& e, const Mods&... mods)
      : mods_{bind_modifier(mods, e)...} {}

  template <stage S>
  static constexpr bool has = ((detail::stage_of<Mods, A>() == S) || ... || false);

  /// Anything that changes a score or hides a pair.
  static constexpr bool changes_scores =
      has<stage::softcap> || has<stage::score> || has<stage::bias>;
  static constexpr bool hides = has<stage::mask> || has<stage::bias>;

  /// `f(modifier)` for each modifier of stage S, in the order written.
  template <stage S, class F>
  HEED_INLINE constexpr void each(F&& f) const {
    std::apply([&](const auto&... m) { (visit<S, Mods>(m, f), ...); }, mods_);
  }

  /// What the masks, and the extents of the biases, leave of the tile.
  [[nodiscard]] constexpr coverage coverage_in(const tile& t) const noexcept {
    coverage c = coverage::full;
    const auto meet = [&](const auto& m) {
      if (c == coverage::empty) return;
      const coverage x = coverage_of(m, t);
      if (x != coverage::full) c = x;
    };
    each<stage::bias>(meet);
    each<stage::mask>(meet);
    return c;
  }

  /// A range of the tile's keys that holds every visible one.
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    range r = t.keys;
    const auto meet = [&](const auto& m) { r = intersect(r, visible_keys_of(m, t)); };
    each<stage::bias>(meet);
    each<stage::mask>(meet);
    return r;
  }

  /// Where kernels cut the rows: the coarsest of the masks' query blocks, 0 without any.
  [[nodiscard]] constexpr index query_block() const noexcept {
    index n = 0;
    each<stage::mask>([&](const auto& m) { n = query_block_of(m) > n ? query_block_of(m) : n; });
    return n;
  }

  [[nodiscard]] A softcapped(A s, const position& p) const noexcept {
    each<stage::softcap>([&](const auto& m) { s = invoke_score<A>(m, s, p); });
    return s;
  }
  /// After score modifiers and bias.
  [[nodiscard]] A modified(A s, const position& p) const noexcept {
    each<stage::score>([&](const auto& m) { s = invoke_score<A>(m, s, p); });
    each<stage::bias>([&](const auto& m) { s = m(s, p); });
    return s;
  }
  [[nodiscard]] constexpr bool visible(const position& p) const noexcept {
    bool v = true;
    each<stage::mask>([&](const auto& m) { v = v && m(p); });
    return v;
  }

  /// The sink logits of a head as one logit, log of the sum of their exponentials; -inf without
  /// any.
  [[nodiscard]] A sink_logit(index head) const noexcept {
    A l = -std::numeric_limits<A>::infinity();
    each<stage::sink>([&](const auto& m) {
      const A s = static_cast<A>(m.logits[static_cast<std::size_t>(head)]);
      if (s == -std::numeric_limits<A>::infinity()) return;
      const A hi = s > l ? s : l;
      l = hi + std::log(std::exp(s - hi) + std::exp(l - hi));
    });
    return l;
  }
  [[nodiscard]] A dropout_factor(const position& p) const noexcept {
    A f = A(1);
    each<stage::dropout>([&](const auto& m) { f *= static_cast<A>(m.factor(p)); });
    return f;
  }
  [[nodiscard]] A changed_probability(A x, const position& p) const noexcept {
    each<stage::probability>([&](const auto& m) { x = invoke_score<A>(m.f, x, p); });
    return x;
  }

 private:
  template <stage S, class M, class Bound, class F>
  HEED_INLINE static constexpr void visit(const Bound& m, F& f) {
    if constexpr (detail::stage_of<M, A>() == S) f(m);
  }
  std::tuple<bound_modifier<Mods>...> mods_;
};

}  // namespace heed::inline HEED_TARGET
