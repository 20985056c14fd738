// SPDX-License-Identifier: MIT
// The states of one packet of channels of the selective scan, over a tile of tokens.
//
//   h[n] = 2^(dt a[n]) h[n] + dt x B[n],    y = sum_n C[n] h[n]           a: times log2 e
//
// Four states stay in registers over a whole tile. Sums are compensated (compensated_decay.hpp) but
// where one is infinite or grows.
#pragma once

#include <cstddef>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/linear/scan/channel_lines.hpp"
#include "heed/linear/scan/compensated_decay.hpp"

namespace heed::inline HEED_TARGET::detail {

/// One row a token: the tensor's own where it can be read as packets, or a copy.
template <class A>
struct scan_rows {
  const A* data = nullptr;
  index stride = 0;
};
template <class A>
struct selective_rows {
  scan_rows<A> x, step, gate, b, c;
};

template <class A>
struct selective_states {
  A* h;
  A* low;
  const A* a;
  index states;
  A* y;  // rows y_stride apart, left with the sums over the states
  index y_stride;
  bool finite_writes;  // no B is infinite

  void run(index tokens, const selective_rows<A>& from, channel_lines& next) const noexcept {
    constexpr int together = 4;
    time_steps steps;
    for (index t = 0; t < tokens; ++t) {
      const packet dt = simd::load<A>(from.step.data + t * from.step.stride);
      steps.none = simd::fmadd(simd::load<A>(from.x.data + t * from.x.stride), simd::zero<A>(),
                               simd::fmadd(dt, simd::zero<A>(), steps.none));
      steps.most = (simd::max)(steps.most, dt);
      steps.least = (simd::max)(steps.least, simd::sub(simd::zero<A>(), dt));
    }
    index i = 0;
    for (; i + together <= states; i += together) {
      advance<together>(i, tokens, from, steps, next);
    }
    for (; i < states; ++i) advance<1>(i, tokens, from, steps, next);
    if (states == 0) {
      for (index t = 0; t < tokens; ++t) simd::store(y + t * y_stride, simd::zero<A>());
    }
  }

 private:
  using packet = simd::packet<A>;
  static constexpr index lanes = simd::lanes<A>;

  /// Of a tile: the longest, the shortest times -1; and 0, or a NaN where x or a step is not finite.
  struct time_steps {
    packet most = simd::broadcast(std::numeric_limits<A>::lowest());
    packet least = simd::broadcast(std::numeric_limits<A>::lowest());
    packet none = simd::zero<A>();
  };

  /// Which way so many states go.
  template <int Count>
  [[nodiscard]] decay_way way_of_states(index first, const time_steps& steps) const noexcept {
    const packet infinity = simd::broadcast(std::numeric_limits<A>::infinity());
    packet fast = simd::broadcast(std::numeric_limits<A>::lowest()), slow = fast;
    bool finite = finite_writes && simd::sum(steps.none) == A(0);
    simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA {
      const packet rate = simd::load<A>(a + (first + i) * lanes);
      fast = (simd::max)(fast, simd::sub(simd::zero<A>(), rate));
      slow = (simd::max)(slow, rate);
      const packet sum = simd::abs(simd::load<A>(h + (first + i) * lanes));
      finite = finite && !simd::any(simd::equal(sum, infinity));
    });
    if (!finite) return decay_way::growing;
    // Gates lie between products of the extremes.
    const packet longest = simd::mul(steps.most, simd::broadcast(A(0.69314718055994531)));
    const packet shortest = simd::mul(steps.least, simd::broadcast(A(-0.69314718055994531)));
    const packet rates[2] = {slow, simd::sub(simd::zero<A>(), fast)};
    fast = slow = simd::broadcast(std::numeric_limits<A>::lowest());
    for (const packet& rate : rates) {
      for (const packet& gate : {simd::mul(longest, rate), simd::mul(shortest, rate)}) {
        fast = (simd::max)(fast, simd::sub(simd::zero<A>(), gate));
        slow = (simd::max)(slow, gate);
      }
    }
    return way_of<A>(fast, slow);
  }

  template <int Count>
  void advance(index first, index tokens, const selective_rows<A>& from, const time_steps& steps,
               channel_lines& next) const noexcept {
    const decay_way way = way_of_states<Count>(first, steps);
    if (way == decay_way::growing) {
      return advance<Count, decay_way::growing>(first, tokens, from, next);
    }
    if constexpr (compensates<A>) {
      if (way == decay_way::near_one) {
        return advance<Count, decay_way::near_one>(first, tokens, from, next);
      }
      if (way == decay_way::mixed) {
        return advance<Count, decay_way::mixed>(first, tokens, from, next);
      }
    }
    advance<Count, decay_way::forgetting>(first, tokens, from, next);
  }

  /// So many states, in registers from the tile's first token to its last.
  template <int Count, decay_way Way>
  HEED_NOINLINE void advance(index first, index tokens, const selective_rows<A>& from,
                             channel_lines& next) const noexcept {
    constexpr bool plain = Way == decay_way::growing || Way == decay_way::forgetting;
    packet sum[std::size_t{Count}];
    packet lost[std::size_t{Count}];
    packet rate[std::size_t{Count}];
    simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA {
      sum[i] = simd::load<A>(h + (first + i) * lanes);
      lost[i] = plain ? simd::zero<A>() : simd::load<A>(low + (first + i) * lanes);
      rate[i] = simd::load<A>(a + (first + i) * lanes);
    });
    scan_rows<A> in_rows = from.x, steps = from.step, writes = from.b, reads = from.c;
    writes.data += first;
    reads.data += first;
    A* y_row = y;
    for (index t = 0; t < tokens; ++t) {
      const packet dt_t = simd::load<A>(steps.data);
      packet gate[std::size_t{Count}];
      simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA { gate[i] = simd::mul(dt_t, rate[i]); });
      const packet in = simd::mul(dt_t, simd::load<A>(in_rows.data));
      packet read = first == 0 ? simd::zero<A>() : simd::load<A>(y_row);
      const auto read_state = [&](auto i) HEED_INLINE_LAMBDA {
        read = simd::fmadd(sum[i], simd::broadcast(reads.data[i]), read);
      };
      if constexpr (plain) {
        scan_exp<A, Count, Way == decay_way::forgetting, true>(gate);
        simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA {
          const packet term = simd::mul(in, simd::broadcast(writes.data[i]));
          sum[i] = simd::fmadd(gate[i], sum[i], term);
          read_state(i);
        });
      } else {
        const decay_step<Count, true, Way> step(gate);
        simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA {
          step.advance(i, sum[i], lost[i],
                       simd::fmadd(in, simd::broadcast(writes.data[i]), step.kept(i, lost[i])));
          read_state(i);
        });
      }
      simd::store(y_row, read);
      if (first == 0) next.issue();
      steps.data += steps.stride;
      in_rows.data += in_rows.stride;
      writes.data += writes.stride;
      reads.data += reads.stride;
      y_row += y_stride;
    }
    simd::unroll<Count>([&](auto i) HEED_INLINE_LAMBDA {
      simd::store(h + (first + i) * lanes, sum[i]);
      simd::store(low + (first + i) * lanes, lost[i]);
    });
  }
};

}  // namespace heed::inline HEED_TARGET::detail
