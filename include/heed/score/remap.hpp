// SPDX-License-Identifier: MIT
// A call's program under other names of positions: a kernel counts rows and keys of a list, the
// modifiers are called with the tokens they are.
#pragma once

#include <concepts>
#include <limits>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/score/program.hpp"

namespace heed::inline HEED_TARGET {

/// What the names mean. `positions()` is a small function object with a member `moved`: the call's
/// position of a kernel's. The others answer for a kernel's tile what `Program` answers for a tile
/// of the call. A map that hides pairs of its own has a member `each_mask(f)`, which calls f(mask)
/// for each mask over the kernel's positions.
template <class Map, class Program>
concept position_map =
    requires(const Map& map, const Program& program, const position& p, const tile& t) {
      { map.positions().moved(p) } noexcept -> std::same_as<position>;
      { map.coverage_in(program, t) } noexcept -> std::same_as<coverage>;
      { map.visible_keys(program, t) } noexcept -> std::same_as<range>;
    };

/// A score modifier, bias or mask of the call, for a kernel's positions.
template <class M, class Positions>
struct remapped_modifier {
  held_modifier<M> modifier;
  Positions positions;

  HEED_INLINE bool operator()(const position& p) const noexcept
    requires mask_function<M>
  {
    return modifier(positions.moved(p));
  }
  template <class A>
  HEED_INLINE A operator()(A s, const position& p) const noexcept
    requires(!mask_function<M>)
  {
    return invoke_score<A>(modifier, s, positions.moved(p));
  }
  template <class A>
  [[nodiscard]] auto for_head([[maybe_unused]] index head) const noexcept {
    if constexpr (requires { modifier.template for_head<A>(head); }) {
      return [f = modifier.template for_head<A>(head), to = positions](A s, const position& p)
                 HEED_INLINE_LAMBDA { return f(s, to.moved(p)); };
    } else {
      return [m = *this](A s, const position& p) HEED_INLINE_LAMBDA { return m(s, p); };
    }
  }
};

/// The program of a call, for a kernel's positions. Refers to the call's.
template <kernel_program Program, class Map>
  requires position_map<Map, Program>
class remapped_program {
  using Positions = std::remove_cvref_t<decltype(std::declval<const Map&>().positions())>;
  static constexpr bool masks = requires(const Map& map) { map.each_mask([](const auto&) {}); };

 public:
  template <stage S>
  static constexpr bool has = (S == stage::mask && masks) || Program::template has<S>;
  static constexpr bool changes_scores = Program::changes_scores;
  static constexpr bool hides = masks || Program::hides;

  remapped_program(const Program& program, const Map& map) noexcept
      : program_(&program), map_(map) {}

  template <stage S, class F>
  HEED_INLINE void each(F&& f) const {
    if constexpr (S == stage::mask && masks) map_.each_mask(f);
    program_->template each<S>([&](const auto& m) {
      if constexpr (S == stage::softcap) {
        f(m);
      } else {
        f(remapped_modifier<std::remove_cvref_t<decltype(m)>, Positions>{m, map_.positions()});
      }
    });
  }
  [[nodiscard]] coverage coverage_in(const tile& t) const noexcept {
    return map_.coverage_in(*program_, t);
  }
  [[nodiscard]] range visible_keys(const tile& t) const noexcept {
    return map_.visible_keys(*program_, t);
  }
  template <class A>
  [[nodiscard]] A softcapped(A s, const position& p) const noexcept {
    return program_->softcapped(s, map_.positions().moved(p));
  }
  template <class A>
  [[nodiscard]] A modified(A s, const position& p) const noexcept {
    return program_->modified(s, map_.positions().moved(p));
  }
  /// By the call's masks.
  [[nodiscard]] bool visible(const position& p) const noexcept
    requires(!masks)
  {
    return program_->visible(map_.positions().moved(p));
  }
  /// Sinks join a row when it is complete.
  [[nodiscard]] auto sink_logit(index head) const noexcept {
    return -std::numeric_limits<decltype(program_->sink_logit(head))>::infinity();
  }
  [[nodiscard]] auto dropout_factor(const position& p) const noexcept {
    return program_->dropout_factor(map_.positions().moved(p));
  }

 private:
  const Program* program_;
  Map map_;
};

}  // namespace heed::inline HEED_TARGET
