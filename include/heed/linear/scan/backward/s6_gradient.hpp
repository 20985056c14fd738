// SPDX-License-Identifier: MIT
// The gradient of a block of channels of the selective scan, a chunk of tokens at a time.
//
// Packets hold channels. Four states of a packet run over a chunk's tokens, to its end and back: the
// first way keeps the decays e and what they leave of the state, e h; the second has the gradient H
// of the state in registers. Formulas: naive_s6_backward.hpp.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/linear/scan/backward/s6_block.hpp"
#include "heed/simd/softplus.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class T>
class s6_gradient : public s6_block<T> {
  using base = s6_block<T>;
  using base::each_packet, base::prepare, base::load, base::load_weights, base::gated;
  using base::in_, base::to_, base::blocks_, base::states_, base::chunk_, base::weighted_;
  using base::lanes, base::together, base::row;
  using base::weight_at;
  using typename base::A;
  using typename base::packet;

 public:
  using base::base, base::width;
  using typename base::scratch_type;

  void run(index task, scratch_type& s) const noexcept {
    const channel_block k = blocks_.plan.at(task);
    prepare(task, k, s);
    reverse_chunks(
        blocks_.tokens_of(k), chunk_, s.state, states_ * width, s.kept,
        [&](range t) noexcept {
          load(k, t, s);
          each_packet(k, [&](index first) { advance(t.size(), first, s); });
        },
        [&](range t) noexcept { reverse(k, t, s); });
    each_packet(k, [&](index first) {
      if (!has_data(to_.initial_state)) return;
      A* const to = &to_.initial_state(k.sequence, k.first + first, 0);
      copy_tile(rectangle<const A>{s.back + first * states_, lanes, 1},
                rectangle<A>{to, to_.initial_state.stride(2), to_.initial_state.stride(1)}, states_,
                (std::min)(lanes, k.count - first));
    });
  }

 private:
  /// f(states at once, first of them).
  template <class F>
  void each_states(const F& f) const noexcept {
    index i = 0;
    for (; i + together <= states_; i += together) f(std::integral_constant<int, together>{}, i);
    for (; i < states_; ++i) f(std::integral_constant<int, 1>{}, i);
  }
  /// Whether no exponent of the packet's tokens is positive.
  [[nodiscard]] static bool decaying(index tokens, index first, const scratch_type& s) noexcept {
    return s.stable && !any_positive(s.step + first, row, tokens, lanes, A(-1));
  }

  /// The state after the tokens.
  void advance(index tokens, index first, const scratch_type& s) const noexcept {
    const bool falls = decaying(tokens, first, s);
    each_states([&](auto count, index i) {
      constexpr int n = decltype(count)::value;
      falls ? forward<n, true, false>(tokens, first, i, s)
            : forward<n, false, false>(tokens, first, i, s);
    });
  }

  void reverse(const channel_block& k, range t, const scratch_type& s) const noexcept {
    load(k, t, s);
    load_weights(in_.c, k, t, s.c);
    load_given(in_.d_out, k, t, s.d, row, lanes);
    if (gated()) load_channels(in_.gate, k, t, s.gate, row, lanes);
    each_packet(k, [&](index first) { begin(t.size(), first, s); });
    each_states([&](auto count, index i) {
      constexpr int n = decltype(count)::value;
      std::fill_n(s.db, t.size() * n * lanes, A(0));
      std::fill_n(s.dc, t.size() * n * lanes, A(0));
      each_packet(k, [&](index first) {
        decaying(t.size(), first, s) ? forward<n, true, true>(t.size(), first, i, s)
                                     : forward<n, false, true>(t.size(), first, i, s);
        backward<n>(t.size(), first, i, s);
      });
      if (!weighted_) return;
      for (index at = t.begin; at < t.end; ++at) {
        const index to = weight_at(k.batch, at, k.group) + i;
        const index from = (at - t.begin) * n * lanes;
        for (index j = 0; j < n; ++j) {
          s.sum_b[to + j] = simd::sum(simd::load<A>(s.db + from + j * lanes));
          s.sum_c[to + j] = simd::sum(simd::load<A>(s.dc + from + j * lanes));
        }
      }
    });
    each_packet(k, [&](index first) { finish(t.size(), first, s); });
    store_wanted(s.of_x, row, to_.x, k, t);
    store_wanted(s.of_step, row, to_.dt, k, t);
    store_wanted(s.y, row, to_.gate, k, t);
  }

  /// dy, and zeros for what the states add.
  HEED_NOINLINE void begin(index tokens, index first, const scratch_type& s) const noexcept {
    const packet skip = simd::load<A>(s.skip + first), zero = simd::zero<A>();
    for (index at = first; at < tokens * row; at += row) {
      packet d = simd::load<A>(s.d + at);
      if (gated()) {
        d = simd::mul(d, simd::silu<A>(simd::load<A>(s.gate + at)));
        simd::store(s.y + at, simd::mul(skip, simd::load<A>(s.x + at)));
      }
      simd::store(s.dy + at, d);
      simd::store(s.of_x + at, zero);
      simd::store(s.of_step + at, zero);
    }
  }

  /// So many states of a packet over the tokens; with Keep what their gradients need, and y.
  template <int Count, bool Decaying, bool Keep>
  HEED_NOINLINE void forward(index tokens, index first, index i,
                             const scratch_type& s) const noexcept {
    const packet zero = simd::zero<A>();
    A* const state = s.state + first * states_ + i * lanes;
    const A* const rates = s.rate + first * states_ + i * lanes;
    packet h[std::size_t{Count}], rate[std::size_t{Count}], e[std::size_t{Count}];
    simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA {
      h[j] = simd::load<A>(state + j * lanes);
      rate[j] = simd::load<A>(rates + j * lanes);
    });
    for (index t = 0; t < tokens; ++t) {
      const index at = t * row + first;
      const packet dt = simd::load<A>(s.step + at);
      const packet in = simd::mul(dt, simd::load<A>(s.x + at));
      const A* const b = s.b + t * states_ + i;
      simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA { e[j] = simd::mul(dt, rate[j]); });
      scan_exp<A, Count, Decaying, true>(e);
      simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA {
        const packet old = unless_forgotten(e[j], simd::mul(e[j], h[j]), zero);
        if constexpr (Keep) {
          simd::store(s.e + (t * Count + j) * lanes, e[j]);
          simd::store(s.old + (t * Count + j) * lanes, old);
        }
        h[j] = simd::fmadd(in, simd::broadcast(b[j]), old);
      });
      if (Keep && gated()) {
        packet y = simd::load<A>(s.y + at);
        simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA {
          y = simd::fmadd(h[j], simd::broadcast(s.c[t * states_ + i + j]), y);
        });
        simd::store(s.y + at, y);
      }
    }
    if constexpr (!Keep) {
      simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA { simd::store(state + j * lanes, h[j]); });
    }
  }

  template <int Count>
  HEED_NOINLINE void backward(index tokens, index first, index i,
                              const scratch_type& s) const noexcept {
    const packet zero = simd::zero<A>();
    A* const back = s.back + first * states_ + i * lanes;
    A* const sum_a = s.sum_a + first * states_ + i * lanes;
    const A* const rates = s.a + first * states_ + i * lanes;
    packet g[std::size_t{Count}], a[std::size_t{Count}], da[std::size_t{Count}];
    simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA {
      g[j] = simd::load<A>(back + j * lanes);
      a[j] = simd::load<A>(rates + j * lanes);
      da[j] = zero;
    });
    for (index t = tokens; t-- > 0;) {
      const index at = t * row + first, pairs = t * Count * lanes;
      const A* const b = s.b + t * states_ + i;
      const A* const c = s.c + t * states_ + i;
      const packet dt = simd::load<A>(s.step + at), dy = simd::load<A>(s.dy + at);
      const packet in = simd::mul(dt, simd::load<A>(s.x + at));
      packet of_x = simd::load<A>(s.of_x + at), of_step = simd::load<A>(s.of_step + at);
      simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA {
        const packet e = simd::load<A>(s.e + pairs + j * lanes);
        const packet old = simd::load<A>(s.old + pairs + j * lanes);
        const packet write = simd::broadcast(b[j]);
        A* const db = s.db + pairs + j * lanes;
        A* const dc = s.dc + pairs + j * lanes;
        g[j] = simd::fmadd(dy, simd::broadcast(c[j]), g[j]);
        simd::store(dc, simd::fmadd(dy, simd::fmadd(in, write, old), simd::load<A>(dc)));
        simd::store(db, simd::fmadd(g[j], in, simd::load<A>(db)));
        of_x = simd::fmadd(g[j], write, of_x);
        const packet of_exponent = simd::mul(g[j], old);
        of_step = simd::fmadd(of_exponent, a[j], of_step);
        da[j] = simd::fmadd(of_exponent, dt, da[j]);
        g[j] = unless_forgotten(e, simd::mul(e, g[j]), zero);
      });
      simd::store(s.of_x + at, of_x);
      simd::store(s.of_step + at, of_step);
    }
    simd::unroll<Count>([&](auto j) HEED_INLINE_LAMBDA {
      simd::store(back + j * lanes, g[j]);
      simd::store(sum_a + j * lanes, simd::add(simd::load<A>(sum_a + j * lanes), da[j]));
    });
  }

  /// s.of_x becomes dx, s.of_step d_dt, s.y dz.
  HEED_NOINLINE void finish(index tokens, index first, const scratch_type& s) const noexcept {
    const packet skip = simd::load<A>(s.skip + first);
    packet d_skip = simd::zero<A>(), d_bias = simd::zero<A>();
    for (index at = first; at < tokens * row; at += row) {
      const packet dy = simd::load<A>(s.dy + at), x = simd::load<A>(s.x + at);
      const packet of_x = simd::load<A>(s.of_x + at);
      packet d_step = simd::fmadd(x, of_x, simd::load<A>(s.of_step + at));
      if (in_.softplus) d_step = simd::mul(d_step, sigmoid_packet<A>(simd::load<A>(s.raw + at)));
      simd::store(s.of_x + at, simd::fmadd(simd::load<A>(s.step + at), of_x, simd::mul(dy, skip)));
      simd::store(s.of_step + at, d_step);
      d_skip = simd::fmadd(dy, x, d_skip);
      d_bias = simd::add(d_bias, d_step);
      if (!gated()) continue;
      const packet z = simd::load<A>(s.gate + at);
      const packet dz =
          simd::mul(simd::mul(simd::load<A>(s.d + at), simd::load<A>(s.y + at)), silu_slope<A>(z));
      simd::store(s.y + at, dz);
    }
    simd::store(s.sum_skip + first, simd::add(simd::load<A>(s.sum_skip + first), d_skip));
    simd::store(s.sum_bias + first, simd::add(simd::load<A>(s.sum_bias + first), d_bias));
  }
};

}  // namespace heed::inline HEED_TARGET::detail
