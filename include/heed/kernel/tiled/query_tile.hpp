// SPDX-License-Identifier: MIT
// A group of queries across the lanes, and what one block of keys does to it.
//
//   scores -> modifiers -> mask -> running maximum and sum -> weighted values
//
// The group's output is kept transposed and not divided by the sum; `finish` does that once.
// Dao 2023, arXiv 2307.08691, algorithm 1, with queries in the lanes instead of a warp.
#pragma once

#include <cmath>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/tiled/microkernel.hpp"
#include "heed/kernel/tiled/score_tile.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// The sizes of a call's rows.
struct head_dims {
  index head_dim = 0;
  index value_dim = 0;
};

/// How the rows of a task become groups: as few as hold them, about equal, in whole packets.
struct group_rows {
  index groups;
  index rows;  // of each but the last

  constexpr group_rows(index queries, index lanes, index most) noexcept
      : groups(ceil_div(queries, most)),
        rows(groups > 0 ? round_up(ceil_div(queries, groups), lanes) : 0) {}
};

template <class A>
struct query_group {
  using plan = tile_plan<A>;

  A* q = nullptr;    // [head dim][group], as the block of keys wants it
  A* out = nullptr;  // [value dim][group]
  A* max = nullptr;  // [group]
  A* sum = nullptr;  // [group]
  tile where;        // its queries; keys: all that any of them may see

  void allocate(arena& c, index head_dim, index value_dim) noexcept {
    q = c.allocate<A>(head_dim * plan::group);
    out = c.allocate<A>(value_dim * plan::group);
    max = c.allocate<A>(plan::group);
    sum = c.allocate<A>(plan::group);
  }

  void start(index value_dim) noexcept {
    for (index i = 0; i < value_dim * plan::group; ++i) out[i] = A(0);
    for (index i = 0; i < plan::group; ++i) max[i] = softmax_state<A>::empty_max;
    for (index i = 0; i < plan::group; ++i) sum[i] = A(0);
  }

  [[nodiscard]] softmax_state<A> state(index i) const noexcept { return {max[i], sum[i]}; }

  /// The sink joins the denominator; the output is divided.
  void finish(index value_dim, A sink) noexcept {
    alignas(cache_line) A factor[plan::group];
    for (index i = 0; i < plan::group; ++i) {
      softmax_state<A> s = state(i);
      const A rescale = s.join_sink(sink);
      factor[i] = rescale * s.normaliser();
      max[i] = s.max;
      sum[i] = s.sum;
    }
    for (index c = 0; c < value_dim; ++c) {
      for (index i = 0; i < plan::group; i += plan::lanes) {
        A* const at = out + c * plan::group + i;
        simd::store(at, simd::mul(simd::load(at), simd::load(factor + i)));
      }
    }
  }
};

/// Softmax and values of a tile one pair at a time, leaving out what is hidden: taken where v holds
/// a NaN or an infinity that a weight of 0 would not silence.
template <class A, class Program, class Block>
HEED_NOINLINE void attend_pairwise(query_group<A>& g, const Program& program, const tile& t,
                                   const A* s, const Block& block, index value_dim) noexcept {
  constexpr index group = tile_plan<A>::group;
  for (index i = 0; i < t.queries.size(); ++i) {
    for (index j = 0; j < t.keys.size(); ++j) {
      const A score = s[j * group + i];
      if (score == softmax_state<A>::empty_max) continue;
      softmax_state<A> state = g.state(i);
      const auto w = state.merge({score, A(1)});
      g.max[i] = state.max;
      g.sum[i] = state.sum;
      const position p{t.batch,           t.head, t.kv_head, t.queries.begin + i, t.keys.begin + j,
                       t.rows().begin + i};
      const A weight = w.other * program.dropout_factor(p);
      for (index c = 0; c < value_dim; ++c) {
        A& o = g.out[c * group + i];
        o = w.self * o + weight * block.value(j, c);
      }
    }
  }
}

/// A tile's scores, whose maxima are `maximum`, become probabilities relative to the running
/// maximum, and join the running sum; `rescale` is what the group's past is multiplied with.
template <class A, int Packets>
HEED_NOINLINE void soften_tile(query_group<A>& g, A* s, index keys, const simd::packet<A>* maximum,
                               simd::packet<A>* rescale) noexcept {
  using P = simd::packet<A>;
  P shift[std::size_t{Packets}];
  P sum[std::size_t{Packets}];
  for (int p = 0; p < Packets; ++p) {
    A* const at = g.max + p * tile_plan<A>::lanes;
    const block_maximum<A> m(simd::load(at), maximum[p]);
    simd::store(at, m.max);
    shift[p] = m.shift;
    rescale[p] = m.rescale;
    sum[p] = simd::mul(simd::load(g.sum + p * tile_plan<A>::lanes), rescale[p]);
  }
  exponential_tile<A, Packets>(s, keys, shift, sum);
  for (int p = 0; p < Packets; ++p) simd::store(g.sum + p * tile_plan<A>::lanes, sum[p]);
}

template <class A, int Packets>
HEED_NOINLINE void tile_maximum(const A* s, index keys, simd::packet<A>* maximum) noexcept {
  for (int p = 0; p < Packets; ++p) maximum[p] = simd::broadcast(softmax_state<A>::empty_max);
  for (index j = 0; j < keys; ++j) {
    for (int p = 0; p < Packets; ++p) {
      maximum[p] =
          simd::max(maximum[p], simd::load(s + j * tile_plan<A>::group + p * tile_plan<A>::lanes));
    }
  }
}

/// One group against the keys of `t`, at most a block of them; `visible` is what the masks leave of
/// the tile, not `empty`. `s` is scratch for a block's scores. `finite()` tells whether the block's
/// values are all finite; it is asked only where it matters.
template <class A, class Program, class Block, class Finite>
HEED_NOINLINE void attend_tile(query_group<A>& g, const Program& program, const tile& t,
                               coverage visible, const Block& block, head_dims d, A* s,
                               Finite&& finite) noexcept {
  const index rows = t.queries.size();
  const index keys = t.keys.size();
  simd::packet<A> maximum[std::size_t{tile_plan<A>::packets}];
  simd::packet<A> rescale[std::size_t{tile_plan<A>::packets}];
  for (auto& m : maximum) m = simd::broadcast(softmax_state<A>::empty_max);
  in_packets<A>(rows, [&](auto packets) noexcept {
    block.template scores<packets()>(g.q, d.head_dim, keys, s, maximum);
  });
  bool changed = false;
  if constexpr (Program::changes_scores) {
    modify_tile(program, t, s);
    changed = true;
  }
  if constexpr (Program::template has<stage::mask>) {
    if (visible == coverage::partial) {
      mask_tile(program, t, s);
      changed = true;
    }
  }
  if constexpr (Program::changes_scores || Program::hides) {
    if (changed) {
      if (!finite()) {
        attend_pairwise(g, program, t, s, block, d.value_dim);
        return;
      }
      in_packets<A>(rows,
                    [&](auto packets) noexcept { tile_maximum<A, packets()>(s, keys, maximum); });
    }
  }
  in_packets<A>(rows, [&](auto packets) noexcept {
    soften_tile<A, packets()>(g, s, keys, maximum, rescale);
  });
  if constexpr (Program::template has<stage::dropout>) drop_tile(program, t, s);
  in_packets<A>(rows, [&](auto packets) noexcept {
    block.template values<packets()>(s, keys, d.value_dim, rescale, g.out);
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
