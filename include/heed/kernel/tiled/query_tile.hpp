// SPDX-License-Identifier: MIT
// A tile of queries across the lanes, and what one block of keys does to it.
//
//   scores -> modifiers -> mask -> running reference and sum -> weighted values
//
// The tile's output is kept transposed and not divided by the sum; `finish` does that once. Sums of a
// block begin at 0 and join the past with a compensation term (kernel/online_softmax.hpp).
// Dao 2023, arXiv 2307.08691, algorithm 1, with queries in the lanes instead of a warp.
#pragma once

#include <cmath>
#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/tiled/microkernel.hpp"
#include "heed/kernel/tiled/score_tile.hpp"
#include "heed/simd/tile_matrix.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// The sizes of a call's rows.
struct head_dims {
  index head_dim = 0;
  index value_dim = 0;
};

/// How the rows of a task become tiles: as few as hold them, about equal, in whole packets.
struct group_rows {
  index groups;
  index rows;  // of each but the last

  constexpr group_rows(index queries, index lanes, index most) noexcept
      : groups(ceil_div(queries, most)),
        rows(groups > 0 ? round_up(ceil_div(queries, groups), lanes) : 0) {}
};

/// A number of each query of a tile.
template <class A>
struct lane_numbers {
  alignas(cache_line) A at[static_cast<std::size_t>(tile_plan<A>::group)];
};

template <class A>
struct query_tile {
  using plan = tile_plan<A>;

  /// Numbers of each query beside its channels, which a block of codes multiplied by tiles keeps.
  static constexpr index more = simd::has_byte_tiles ? 2 : 0;

  A* q = nullptr;     // [head dim + more][group], as the block of keys wants it
  A* out = nullptr;   // [value dim][group]
  A* lost = nullptr;  // [value dim][group], what rounding has taken from `out`
  A* max = nullptr;   // [group]
  A* sum = nullptr;   // [group]
  A* rest = nullptr;  // [group], what rounding has taken from `sum`
  tile where;         // its queries; keys: all that any of them may see
  A factor = A(1);    // what the weights are multiplied with once their sum is taken

  void allocate(arena& c, index head_dim, index value_dim) noexcept {
    q = c.allocate<A>((head_dim + more) * plan::group);
    out = c.allocate<A>(value_dim * plan::group);
    lost = c.allocate<A>(value_dim * plan::group);
    max = c.allocate<A>(plan::group);
    sum = c.allocate<A>(plan::group);
    rest = c.allocate<A>(plan::group);
  }

  void start(index value_dim) noexcept {
    for (index i = 0; i < value_dim * plan::group; ++i) out[i] = A(0);
    for (index i = 0; i < value_dim * plan::group; ++i) lost[i] = A(0);
    for (index i = 0; i < plan::group; ++i) max[i] = softmax_state<A>::empty_max;
    for (index i = 0; i < plan::group; ++i) sum[i] = A(0);
    for (index i = 0; i < plan::group; ++i) rest[i] = A(0);
  }

  [[nodiscard]] softmax_state<A> state(index i) const noexcept { return {max[i], sum[i], rest[i]}; }
  [[nodiscard]] running_values<A> values() const noexcept { return {out, lost}; }

  /// The sink joins the denominator; the output is divided. Lane i of what is returned: 0 unless the
  /// output has overflowed, or holds what its values hold, though the sum is finite.
  [[nodiscard]] lane_numbers<A> finish(index value_dim, A sink) noexcept {
    alignas(cache_line) A divisor[plan::group];
    lane_numbers<A> odd;
    for (index i = 0; i < plan::group; ++i) {
      softmax_state<A> s = state(i);
      const A rescale = s.join_sink(sink);
      divisor[i] = rescale * s.normaliser() / factor;
      max[i] = s.max;
      sum[i] = s.sum;
      rest[i] = s.lost;
    }
    simd::packet<A> sought[std::size_t{plan::packets}];
    for (auto& s : sought) s = simd::zero<A>();
    for (index c = 0; c < value_dim; ++c) {
      for (index p = 0; p < plan::packets; ++p) {
        const index at = c * plan::group + p * plan::lanes;
        const auto whole = total(simd::load(out + at), simd::load(lost + at));
        const auto mean = simd::mul(whole, simd::load(divisor + p * plan::lanes));
        simd::store(out + at, mean);
        sought[p] = simd::fmadd(mean, simd::zero<A>(), sought[p]);
      }
    }
    for (index p = 0; p < plan::packets; ++p) simd::store(odd.at + p * plan::lanes, sought[p]);
    for (index i = 0; i < plan::group; ++i) {
      if (!(sum[i] - sum[i] == A(0))) odd.at[i] = A(0);
    }
    return odd;
  }
};

/// The pairs of a tile that are hidden, or whose score is -inf: [keys][group].
template <class A>
struct hidden_pairs {
  std::uint8_t pair[static_cast<std::size_t>(tile_plan<A>::keys * tile_plan<A>::group)];

  explicit hidden_pairs(const A* s, index keys) noexcept {
    for (index i = 0; i < keys * tile_plan<A>::group; ++i) {
      pair[i] = s[i] == softmax_state<A>::empty_max ? 1 : 0;
    }
  }
};

/// The values of a tile one pair at a time, leaving out what is hidden: taken where v holds a NaN or
/// an infinity that a weight of 0 would not silence.
template <class A, class Block>
HEED_NOINLINE void visible_values(const query_tile<A>& g, const tile& t,
                                  const hidden_pairs<A>& hidden, const A* p, const Block& block,
                                  index value_dim, const simd::packet<A>* rescale) noexcept {
  constexpr index group = tile_plan<A>::group;
  alignas(cache_line) A factor[std::size_t{group}];
  for (index i = 0; i < tile_plan<A>::packets; ++i) {
    simd::store(factor + i * tile_plan<A>::lanes, rescale[i]);
  }
  for (index i = 0; i < t.queries.size(); ++i) {
    for (index c = 0; c < value_dim; ++c) {
      const index at = c * group + i;
      A part = A(0);  // chains join each other as those of `value_tile` do
      in_chains<keys_of_chain>(t.keys.begin, t.keys.size(), [&](index begin, index end) noexcept {
        A sum = A(0);
        for (index j = begin; j < end; ++j) {
          if (hidden.pair[j * group + i] == 0) sum += p[j * group + i] * block.value(j, c);
        }
        part = begin == 0 ? sum : part + sum;
      });
      add_to_past(g.out[at], g.lost[at], factor[i], part);
    }
  }
}

/// A tile's scores, whose maxima are `maximum`, become probabilities relative to the running
/// reference, and join the running sum; `rescale` is what the queries' past is multiplied with.
template <class A, int Packets>
HEED_NOINLINE void update_online_softmax(query_tile<A>& g, A* s, index first, index keys,
                                         const simd::packet<A>* maximum,
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
  }
  exponential_tile<A, Packets>(s, first, keys, shift, sum);
  const running_values<A> total{g.sum, g.rest};
  for (int p = 0; p < Packets; ++p) total.add(p * tile_plan<A>::lanes, rescale[p], sum[p]);
}

template <class A, int Packets>
HEED_NOINLINE void tile_maximum(const A* s, index keys, simd::packet<A>* maximum) noexcept {
  for (int p = 0; p < Packets; ++p) maximum[p] = simd::broadcast(softmax_state<A>::empty_max);
  for (index j = 0; j < keys; ++j) {
    for (int p = 0; p < Packets; ++p) {
      maximum[p] = (simd::max)(maximum[p],
                               simd::load(s + j * tile_plan<A>::group + p * tile_plan<A>::lanes));
    }
  }
}

template <class A>
HEED_NOINLINE void scale_tile(A* s, index keys, A factor) noexcept {
  for (index i = 0; i < keys * tile_plan<A>::group; ++i) s[i] *= factor;
}

/// One tile of queries against the keys of `t`, at most a block of them; `visible` is what the masks
/// leave of the tile, not `empty`. `s` is scratch for a block's scores. `finite()` tells whether the
/// block's values are all finite; it is called only where it matters.
template <class A, class Program, class Block, class Finite>
HEED_NOINLINE void attend_tile(query_tile<A>& g, const Program& program, const tile& t,
                               coverage visible, const Block& block, head_dims d, A* s,
                               Finite&& finite) noexcept {
  const index rows = t.queries.size();
  const index keys = t.keys.size();
  const index first = t.keys.begin % tile_plan<A>::keys;
  simd::packet<A> maximum[std::size_t{tile_plan<A>::packets}];
  simd::packet<A> rescale[std::size_t{tile_plan<A>::packets}];
  for (auto& m : maximum) m = simd::broadcast(softmax_state<A>::empty_max);
  for (auto& r : rescale) r = simd::broadcast(A(1));
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
  const auto softmax = [&]() noexcept {
    in_packets<A>(rows, [&](auto packets) noexcept {
      update_online_softmax<A, packets()>(g, s, first, keys, maximum, rescale);
    });
    if constexpr (Program::template has<stage::dropout>) drop_tile(program, t, s);
    if (g.factor != A(1)) scale_tile(s, keys, g.factor);
  };
  if constexpr (Program::changes_scores || Program::hides) {
    if (changed) {
      in_packets<A>(rows,
                    [&](auto packets) noexcept { tile_maximum<A, packets()>(s, keys, maximum); });
      if (!finite()) {
        const hidden_pairs<A> hidden(s, keys);
        softmax();
        visible_values(g, t, hidden, s, block, d.value_dim, rescale);
        return;
      }
    }
  }
  softmax();
  in_packets<A>(rows, [&](auto packets) noexcept {
    block.template values<packets()>(s, first, keys, d.value_dim, rescale, g.values());
  });
}

// Kernels that no modifier changes, for P packets of queries: with HEED_COMPILED they are compiled
// once, in the library heed::compiled, and not in each file that calls attention.
#define HEED_TILED_KERNELS(KEYWORD, A, P)                                                   \
  KEYWORD template void score_tile<A, P>(const A*, const A*, index, index, index, A*,       \
                                         simd::packet<A>*, prefetch_stream&) noexcept;      \
  KEYWORD template void value_tile<A, P, running_values<A>>(                                \
      const A*, const A*, index, index, index, index, const simd::packet<A>*,               \
      const running_values<A>&, prefetch_stream&) noexcept;                                 \
  KEYWORD template void update_online_softmax<A, P>(                                        \
      query_tile<A>&, A*, index, index, const simd::packet<A>*, simd::packet<A>*) noexcept; \
  KEYWORD template void exponential_tile<A, P>(A*, index, index, const simd::packet<A>*,    \
                                               simd::packet<A>*) noexcept;                  \
  KEYWORD template void tile_maximum<A, P>(const A*, index, simd::packet<A>*) noexcept;
#define HEED_TILED_KERNELS_OF(KEYWORD, A) \
  HEED_TILED_KERNELS(KEYWORD, A, 1)       \
  HEED_TILED_KERNELS(KEYWORD, A, 2)       \
  HEED_TILED_KERNELS(KEYWORD, A, 3)

#if defined(HEED_COMPILED)
HEED_TILED_KERNELS_OF(extern, float)
HEED_TILED_KERNELS_OF(extern, double)
#endif

}  // namespace heed::inline HEED_TARGET::kernel
