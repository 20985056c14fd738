// SPDX-License-Identifier: MIT
// A group of queries against a block of keys, backward: five products on tiles in the cache.
//
//   s = k q,  dp = v d_out                      queries in the lanes, as in the forward pass
//   p = exp(s - lse),  ds = p (dp - delta)      lane by lane
//   dq += k ds                                  queries in the lanes
//   dv += p d_out,  dk += ds q                  channels in the lanes
#pragma once

#include <cmath>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/backward/outer_products.hpp"
#include "heed/kernel/backward/score_gradient.hpp"
#include "heed/kernel/tiled/query_tile.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Keys of a block: half of the forward pass's, for two tiles of scores are held.
struct backward_plan {
  static constexpr index keys = 64;
};

/// A group of at most `tile_plan::group` queries.
template <class A>
struct backward_group {
  const A* q = nullptr;           // [head dim][group], scaled
  const A* d_out = nullptr;       // [value dim][group]
  const A* q_rows = nullptr;      // [queries][head stride], scaled
  const A* d_out_rows = nullptr;  // [queries][value stride]
  const A* shift = nullptr;       // [group]: log-sum-exp; infinity where nothing is to be added
  const A* delta = nullptr;       // [group]
  A* dq = nullptr;                // [head dim][group], before it is scaled
  bool finite = true;             // whether q and d_out are
};

/// A block of keys and values, and their gradients' sums.
template <class A>
struct backward_block {
  const A* k = nullptr;
  const A* v = nullptr;
  index k_stride = 0;
  index v_stride = 0;
  A* dk = nullptr;  // [keys][head stride]
  A* dv = nullptr;  // [keys][value stride]
  bool finite = true;

  [[nodiscard]] backward_block from(index n, index head_stride, index value_stride) const noexcept {
    return {k + n * k_stride,     v + n * v_stride,      k_stride, v_stride,
            dk + n * head_stride, dv + n * value_stride, finite};
  }
};

template <class A>
struct backward_tiles {
  A* scores = nullptr;  // [keys][group]: s, then p
  A* ds = nullptr;      // [keys][group]: dp, then ds
  A* before = nullptr;  // [keys][group]: the scores that score modifiers got

  void allocate(arena& c) noexcept {
    constexpr index size = backward_plan::keys * tile_plan<A>::group;
    scores = c.allocate<A>(size);
    ds = c.allocate<A>(size);
    before = c.allocate<A>(size);
  }
};

/// p = exp(s - shift).
template <class A, int Packets>
HEED_NOINLINE void probability_tile(A* s, index keys, const A* shift) noexcept {
  simd::packet<A> by[std::size_t{Packets}];
  simd::packet<A> sum[std::size_t{Packets}];
  for (int p = 0; p < Packets; ++p) {
    by[p] = simd::load(shift + p * tile_plan<A>::lanes);
  }
  exponential_tile<A, Packets>(s, 0, keys, by, sum);
}

/// ds = p (dp - delta), 0 where p is.
template <class A, int Packets>
HEED_NOINLINE void score_gradient_tile(const A* p, A* ds, index keys, const A* delta) noexcept {
  using P = simd::packet<A>;
  constexpr index lanes = tile_plan<A>::lanes;
  constexpr index group = tile_plan<A>::group;
  P less[std::size_t{Packets}];
  simd::unroll<Packets>([&](auto r)
                            HEED_INLINE_LAMBDA { less[r] = simd::load(delta + r * lanes); });
  for (index j = 0; j < keys; ++j) {
    simd::unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA {
      const index at = j * group + r * lanes;
      const P weight = simd::load(p + at);
      const P d = simd::mul(weight, simd::sub(simd::load(ds + at), less[r]));
      simd::store(ds + at, simd::select(simd::equal(weight, simd::zero<A>()), simd::zero<A>(), d));
    });
  }
}

/// The products with ds and p one pair at a time, leaving out pairs of probability 0: taken where k,
/// q or d_out hold a NaN or an infinity that a weight of 0 would not silence.
template <class A>
HEED_NOINLINE void accumulate_pairwise(const backward_group<A>& g, const backward_block<A>& block,
                                       const A* p, const A* ds, index rows, index keys, head_dims d,
                                       index head_stride, index value_stride) noexcept {
  constexpr index group = tile_plan<A>::group;
  for (index j = 0; j < keys; ++j) {
    for (index i = 0; i < rows; ++i) {
      const A weight = p[j * group + i];
      const A gradient = ds[j * group + i];
      if (weight != A(0)) {
        for (index c = 0; c < d.value_dim; ++c) {
          block.dv[j * value_stride + c] += weight * g.d_out_rows[i * value_stride + c];
        }
      }
      if (gradient == A(0)) continue;
      for (index c = 0; c < d.head_dim; ++c) {
        block.dk[j * head_stride + c] += gradient * g.q_rows[i * head_stride + c];
        g.dq[c * group + i] += gradient * block.k[j * block.k_stride + c];
      }
    }
  }
}

/// Scores through softcap and modifiers; `before` gets what the score modifiers got.
template <class A, class Program, class Gradient>
void modify_forward(const Program& program, const Gradient& gradient, const tile& t, A* s,
                    A* before) noexcept {
  if constexpr (Gradient::reverses || Gradient::softcaps) {
    const index size = t.keys.size() * tile_plan<A>::group;
    gradient.template each<stage::softcap>([&](const auto& m) {
      const auto cap = simd::broadcast(static_cast<A>(m.cap));
      const auto inverse = simd::broadcast(A(1) / static_cast<A>(m.cap));
      for (index i = 0; i < size; i += tile_plan<A>::lanes) {
        simd::store(s + i, simd::mul(cap, simd::tanh<A>(simd::mul(simd::load(s + i), inverse))));
      }
    });
    for (index i = 0; i < size; i += tile_plan<A>::lanes)
      simd::store(before + i, simd::load(s + i));
  }
  program.template each<stage::score>(
      [&](const auto& m) { each_score(t, s, score_function_of<A>(m, t.head)); });
  program.template each<stage::bias>([&](const auto& m) { each_score(t, s, m); });
}

[[nodiscard]] HEED_INLINE position pair_of(const tile& t, index key, index query) noexcept {
  return {t.batch,
          t.head,
          t.kv_head,
          t.queries.begin + query,
          t.keys.begin + key,
          t.rows().begin + query};
}

/// One key's ds back through the modifiers: a loop without branches, and without stores that a
/// modifier could see, which is compiled into packets. Where ds is 0 it stays so.
template <class A, class Gradient>
HEED_INLINE void reverse_key(const Gradient& gradient, const tile& t, index key, index rows, A* ds,
                             const A* before) noexcept {
  constexpr index group = tile_plan<A>::group;
  A back[std::size_t{group}] = {};
  for (index i = 0; i < rows; ++i) {
    back[i] = gradient.reverse(before[i], pair_of(t, key, i), ds[i]);
  }
  for (index i = 0; i < group; i += tile_plan<A>::lanes) {
    const auto d = simd::load(ds + i);
    simd::store(ds + i, simd::select(simd::equal(d, simd::zero<A>()), d, simd::load(back + i)));
  }
}

/// ds of final scores becomes ds of the scaled products.
template <class A, class Gradient>
void modify_backward(const Gradient& gradient, const tile& t, A* ds, const A* before) noexcept {
  constexpr index group = tile_plan<A>::group;
  if constexpr (Gradient::reverses) {
    const index rows = t.queries.size();
    for (index j = 0; j < t.keys.size(); ++j, ds += group, before += group) {
      if constexpr (Gradient::tells) {
        for (index i = 0; i < rows; ++i) {
          if (ds[i] != A(0)) ds[i] = gradient.reverse(before[i], pair_of(t, j, i), ds[i]);
        }
      } else if (rows == group) {
        reverse_key(gradient, t, j, group, ds, before);
      } else {
        reverse_key(gradient, t, j, rows, ds, before);
      }
    }
    ds -= t.keys.size() * group;
    before -= t.keys.size() * group;
  }
  if constexpr (Gradient::softcaps) {
    // 1 - tanh^2, and tanh is the capped score by the cap.
    gradient.template each<stage::softcap>([&](const auto& m) {
      const auto one = simd::broadcast(A(1));
      const auto inverse = simd::broadcast(A(1) / static_cast<A>(m.cap));
      for (index i = 0; i < t.keys.size() * group; i += tile_plan<A>::lanes) {
        const auto x = simd::mul(simd::load(before + i), inverse);
        const auto d = simd::load(ds + i);
        const auto slope = simd::sub(one, simd::mul(x, x));
        simd::store(ds + i, simd::select(simd::equal(d, simd::zero<A>()), d, simd::mul(d, slope)));
      }
    });
  }
}

/// One group against the keys of `t`; `visible` is what the masks leave of the tile, not `empty`.
template <class A, class Program, class Gradient>
HEED_NOINLINE void backward_tile(const backward_group<A>& g, const Program& program,
                                 const Gradient& gradient, const tile& t, coverage visible,
                                 const backward_block<A>& block, head_dims d,
                                 const backward_tiles<A>& tiles) noexcept {
  constexpr index lanes = tile_plan<A>::lanes;
  const index rows = t.queries.size();
  const index keys = t.keys.size();
  const index head_stride = round_up(d.head_dim, lanes);
  const index value_stride = round_up(d.value_dim, lanes);
  prefetch_stream stream;
  in_packets<A>(rows, [&](auto packets) noexcept {
    simd::packet<A> ignored[std::size_t{packets()}];
    for (auto& m : ignored) m = simd::zero<A>();
    score_tile<A, packets()>(g.q, block.k, block.k_stride, d.head_dim, keys, tiles.scores, ignored,
                             stream);
    score_tile<A, packets()>(g.d_out, block.v, block.v_stride, d.value_dim, keys, tiles.ds, ignored,
                             stream);
  });
  if constexpr (Program::changes_scores) {
    modify_forward(program, gradient, t, tiles.scores, tiles.before);
  }
  if constexpr (Program::template has<stage::mask>) {
    if (visible == coverage::partial) mask_tile(program, t, tiles.scores);
  }
  in_packets<A>(rows, [&](auto packets) noexcept {
    probability_tile<A, packets()>(tiles.scores, keys, g.shift);
  });
  if constexpr (Program::template has<stage::dropout>) drop_tile(program, t, tiles.ds);
  in_packets<A>(rows, [&](auto packets) noexcept {
    score_gradient_tile<A, packets()>(tiles.scores, tiles.ds, keys, g.delta);
  });
  if constexpr (Program::template has<stage::dropout>) drop_tile(program, t, tiles.scores);
  if constexpr (Gradient::reverses || Gradient::softcaps) {
    modify_backward(gradient, t, tiles.ds, tiles.before);
  }
  if (!g.finite || !block.finite) {
    accumulate_pairwise(g, block, tiles.scores, tiles.ds, rows, keys, d, head_stride, value_stride);
    return;
  }
  outer_tile(tiles.scores, keys, g.d_out_rows, rows, value_stride, block.dv);
  outer_tile(tiles.ds, keys, g.q_rows, rows, head_stride, block.dk);
  in_packets<A>(rows, [&](auto packets) noexcept {
    simd::packet<A> one[std::size_t{packets()}];
    for (auto& m : one) m = simd::broadcast(A(1));
    value_tile<A, packets()>(tiles.ds, block.k, block.k_stride, 0, keys, d.head_dim, one,
                             plain_values<A>{g.dq}, stream);
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
