// SPDX-License-Identifier: MIT
// The two products of attention on registers: scores of a block of keys, and their values' sum.
//
//   scores   s[j][i] = sum_c k[j][c] q[c][i]          j: Keys rows, i: Packets packets of queries
//   values   o[c][i] = w[i] o[c][i] + (sum_j v[j][c] p[j][i])
//
// q, s, p and o are held transposed, queries consecutive, `tile_plan::group` apart; k and v are
// read as they lie, one broadcast number at a time, so that neither is ever packed. 2 FLOPs a term.
// Sums are in the accumulator type: a score's over its channels in their order, those over keys in
// chains of `keys_of_chain` keys from 0, a block's chains added to the past with a compensation term.
#pragma once

#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/prefetch_stream.hpp"
#include "heed/kernel/tiled/tuning.hpp"
#include "heed/simd/exponential.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Scores of `Keys` keys; `maximum` takes in what they reach.
template <class A, int Keys, int Packets>
HEED_INLINE void score_register_tile(const A* q, const A* k, index k_stride, index channels, A* s,
                                     simd::packet<A>* maximum) noexcept {
  using simd::unroll;
  using P = simd::packet<A>;
  constexpr index lanes = tile_plan<A>::lanes;
  constexpr index group = tile_plan<A>::group;
  P sum[std::size_t{Keys}][std::size_t{Packets}];
  const A* row[std::size_t{Keys}];
  unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
    row[j] = k + j * k_stride;
    unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA { sum[j][p] = simd::zero<A>(); });
  });
  for (index c = 0; c < channels; ++c) {
    P query[std::size_t{Packets}];
    unroll<Packets>(
        [&](auto p) HEED_INLINE_LAMBDA { query[p] = simd::load_once(q + c * group + p * lanes); });
    unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
      const P key = simd::load_broadcast(row[j] + c);
      unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
        sum[j][p] = simd::fmadd(key, query[p], sum[j][p]);
        simd::order_after(c, sum[j][p]);
      });
    });
  }
  unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
    P m = maximum[p];
    unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
      simd::store(s + j * group + p * lanes, sum[j][p]);
      m = (simd::max)(m, sum[j][p]);
    });
    maximum[p] = m;
  });
}

/// The running sums of a query tile: [channels][group], and what rounding has taken from them.
template <class A>
struct running_values {
  A* sum;
  A* lost;

  [[nodiscard]] running_values from(index n) const noexcept { return {sum + n, lost + n}; }

  /// sum = rescale sum + part for the lanes at n.
  HEED_INLINE void add(index n, const simd::packet<A>& rescale,
                       const simd::packet<A>& part) const noexcept {
    auto past = simd::load(sum + n);
    auto rest = simd::load(lost + n);
    add_to_past(past, rest, rescale, part);
    simd::store(sum + n, past);
    simd::store(lost + n, rest);
  }
};

/// Running sums without the compensation, where few blocks are added: `sum` as above.
template <class A>
struct plain_values {
  A* sum;

  [[nodiscard]] plain_values from(index n) const noexcept { return {sum + n}; }

  HEED_INLINE void add(index n, const simd::packet<A>& rescale,
                       const simd::packet<A>& part) const noexcept {
    simd::store(sum + n, simd::fmadd(simd::load(sum + n), rescale, part));
  }
};

/// f(begin, end) for each part of [0, keys) that ends where a chain of `Size` keys does, counted from
/// the block's first key; [0, keys) begins at its key `first`.
template <index Size, class F>
HEED_INLINE void in_chains(index first, index keys, F&& f) noexcept {
  for (index begin = 0; begin < keys;) {
    const index rest = Size - (first + begin) % Size;
    const index end = rest < keys - begin ? begin + rest : keys;
    f(begin, end);
    begin = end;
  }
}

/// Chains of keys, each summed from 0, join each other, and at the block's end the past:
/// `chain(sum, begin, end)` sums one.
template <class A, int Channels, int Packets, index Size, class Values, class Chain>
HEED_INLINE void join_chains(index first, index keys, const simd::packet<A>* rescale,
                             const Values& out, Chain&& chain) noexcept {
  using simd::unroll;
  using P = simd::packet<A>;
  P part[std::size_t{Channels}][std::size_t{Packets}];
  const auto each = [](auto&& f) HEED_INLINE_LAMBDA {
    unroll<Channels>([&](auto c) HEED_INLINE_LAMBDA {
      unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA { f(c, r); });
    });
  };
  in_chains<Size>(first, keys, [&](index begin, index end) HEED_INLINE_LAMBDA {
    P sum[std::size_t{Channels}][std::size_t{Packets}];
    chain(sum, begin, end);
    if (begin > 0) {
      each([&](auto c, auto r)
               HEED_INLINE_LAMBDA { sum[c][r] = simd::add(part[c][r], sum[c][r]); });
    }
    if (end < keys) {
      each([&](auto c, auto r) HEED_INLINE_LAMBDA { part[c][r] = sum[c][r]; });
    } else {
      each([&](auto c, auto r) HEED_INLINE_LAMBDA {
        out.add(c * tile_plan<A>::group + r * tile_plan<A>::lanes, rescale[r], sum[c][r]);
      });
    }
  });
}

/// `Channels` channels of the output.
template <class A, int Channels, int Packets, class Values>
HEED_INLINE void value_register_tile(const A* p, const A* v, index v_stride, index first,
                                     index keys, const simd::packet<A>* rescale,
                                     const Values& out) noexcept {
  using simd::unroll;
  using P = simd::packet<A>;
  constexpr index lanes = tile_plan<A>::lanes;
  constexpr index group = tile_plan<A>::group;
  join_chains<A, Channels, Packets, keys_of_chain>(
      first, keys, rescale, out, [&](auto& sum, index begin, index end) HEED_INLINE_LAMBDA {
        const auto key = [&](index j, auto&& term) HEED_INLINE_LAMBDA {
          P weight[std::size_t{Packets}];
          unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA {
            weight[r] = simd::load_once(p + j * group + r * lanes);
          });
          const A* row = v + j * v_stride;
          unroll<Channels>([&](auto c) HEED_INLINE_LAMBDA {
            const P value = simd::load_broadcast(row + c);
            unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA { term(sum[c][r], value, weight[r]); });
          });
        };
        key(begin, [](P& to, const P& x, const P& y) HEED_INLINE_LAMBDA { to = simd::mul(x, y); });
        for (index j = begin + 1; j < end; ++j) {
          key(j,
              [](P& to, const P& x, const P& y) HEED_INLINE_LAMBDA { to = simd::fmadd(x, y, to); });
        }
      });
}

/// Calls f(integral_constant step, at) over [0, count) in the widest steps of Step, Step/2, ... 1.
template <int Step, class F>
HEED_INLINE void in_steps(index count, F&& f) noexcept {
  index at = 0;
  for (; at + Step <= count; at += Step) f(std::integral_constant<int, Step>{}, at);
  if constexpr (Step > 1) {
    if (at < count) {
      in_steps<Step / 2>(count - at, [&](auto step, index i) { f(step, at + i); });
    }
  }
}

/// f(integral_constant) of the fewest packets that hold `rows` rows of a group. What depends on
/// their number is compiled so often, but for all modifiers once.
template <class A, class F>
HEED_INLINE void in_packets(index rows, F&& f) noexcept {
  switch (ceil_div(rows, tile_plan<A>::lanes)) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    default:
      return f(std::integral_constant<int, 3>{});
  }
}

/// Scores of any number of keys; `stream` is prefetched on the way.
template <class A, int Packets>
HEED_NOINLINE void score_tile(const A* q, const A* k, index k_stride, index channels, index keys,
                              A* s, simd::packet<A>* maximum, prefetch_stream& stream) noexcept {
  constexpr index group = tile_plan<A>::group;
  in_steps<static_cast<int>(tile_plan<A>::key_step)>(keys, [&](auto step, index j) {
    stream.issue();
    score_register_tile<A, decltype(step)::value, Packets>(q, k + j * k_stride, k_stride, channels,
                                                           s + j * group, maximum);
  });
}

/// Any number of channels of the output; `stream` is prefetched on the way. The keys begin at the
/// block's key `first`.
template <class A, int Packets, class Values>
HEED_NOINLINE void value_tile(const A* p, const A* v, index v_stride, index first, index keys,
                              index channels, const simd::packet<A>* rescale, const Values& out,
                              prefetch_stream& stream) noexcept {
  constexpr index group = tile_plan<A>::group;
  in_steps<static_cast<int>(tile_plan<A>::key_step)>(channels, [&](auto step, index c) {
    stream.issue();
    value_register_tile<A, decltype(step)::value, Packets>(p, v + c, v_stride, first, keys, rescale,
                                                           out.from(c * group));
  });
}

/// Scores become probabilities, not yet divided by their sum: p = exp(s - shift), and `sum` that of
/// the tile's p. The keys begin at the block's key `first`.
template <class A, int Packets>
HEED_NOINLINE void exponential_tile(A* s, index first, index keys, const simd::packet<A>* shift,
                                    simd::packet<A>* sum) noexcept {
  using P = simd::packet<A>;
  constexpr index lanes = tile_plan<A>::lanes;
  constexpr index group = tile_plan<A>::group;
  constexpr index step_keys = tile_plan<A>::exponential_step;
  simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA { sum[p] = simd::zero<A>(); });
  in_chains<16 * step_keys>(first, keys, [&](index begin, index end) HEED_INLINE_LAMBDA {
    P chain[std::size_t{Packets}];
    simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA { chain[p] = simd::zero<A>(); });
    in_steps<tile_plan<A>::exponential_step>(
        end - begin, [&](auto step, index j) HEED_INLINE_LAMBDA {
          constexpr int count = decltype(step)::value * Packets;
          A* const at = s + (begin + j) * group;
          P e[std::size_t{count}];
          simd::unroll<count>([&](auto i) HEED_INLINE_LAMBDA {
            e[i] = simd::sub(simd::load(at + i / Packets * group + i % Packets * lanes),
                             shift[i % Packets]);
          });
          simd::exp_nonpositive<A, count>(e);
          simd::unroll<count>([&](auto i) HEED_INLINE_LAMBDA {
            chain[i % Packets] = simd::add(chain[i % Packets], e[i]);
            simd::store(at + i / Packets * group + i % Packets * lanes, e[i]);
          });
        });
    simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA { sum[p] = simd::add(sum[p], chain[p]); });
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
