// SPDX-License-Identifier: MIT
// RWKV-4's two sums of a few packets of channels, over a tile of tokens.
//
//   a e^r = sum_j e^(k_j + (t - j) w) v_j,   b e^r the sum of the weights,   p their largest's log
//
// The reference r follows the running maximum p late: while p stays within 8 of it, w < 0 is the
// only decay, the same factor every token, and the sums are compensated (compensated_decay.hpp).
// Where p goes far it becomes p: the past is e^8 times lighter by then, or nothing yet, so that its
// rounding does not accumulate. A tile in which p moves by 40 or more goes token by token, r = p.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/linear/channel_blocks.hpp"
#include "heed/linear/scan/channel_lines.hpp"
#include "heed/linear/scan/compensated_decay.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class A>
struct rwkv4_sums {
  using packet = simd::packet<A>;
  static constexpr int packets = 2;
  static constexpr index unit = packets * simd::lanes<A>;
  static constexpr index width = scan_packets * simd::lanes<A>;
  /// Rows of `width` numbers each: those of the state first, then the parameters w and u.
  enum row : index {
    sum_v,
    sum_1,
    running,
    low_v,
    low_1,
    reference,
    state_rows,
    rate = state_rows,
    extra,
    all_rows
  };

  A* rows;
  const A* keys;  // of a tile, a token every `width` numbers
  A* values;      // likewise; outputs take their place

  void copy_state(A* to) const noexcept {
    for (index r = 0; r < state_rows; ++r) std::copy_n(rows + r * width, unit, to + r * unit);
  }
  void restore_state(const A* from) const noexcept {
    for (index r = 0; r < state_rows; ++r) std::copy_n(from + r * unit, unit, rows + r * width);
  }

  /// The sums of a packet relative to its running maximum.
  static void refer_to_maximum(A* rows) noexcept {
    const auto at = [&](row r) { return simd::load<A>(rows + r * width); };
    // Nothing seen has no maximum.
    const packet p = at(running), r = at(reference);
    const packet finite = (simd::max)(p, simd::broadcast(std::numeric_limits<A>::lowest()));
    const packet scale = simd::select(simd::equal(p, r), simd::broadcast(A(1)),
                                      simd::exp_nonpositive<A>(simd::sub(r, finite)));
    simd::store(rows + sum_v * width, simd::mul(at(sum_v), scale));
    simd::store(rows + sum_1 * width, simd::mul(at(sum_1), scale));
    simd::store(rows + low_v * width, simd::zero<A>());
    simd::store(rows + low_1 * width, simd::zero<A>());
    simd::store(rows + reference * width, p);
  }

  /// Whether one reference serves all of a tile's tokens: then it is that of the state, which
  /// moves only where the running maximum goes far from it.
  [[nodiscard]] bool settle_reference(index tokens) const noexcept {
    if (tokens < fewest_tokens) return false;
    constexpr index w = simd::lanes<A>;
    const packet one = simd::broadcast(A(1)), fall = simd::broadcast(largest_fall);
    const packet move = simd::broadcast(largest_move);
    packet last[std::size_t{packets}], settled[std::size_t{packets}], scale[std::size_t{packets}];
    packet fits = one;
    simd::unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      const auto at = [&](row r) { return simd::load<A>(rows + r * width + i * w); };
      const packet rate_i = at(rate), r = at(reference);
      packet p = at(running), high = simd::broadcast(std::numeric_limits<A>::lowest()), low = high;
      for (index t = 0; t < tokens; ++t) {
        p = (simd::max)(simd::add(p, rate_i), simd::load<A>(keys + t * width + i * w));
        high = (simd::max)(high, p);
        low = (simd::max)(low, simd::sub(simd::zero<A>(), p));
      }
      const packet stays =
          simd::both(simd::less(simd::sub(high, r), fall), simd::less(simd::add(r, low), fall));
      last[i] = p;
      settled[i] = simd::select(stays, r, high);
      scale[i] = simd::exp_nonpositive<A>(simd::sub(r, settled[i]));
      const packet within = simd::both(simd::less(simd::add(high, low), move),
                                       simd::less(simd::sub(r, settled[i]), move));
      const packet bonus_fits = simd::less(simd::abs(at(extra)), simd::broadcast(largest_bonus));
      // A sum that is no number stays none.
      const packet number = simd::equal(at(sum_v), at(sum_v));
      fits = simd::both(fits,
                        simd::select(number, simd::both(simd::both(within, bonus_fits), one), one));
    });
    if (!(simd::sum(fits) == static_cast<A>(w))) return false;
    simd::unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      for (const row r : {sum_v, sum_1, low_v, low_1}) {
        A* const at = rows + r * width + i * w;
        simd::store(at, simd::mul(simd::load<A>(at), scale[i]));
      }
      simd::store(rows + running * width + i * w, last[i]);
      simd::store(rows + reference * width + i * w, settled[i]);
    });
    return true;
  }

  /// Tokens whose weights are all relative to the reference: one exponential each, and the decay is
  /// the same number every time.
  HEED_NOINLINE void run_settled(index tokens, channel_lines& next) const noexcept {
    using simd::unroll;
    constexpr index lane_count = simd::lanes<A>;
    constexpr auto n = std::size_t{packets};
    packet a[n], b[n], low_a[n], low_b[n], r[n], factor[n], near_one[n], bonus_weight[n];
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      const auto at = [&](row x) { return simd::load<A>(rows + x * width + i * lane_count); };
      a[i] = at(sum_v), b[i] = at(sum_1), low_a[i] = at(low_v), low_b[i] = at(low_1);
      r[i] = at(reference), bonus_weight[i] = at(extra);
      decay_factor(at(rate), factor[i], near_one[i]);
    });
    simd::exp_nonpositive<A, packets>(bonus_weight);
    for (index t = 0; t < tokens; ++t) {
      A* const out = values + t * width;
      packet weight[n];
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
        weight[i] = simd::sub(simd::load<A>(keys + t * width + i * lane_count), r[i]);
      });
      simd::exp_nonpositive<A, packets>(weight);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
        const packet value = simd::load<A>(out + i * lane_count);
        const packet own = simd::mul(weight[i], bonus_weight[i]);
        const packet den = simd::add(b[i], own);
        const packet mean = simd::div(simd::fmadd(own, value, a[i]), den);
        const packet none = simd::equal(den, simd::zero<A>());
        simd::store(out + i * lane_count, simd::select(none, simd::zero<A>(), mean));
        add_compensated_token(factor[i], simd::both(near_one[i], a[i]), a[i], low_a[i],
                              simd::fmadd(weight[i], value, low_a[i]));
        add_compensated_token(factor[i], simd::both(near_one[i], b[i]), b[i], low_b[i],
                              simd::add(weight[i], low_b[i]));
      });
      next.issue();
    }
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      A* const at = rows + i * lane_count;
      simd::store(at + sum_v * width, a[i]);
      simd::store(at + sum_1 * width, b[i]);
      simd::store(at + low_v * width, low_a[i]);
      simd::store(at + low_1 * width, low_b[i]);
    });
  }

  /// Any tokens, by the formulas on top: the running maximum is the reference.
  HEED_NOINLINE void run(index tokens, channel_lines& next) const noexcept {
    using simd::unroll;
    constexpr index lane_count = simd::lanes<A>;
    const auto load = [](const A* from, packet* to) HEED_INLINE_LAMBDA {
      unroll<packets>([&](auto p)
                          HEED_INLINE_LAMBDA { to[p] = simd::load<A>(from + p * lane_count); });
    };
    constexpr auto n = std::size_t{packets};
    packet a[n], b[n], p[n], w[n], u[n], key[n], old[n], own[n], m[n], x[n], y[n];
    load(rows + sum_v * width, a);
    load(rows + sum_1 * width, b);
    load(rows + running * width, p);
    load(rows + rate * width, w);
    load(rows + extra * width, u);
    for (index t = 0; t < tokens; ++t) {
      A* const out = values + t * width;
      load(keys + t * width, key);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { x[i] = simd::add(u[i], key[i]); });
      online_weights(p, x, old, own, m);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA { y[i] = simd::add(p[i], w[i]); });
      packet older[n], newer[n];
      online_weights(y, key, older, newer, p);
      unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
        const packet value = simd::load<A>(out + i * lane_count);
        const packet den = simd::fmadd(old[i], b[i], own[i]);
        const packet num = simd::fmadd(old[i], a[i], simd::mul(own[i], value));
        const packet mean = simd::div(num, den);
        const packet none = simd::equal(den, simd::zero<A>());
        simd::store(out + i * lane_count, simd::select(none, simd::zero<A>(), mean));
        a[i] = simd::fmadd(older[i], a[i], simd::mul(newer[i], value));
        b[i] = simd::fmadd(older[i], b[i], newer[i]);
      });
      next.issue();
    }
    unroll<packets>([&](auto i) HEED_INLINE_LAMBDA {
      simd::store(rows + sum_v * width + i * lane_count, a[i]);
      simd::store(rows + sum_1 * width + i * lane_count, b[i]);
      for (const row r : {running, reference}) {
        simd::store(rows + r * width + i * lane_count, p[i]);
      }
    });
  }

  /// One packet of a segment's own sums joins those before its `tokens`.
  static void join(const A* before, A tokens, A* rows) noexcept {
    const packet most = simd::broadcast(largest_fall);
    const auto old = [&](row r) { return simd::load<A>(before + r * width); };
    const auto own = [&](row r) { return simd::load<A>(rows + r * width); };
    const packet gate = simd::mul(simd::broadcast(tokens), own(rate));
    const packet p = (simd::max)(simd::add(old(running), gate), own(running));
    // The reference stays while it can: a sum of it and gates would round.
    const packet r = old(reference);
    const packet within = simd::both(simd::less(simd::sub(own(reference), r), most),
                                     simd::less(simd::sub(r, p), most));
    const packet later = (simd::max)((simd::max)(simd::add(r, gate), own(reference)),
                                     simd::broadcast(std::numeric_limits<A>::lowest()));
    const packet m = simd::select(within, r, later);
    const packet scale = simd::exp_nonpositive<A>(simd::sub(own(reference), m));
    const packet decay = simd::select(within, gate, simd::sub(simd::add(r, gate), m));
    for (const row sum : {sum_v, sum_1}) {
      const row low = sum == sum_v ? low_v : low_1;
      for (const row each : {sum, low}) {
        simd::store(rows + each * width, simd::mul(own(each), scale));
      }
      join_decayed<A, false>(before + sum * width, before + low * width, decay, rows + sum * width,
                             rows + low * width);
    }
    simd::store(rows + running * width, p);
    simd::store(rows + reference * width, m);
  }

 private:
  /// A tile of fewer tokens is not worth settling.
  static constexpr index fewest_tokens = 4;
  /// How far the running maximum may lie from the reference, and move within a tile; and what of
  /// the bonus its exponential's range allows.
  static constexpr A largest_fall = A(8), largest_move = A(40), largest_bonus = A(20);

  /// exp(w) - 1 and all bits for a decay near 1; exp(w) and none elsewhere.
  HEED_INLINE static void decay_factor(const packet& w, packet& factor, packet& near_one) noexcept {
    factor = simd::exp_nonpositive<A>(w);
    near_one = simd::zero<A>();
    if constexpr (compensates<A>) {
      packet less_one[1] = {(simd::max)(w, simd::broadcast(A(-1)))};
      simd::expm1_near_zero<1, false>(less_one);
      near_one = simd::less(simd::broadcast(A(-0.69)), w);
      factor = simd::select(near_one, less_one[0], factor);
    }
  }

  /// The exponentials of x and y less their maximum, which is returned.
  HEED_INLINE static void online_weights(const packet* x, const packet* y, packet* ex, packet* ey,
                                         packet* m) noexcept {
    // Not below the lowest number, so that two infinities do not make a NaN.
    const packet lowest = simd::broadcast(std::numeric_limits<A>::lowest());
    packet e[std::size_t{2 * packets}];
    simd::unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
      m[p] = (simd::max)((simd::max)(x[p], y[p]), lowest);
      e[p] = simd::sub(x[p], m[p]);
      e[packets + p] = simd::sub(y[p], m[p]);
    });
    simd::exp_nonpositive<A, 2 * packets>(e);
    simd::unroll<packets>([&](auto p) HEED_INLINE_LAMBDA {
      ex[p] = e[p];
      ey[p] = e[packets + p];
    });
  }
};

}  // namespace heed::inline HEED_TARGET::detail
