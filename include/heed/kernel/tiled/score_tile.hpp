// SPDX-License-Identifier: MIT
// Modifiers and masks applied to a tile of scores: the only place below the public
// functions that calls them.
//
// Each stage is one pass over the tile while it is in the first-level cache. Lanes are consecutive
// queries, so that a modifier written for one score is compiled into a loop over a packet's worth
// of them. Rows past the tile's queries are left alone: a modifier is never called for them.
#pragma once

#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/tiled/tuning.hpp"
#include "heed/score/program.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// s = f(s, position) for one key and `rows` consecutive queries. A copy of a small f, local to the
/// loop, keeps its captures in registers: through a reference each store could change them.
template <class A, class F>
HEED_INLINE void each_query(const tile& t, index key, index rows, A* s, const F& f) noexcept {
  const held_modifier<F> local = f;
  const index query = t.queries.begin;
  const index row = query - t.offset;
  for (index i = 0; i < rows; ++i) {
    s[i] = local(s[i], position{t.batch, t.head, t.kv_head, query + i, key, row + i});
  }
}

/// The same for every key of the tile. A full group runs with its length known to the compiler.
template <class A, class F>
HEED_INLINE void each_score(const tile& t, A* s, const F& f) noexcept {
  constexpr index group = tile_plan<A>::group;
  const index rows = t.queries.size();
  for (index j = t.keys.begin; j < t.keys.end; ++j, s += group) {
    if (rows == group) {
      each_query<A>(t, j, group, s, f);
    } else {
      each_query<A>(t, j, rows, s, f);
    }
  }
}

/// A modifier as a member or a capture.
template <class M>
struct modifier_handle {
  held_modifier<M> held;
};

template <class A, class M>
HEED_INLINE auto score_function_of(const M& m, index head) noexcept {
  if constexpr (requires { m.template for_head<A>(head); }) {
    return m.template for_head<A>(head);
  } else {
    return [h = modifier_handle<M>{m}](A s, const position& p)
               HEED_INLINE_LAMBDA { return invoke_score<A>(h.held, s, p); };
  }
}

/// -inf where mask `m` hides a pair. What hides is made apart from the scores it is applied to: to
/// a compiler that sees both, a score that stays is a store to leave out, and the loop none for
/// packets.
template <class A, class M>
HEED_INLINE void apply_mask(const M& m, const tile& t, A* s) noexcept {
  constexpr index group = tile_plan<A>::group;
  constexpr A hidden = softmax_state<A>::empty_max;
  A hiding[std::size_t{group}] = {};
  for (index j = t.keys.begin; j < t.keys.end; ++j, s += group) {
    tile one = t;
    one.keys = {j, j + 1};
    // Whatever it held is not looked at.
    each_score<A>(one, hiding,
                  [h = modifier_handle<M>{m}](A, const position& p)
                      HEED_INLINE_LAMBDA { return h.held(p) ? A(0) : hidden; });
    for (index i = 0; i < group; i += tile_plan<A>::lanes) {
      const auto h = simd::load(hiding + i);
      simd::store(s + i, simd::select(simd::equal(h, simd::zero<A>()), simd::load(s + i), h));
    }
  }
}

/// Scores of tile `t` through softcap, score modifiers and bias.
template <class A, class Program>
HEED_NOINLINE void modify_tile(const Program& program, const tile& t, A* s) noexcept {
  program.template each<stage::softcap>([&](const auto& m) {
    const auto cap = simd::broadcast(static_cast<A>(m.cap));
    const auto inverse = simd::broadcast(A(1) / static_cast<A>(m.cap));
    for (index i = 0; i < t.keys.size() * tile_plan<A>::group; i += tile_plan<A>::lanes) {
      simd::store(s + i, simd::mul(cap, simd::tanh<A>(simd::mul(simd::load(s + i), inverse))));
    }
  });
  program.template each<stage::score>(
      [&](const auto& m) { each_score(t, s, score_function_of<A>(m, t.head)); });
  program.template each<stage::bias>([&](const auto& m) { each_score(t, s, m); });
}

/// -inf where the masks hide a pair. The tile is classified again in steps of keys, so that only
/// the edge of a mask is evaluated pair by pair.
template <class A, class Program>
HEED_NOINLINE void mask_tile(const Program& program, const tile& t, A* s) noexcept {
  constexpr index group = tile_plan<A>::group;
  constexpr A hidden = softmax_state<A>::empty_max;
  for (index j = t.keys.begin; j < t.keys.end; j += tile_plan<A>::mask_step) {
    tile part = t;
    part.keys = intersect(t.keys, {j, j + tile_plan<A>::mask_step});
    A* const at = s + (j - t.keys.begin) * group;
    switch (program.coverage_in(part)) {
      case coverage::full:
        break;
      case coverage::empty:
        for (index i = 0; i < part.keys.size() * group; ++i) at[i] = hidden;
        break;
      case coverage::partial:
        program.template each<stage::mask>([&](const auto& mask) {
          with_hiding(mask, part, [&](const auto& m) { apply_mask<A>(m, part, at); });
        });
    }
  }
}

/// Probabilities through dropout; their sum has been taken.
template <class A, class Program>
HEED_NOINLINE void drop_tile(const Program& program, const tile& t, A* p) noexcept {
  each_score(t, p, [&program](A x, const position& at) HEED_INLINE_LAMBDA {
    return x * program.dropout_factor(at);
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
