// SPDX-License-Identifier: MIT
// The two products of attention for few queries, channels in the lanes: each row of keys and values
// is read once, as it lies in memory, for all the query rows that share it.
//
//   scores   s[r][j] = q[r].k[j]
//   values   o[r][c] = sum_j p[r][j] v[j][c]
//
// Reading is the work here (1 FLOP a byte and query row): memory must never wait for arithmetic.
// Lines are prefetched a few at a time, evenly among the multiplications, and the exponentials of a
// stretch of keys run right before its values. T is the stored scalar, widened in registers. Each
// stretch of keys is summed from 0, then added to its block's sum.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/row_pointers.hpp"
#include "heed/kernel/split_kv/tuning.hpp"
#include "heed/simd/convert.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// How many rows of `channels` make up `bytes`, at least 4.
template <class T>
[[nodiscard]] constexpr index rows_of(index bytes, index channels) noexcept {
  const index row = channels * static_cast<index>(sizeof(T));
  return row * 4 >= bytes ? 4 : bytes / (row > 0 ? row : 1);
}

/// use(constant<R>): the rows of a register tile for `rows` rows, R of them at the most.
template <int Most, class Use>
HEED_INLINE void in_rows(index rows, const Use& use) noexcept {
  if (rows == 1) return use(std::integral_constant<int, 1>());
  if (rows == 2) return use(std::integral_constant<int, 2>());
  use(std::integral_constant<int, Most>());
}

/// Scores of a tile of `Rows` query rows and the first keys of `k`, written to s[row][key]. As many
/// numbers as the keys have are prefetched from `ahead`.
template <class A, int Rows, class Keys, class Ahead>
HEED_INLINE void split_score_tile(const A* q, index q_stride, const Keys& k, index channels,
                                  Ahead ahead, A* s, index s_stride) noexcept {
  using P = simd::packet<A>;
  using T = typename Keys::scalar;
  constexpr int rows = Rows;
  constexpr int keys = split_plan<A>::pairs_of_tile / Rows;
  constexpr index lanes = split_plan<A>::lanes;
  const T* at[std::size_t{keys}];
  simd::unroll<keys>([&](auto j) HEED_INLINE_LAMBDA { at[j] = k(j); });
  P sum[std::size_t{rows * keys}];
  simd::unroll<rows * keys>([&](auto i) HEED_INLINE_LAMBDA { sum[i] = simd::zero<A>(); });
  index c = 0;
  for (; c + lanes <= channels; c += lanes) {
    ahead.template issue<keys * lanes>();
    P query[std::size_t{rows}];
    simd::unroll<rows>([&](auto r)
                           HEED_INLINE_LAMBDA { query[r] = simd::load(q + r * q_stride + c); });
    simd::unroll<keys>([&](auto j) HEED_INLINE_LAMBDA {
      const P key = simd::load_widened<A>(at[j] + c);
      simd::unroll<rows>([&](auto r) HEED_INLINE_LAMBDA {
        sum[r * keys + j] = simd::fmadd(query[r], key, sum[r * keys + j]);
      });
    });
  }
  A dot[std::size_t{rows * keys}];
  for (index i = 0; i < rows * keys; i += lanes) simd::store(dot + i, simd::sum_each<A>(sum + i));
  for (; c < channels; ++c) {
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < keys; ++j) {
        A& sum_of = dot[r * keys + j];
        sum_of = simd::fmadd_scalar(q[r * q_stride + c], static_cast<A>(at[j][c]), sum_of);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < keys; ++j) s[r * s_stride + j] = dot[r * keys + j];
  }
}

/// Packets x lanes channels, the first of them `channel`, of `Rows` output rows: a stretch's sums,
/// added to `o` unless that is `fresh`. As many numbers as are read are prefetched from `ahead`.
template <class A, int Rows, int Packets, class Values, class Ahead>
HEED_INLINE void split_value_tile(const A* p, index p_stride, const Values& v, index channel,
                                  index keys, Ahead& ahead, bool fresh, A* o,
                                  index o_stride) noexcept {
  using P = simd::packet<A>;
  constexpr index lanes = split_plan<A>::lanes;
  P sum[std::size_t{Rows}][std::size_t{Packets}];
  simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
    simd::unroll<Packets>([&](auto i) HEED_INLINE_LAMBDA { sum[r][i] = simd::zero<A>(); });
  });
  for (index j = 0; j < keys; ++j) {
    ahead.template issue<Packets * lanes>();
    const auto* const row = v(j) + channel;
    P value[std::size_t{Packets}];
    simd::unroll<Packets>(
        [&](auto i) HEED_INLINE_LAMBDA { value[i] = simd::load_widened<A>(row + i * lanes); });
    simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
      const P weight = simd::broadcast(p[r * p_stride + j]);
      simd::unroll<Packets>(
          [&](auto i) HEED_INLINE_LAMBDA { sum[r][i] = simd::fmadd(weight, value[i], sum[r][i]); });
    });
  }
  simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
    simd::unroll<Packets>([&](auto i) HEED_INLINE_LAMBDA {
      A* const at = o + r * o_stride + i * lanes;
      simd::store(at, fresh ? sum[r][i] : simd::add(simd::load(at), sum[r][i]));
    });
  });
}

/// Scores of `rows` query rows (padded) against the first `keys` keys of `k`.
template <class A, class Keys>
HEED_NOINLINE void split_scores(const A* q, index q_stride, index rows, const Keys& k, index keys,
                                index channels, A* s) noexcept {
  using plan = split_plan<A>;
  using T = typename Keys::scalar;
  const index ahead = rows_of<T>(plan::ahead_bytes, channels);
  in_rows<plan::template rows_of_tile<T>>(rows, [&](auto of_tile) HEED_INLINE_LAMBDA {
    constexpr int tile_rows = of_tile();
    constexpr index tile_keys = plan::pairs_of_tile / tile_rows;
    index j = 0;
    for (; j + tile_keys <= keys; j += tile_keys) {
      const Keys key = k.from(j);
      auto next = key.ahead_of(tile_keys, ahead, channels);
      for (index r = 0; r < rows; r += tile_rows, next = key.stay(channels)) {
        split_score_tile<A, tile_rows>(q + r * q_stride, q_stride, key, channels, next,
                                       s + r * plan::keys + j, plan::keys);
      }
    }
    for (; j < keys; ++j) {
      const T* const key = k(j);
      for (index r = 0; r < rows; ++r) {
        auto sum = simd::zero<A>();
        index c = 0;
        for (; c + plan::lanes <= channels; c += plan::lanes) {
          sum = simd::fmadd(simd::load(q + r * q_stride + c), simd::load_widened<A>(key + c), sum);
        }
        A dot = simd::sum(sum);
        for (; c < channels; ++c) {
          dot = simd::fmadd_scalar(q[r * q_stride + c], static_cast<A>(key[c]), dot);
        }
        s[r * plan::keys + j] = dot;
      }
    }
  });
}

/// The row's reference takes in the maximum of its scores, up to split_plan::keys of them; what
/// rescales the row's past is returned. The scores up to whole packets become -inf.
template <class A>
HEED_INLINE A split_maximum(A* s, index count, softmax_state<A>& state) noexcept {
  using plan = split_plan<A>;
  for (index j = count; j < round_up(count, plan::lanes); ++j) s[j] = softmax_state<A>::empty_max;
  auto top = simd::broadcast(softmax_state<A>::empty_max);
  for (index j = 0; j < count; j += plan::lanes) top = (simd::max)(top, simd::load(s + j));
  return state.raise(simd::largest(top));
}

/// Scores of `Rows` rows x `Packets` packets of keys become probabilities, and are added to the
/// rows' sums.
template <class A, int Rows, int Packets>
HEED_INLINE void split_weight_tile(A* s, const simd::packet<A>* shift,
                                   simd::packet<A>* sum) noexcept {
  using plan = split_plan<A>;
  simd::packet<A> e[std::size_t{Rows * Packets}];
  simd::unroll<Rows * Packets>([&](auto i) HEED_INLINE_LAMBDA {
    constexpr int r = i / Packets;
    e[i] = simd::sub(simd::load(s + r * plan::keys + i % Packets * plan::lanes), shift[r]);
  });
  simd::exp_nonpositive<A, Rows * Packets>(e);
  simd::unroll<Rows * Packets>([&](auto i) HEED_INLINE_LAMBDA {
    constexpr int r = i / Packets;
    simd::store(s + r * plan::keys + i % Packets * plan::lanes, e[i]);
    sum[r] = simd::add(sum[r], e[i]);
  });
}

/// Scores of `Rows` rows against a stretch of `count` keys become probabilities not yet divided by
/// their sum, relative to the maxima in `state`; each row's sum takes them in.
template <int Rows, class A>
HEED_INLINE void split_weights(A* s, index count, softmax_state<A>* state) noexcept {
  using plan = split_plan<A>;
  using P = simd::packet<A>;
  constexpr int packets = plan::tile_rows / Rows;
  constexpr index step = packets * plan::lanes;
  P shift[std::size_t{Rows}];
  P sum[std::size_t{Rows}];
  simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
    const A max = state[r].max;
    shift[r] = simd::broadcast(max == softmax_state<A>::empty_max ? A(0) : max);
    sum[r] = simd::zero<A>();
  });
  index j = 0;
  for (; j + step <= round_up(count, plan::lanes); j += step) {
    split_weight_tile<A, Rows, packets>(s + j, shift, sum);
  }
  for (; j < count; j += plan::lanes) split_weight_tile<A, Rows, 1>(s + j, shift, sum);
  simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA { state[r].add(simd::sum(sum[r])); });
}

/// Keys of a stretch, whose weights are summed at a time, for a register tile of so many rows: one
/// chain of sums at the most.
template <class A, class T>
[[nodiscard]] constexpr index stretch_rows(index tile_rows, index channels) noexcept {
  using plan = split_plan<A>;
  const index bytes = plan::stretch_bytes * plan::tile_rows / tile_rows;
  return (std::min)(round_up(rows_of<T>(bytes, channels), plan::lanes), keys_of_chain);
}

/// o = p v, or o += p v where `o` is not `fresh`, for `rows` rows (padded) and any number of channels
/// (o's rows padded to whole packets). `exp_and_sum(rows of a tile, r, j, n)` is called before
/// p[r .. r + rows of a tile)[j .. j + n) is read.
template <class A, class Values, class ExpAndSum>
HEED_NOINLINE void split_values(const A* p, index rows, const Values& v, index keys, index channels,
                                bool fresh, A* o, index o_stride,
                                ExpAndSum&& exp_and_sum) noexcept {
  using plan = split_plan<A>;
  using T = typename Values::scalar;
  const index ahead = rows_of<T>(plan::ahead_bytes, channels);
  in_rows<plan::tile_rows>(rows, [&](auto of_tile) HEED_INLINE_LAMBDA {
    constexpr int tile_rows = of_tile();
    const index stretch = stretch_rows<A, T>(tile_rows, channels);
    for (index first = 0; first < keys; first += stretch) {
      const index count = keys - first < stretch ? keys - first : stretch;
      const Values at = v.from(first);
      auto next = at.ahead_of(count, ahead, channels);
      for (index r = 0; r < rows; r += tile_rows, next = at.stay(channels)) {
        exp_and_sum(of_tile, r, first, count);
        const A* const weight = p + r * plan::keys + first;
        const bool begins = fresh && first == 0;
        A* const out = o + r * o_stride;
        index c = 0;
        constexpr index step = plan::value_packets * plan::lanes;
        for (; c + step <= channels; c += step) {
          split_value_tile<A, tile_rows, plan::value_packets>(weight, plan::keys, at, c, count,
                                                              next, begins, out + c, o_stride);
        }
        for (; c + plan::lanes <= channels; c += plan::lanes) {
          split_value_tile<A, tile_rows, 1>(weight, plan::keys, at, c, count, next, begins, out + c,
                                            o_stride);
        }
        for (; c < channels; ++c) {
          for (index i = 0; i < tile_rows; ++i) {
            A sum = A(0);
            for (index j = 0; j < count; ++j) {
              sum = simd::fmadd_scalar(weight[i * plan::keys + j], static_cast<A>(at(j)[c]), sum);
            }
            A& to = out[i * o_stride + c];
            to = begins ? sum : to + sum;
          }
        }
      }
    }
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
