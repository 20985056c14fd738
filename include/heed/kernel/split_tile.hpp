// SPDX-License-Identifier: MIT
// The two products of attention for few queries, channels in the lanes: each row of keys and values
// is read once, as it lies in memory, for all the query rows that share it.
//
//   scores   s[r][j] = q[r].k[j]
//   values   o[r][c] = w[r] o[r][c] + sum_j p[r][j] v[j][c]
//
// Reading is the work here (1 FLOP a byte and query row): memory must never wait for arithmetic.
// Lines ahead are asked for a few at a time, evenly among the multiplications, and the exponentials
// of a stretch of keys stand right before its values. T is the stored scalar, widened in registers.
#pragma once

#include <type_traits>

#include "heed/kernel/softmax_state.hpp"
#include "heed/simd/convert.hpp"

namespace heed {

/// The sizes of the few-query kernel: the one place that knows them.
template <class A>
struct split_plan {
  static constexpr index lanes = simd::lanes<A>;
  /// Keys whose scores are held at once: long runs of rows of one kind, which is what the memory's
  /// own prefetching wants.
  static constexpr index keys = 512;
  /// Rows are asked for so many bytes ahead.
  static constexpr index ahead_bytes = 8192;
  /// Values are read in stretches of about so many bytes, which stay in the first-level cache while
  /// all rows and channels are summed.
  static constexpr index stretch_bytes = 4096;
  /// Keys of a task. Splits start at multiples of it, whatever the threads.
  static constexpr index split = 2048;
  /// Register tile of the scores, a sum each for its (row, key) pairs, in whole packets of pairs:
  /// numbers that must be widened are so once for as many rows as commonly share them; others may
  /// as well be read twice, and memory gives more from four rows side by side than from two.
  template <class T>
  static constexpr int rows_of_tile = lanes >= 16 || !std::is_same_v<T, A> ? 4 : 2;
  template <class T>
  static constexpr int keys_of_tile = lanes >= 16 || std::is_same_v<T, A> ? 4 : 2;
  /// Rows of queries are padded to multiples of this.
  static constexpr int tile_rows = 4;
  /// Register tile of the values: rows x packets of channels.
  static constexpr int value_rows = 4;
  static constexpr int value_packets = simd::vector_registers == 32 ? 4 : 2;
  /// Keys a partly masked block is classified by.
  static constexpr index mask_step = 32;
  /// Fewest queries a head for which the tiled kernel, queries in the lanes, does less work.
  static constexpr index most_queries = lanes >= 8 ? lanes / 2 : 2;
};

namespace detail {

/// How many rows of `channels` make up `bytes`, at least 4.
template <class T>
[[nodiscard]] constexpr index rows_of(index bytes, index channels) noexcept {
  const index row = channels * static_cast<index>(sizeof(T));
  return row * 4 >= bytes ? 4 : bytes / (row > 0 ? row : 1);
}

/// Where to ask for lines while `rows` rows at `p` are computed with: the rows `ahead` of them
/// where the run of `left` rows still holds those. Rows with gaps between them are asked for at
/// once, and what is here already a second time, which costs nothing.
template <class T>
[[nodiscard]] HEED_INLINE const T* rows_ahead(const T* p, index stride, index rows, index ahead,
                                              index left, index channels) noexcept {
  if (rows + ahead > left) return p;
  const T* const next = p + ahead * stride;
  if (stride == channels) return next;
  for (index r = 0; r < rows; ++r) {
    const auto* const bytes = reinterpret_cast<const char*>(next + r * stride);
    for (index at = 0; at < channels * static_cast<index>(sizeof(T)); at += 64) {
      simd::prefetch(bytes + at);
    }
  }
  return p;
}

/// Asks for the lines of `Count` numbers at `p`, rounded up.
template <index Count, class T>
HEED_INLINE void prefetch_numbers(const T* p) noexcept {
  constexpr auto lines = static_cast<int>(ceil_div(Count * static_cast<index>(sizeof(T)), 64));
  simd::unroll<lines>([&](auto i) HEED_INLINE_LAMBDA {
    simd::prefetch(reinterpret_cast<const char*>(p) + 64 * i);
  });
}

/// Scores of a tile of query rows and keys, written to s[row][key]. As many numbers as the keys
/// have are asked for at `ahead`.
template <class A, class T>
HEED_INLINE void split_score_tile(const A* q, index q_stride, const T* k, index k_stride,
                                  index channels, const T* ahead, A* s, index s_stride) noexcept {
  using plan = split_plan<A>;
  using P = simd::packet<A>;
  constexpr int rows = plan::template rows_of_tile<T>;
  constexpr int keys = plan::template keys_of_tile<T>;
  constexpr index lanes = plan::lanes;
  P sum[std::size_t{rows * keys}];
  simd::unroll<rows * keys>([&](auto i) HEED_INLINE_LAMBDA { sum[i] = simd::zero<A>(); });
  index c = 0;
  for (; c + lanes <= channels; c += lanes, ahead += keys * lanes) {
    prefetch_numbers<keys * lanes>(ahead);
    P key[std::size_t{keys}];
    simd::unroll<keys>(
        [&](auto j) HEED_INLINE_LAMBDA { key[j] = simd::load_widened<A>(k + j * k_stride + c); });
    simd::unroll<rows>([&](auto r) HEED_INLINE_LAMBDA {
      const P query = simd::load(q + r * q_stride + c);
      simd::unroll<keys>([&](auto j) HEED_INLINE_LAMBDA {
        sum[r * keys + j] = simd::fmadd(query, key[j], sum[r * keys + j]);
      });
    });
  }
  A dot[std::size_t{rows * keys}];
  for (index i = 0; i < rows * keys; i += lanes) simd::store(dot + i, simd::sum_each<A>(sum + i));
  for (; c < channels; ++c) {
    for (int r = 0; r < rows; ++r) {
      for (int j = 0; j < keys; ++j) {
        dot[r * keys + j] += q[r * q_stride + c] * static_cast<A>(k[j * k_stride + c]);
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < keys; ++j) s[r * s_stride + j] = dot[r * keys + j];
  }
}

/// Packets x lanes channels of `Rows` output rows. As many numbers as are read are asked for at
/// `ahead`.
template <class A, int Rows, int Packets, class T>
HEED_INLINE void split_value_tile(const A* p, index p_stride, const T* v, index v_stride,
                                  index keys, const T* ahead, const A* rescale, A* o,
                                  index o_stride) noexcept {
  using P = simd::packet<A>;
  constexpr index lanes = split_plan<A>::lanes;
  P sum[std::size_t{Rows}][std::size_t{Packets}];
  simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
    const P w = simd::broadcast(rescale[r]);
    simd::unroll<Packets>([&](auto i) HEED_INLINE_LAMBDA {
      sum[r][i] = simd::mul(w, simd::load(o + r * o_stride + i * lanes));
    });
  });
  for (index j = 0; j < keys; ++j, ahead += Packets * lanes) {
    prefetch_numbers<Packets * lanes>(ahead);
    P value[std::size_t{Packets}];
    simd::unroll<Packets>([&](auto i) HEED_INLINE_LAMBDA {
      value[i] = simd::load_widened<A>(v + j * v_stride + i * lanes);
    });
    simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
      const P weight = simd::broadcast(p[r * p_stride + j]);
      simd::unroll<Packets>(
          [&](auto i) HEED_INLINE_LAMBDA { sum[r][i] = simd::fmadd(weight, value[i], sum[r][i]); });
    });
  }
  simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
    simd::unroll<Packets>(
        [&](auto i) HEED_INLINE_LAMBDA { simd::store(o + r * o_stride + i * lanes, sum[r][i]); });
  });
}

}  // namespace detail

/// Scores of `rows` query rows (padded to tile_rows) against `keys` keys, of a run of `left` rows.
template <class A, class T>
HEED_NOINLINE void split_scores(const A* q, index q_stride, index rows, const T* k, index k_stride,
                                index keys, index left, index channels, A* s) noexcept {
  using plan = split_plan<A>;
  constexpr index tile_rows = plan::template rows_of_tile<T>;
  constexpr index tile_keys = plan::template keys_of_tile<T>;
  const index ahead = detail::rows_of<T>(plan::ahead_bytes, channels);
  index j = 0;
  for (; j + tile_keys <= keys; j += tile_keys) {
    const T* const key = k + j * k_stride;
    const T* next = detail::rows_ahead(key, k_stride, tile_keys, ahead, left - j, channels);
    for (index r = 0; r < rows; r += tile_rows, next = key) {
      detail::split_score_tile<A>(q + r * q_stride, q_stride, key, k_stride, channels, next,
                                  s + r * plan::keys + j, plan::keys);
    }
  }
  for (; j < keys; ++j) {
    for (index r = 0; r < rows; ++r) {
      auto sum = simd::zero<A>();
      index c = 0;
      for (; c + plan::lanes <= channels; c += plan::lanes) {
        sum = simd::fmadd(simd::load(q + r * q_stride + c),
                          simd::load_widened<A>(k + j * k_stride + c), sum);
      }
      A dot = simd::sum(sum);
      for (; c < channels; ++c) dot += q[r * q_stride + c] * static_cast<A>(k[j * k_stride + c]);
      s[r * plan::keys + j] = dot;
    }
  }
}

/// The maximum of a row's scores, up to split_plan::keys of them, joins the row's state; what
/// rescales the row's past is returned. The scores up to whole packets become -inf.
template <class A>
HEED_INLINE A split_maximum(A* s, index count, softmax_state<A>& state) noexcept {
  using plan = split_plan<A>;
  for (index j = count; j < round_up(count, plan::lanes); ++j) s[j] = softmax_state<A>::empty_max;
  auto top = simd::broadcast(state.max);
  for (index j = 0; j < count; j += plan::lanes) top = simd::max(top, simd::load(s + j));
  return state.merge({simd::largest(top), A(0)}).self;
}

/// Scores of value_rows rows against a stretch of `count` keys become probabilities not yet divided
/// by their sum, relative to the maxima in `state`; each row's sum takes them in.
template <class A>
HEED_INLINE void split_weights(A* s, index count, softmax_state<A>* state) noexcept {
  using plan = split_plan<A>;
  using P = simd::packet<A>;
  constexpr int rows = plan::value_rows;
  P shift[std::size_t{rows}];
  P sum[std::size_t{rows}];
  simd::unroll<rows>([&](auto r) HEED_INLINE_LAMBDA {
    const A max = state[r].max;
    shift[r] = simd::broadcast(max == softmax_state<A>::empty_max ? A(0) : max);
    sum[r] = simd::zero<A>();
  });
  for (index j = 0; j < count; j += plan::lanes) {
    P e[std::size_t{rows}];
    simd::unroll<rows>([&](auto r) HEED_INLINE_LAMBDA {
      e[r] = simd::sub(simd::load(s + r * plan::keys + j), shift[r]);
    });
    simd::exp_nonpositive<A, rows>(e);
    simd::unroll<rows>([&](auto r) HEED_INLINE_LAMBDA {
      simd::store(s + r * plan::keys + j, e[r]);
      sum[r] = simd::add(sum[r], e[r]);
    });
  }
  simd::unroll<rows>([&](auto r) HEED_INLINE_LAMBDA { state[r].sum += simd::sum(sum[r]); });
}

/// o = rescale o + p v for `rows` rows (padded to value_rows) and any number of channels (o's rows
/// padded to whole packets); v is of a run of `left` rows. `weigh(r, j, n)` is called before p[r ..
/// r + value_rows)[j .. j + n) is read.
template <class A, class T, class Weigh>
HEED_NOINLINE void split_values(const A* p, index rows, const T* v, index v_stride, index keys,
                                index left, index channels, const A* rescale, A* o, index o_stride,
                                Weigh&& weigh) noexcept {
  using plan = split_plan<A>;
  constexpr A ones[plan::value_rows] = {A(1), A(1), A(1), A(1)};
  const index ahead = detail::rows_of<T>(plan::ahead_bytes, channels);
  const index stretch = round_up(detail::rows_of<T>(plan::stretch_bytes, channels), plan::lanes);
  for (index first = 0; first < keys; first += stretch) {
    const index count = keys - first < stretch ? keys - first : stretch;
    const T* const at = v + first * v_stride;
    const T* next = detail::rows_ahead(at, v_stride, count, ahead, left - first, channels);
    for (index r = 0; r < rows; r += plan::value_rows, next = at) {
      weigh(r, first, count);
      const A* const weight = p + r * plan::keys + first;
      const A* const scale = first == 0 ? rescale + r : ones;
      A* const out = o + r * o_stride;
      index c = 0;
      constexpr index step = plan::value_packets * plan::lanes;
      for (; c + step <= channels; c += step, next += step * count) {
        detail::split_value_tile<A, plan::value_rows, plan::value_packets>(
            weight, plan::keys, at + c, v_stride, count, next, scale, out + c, o_stride);
      }
      for (; c + plan::lanes <= channels; c += plan::lanes, next += plan::lanes * count) {
        detail::split_value_tile<A, plan::value_rows, 1>(weight, plan::keys, at + c, v_stride,
                                                         count, next, scale, out + c, o_stride);
      }
      for (; c < channels; ++c) {
        for (index i = 0; i < plan::value_rows; ++i) {
          A sum = scale[i] * out[i * o_stride + c];
          for (index j = 0; j < count; ++j) {
            sum += weight[i * plan::keys + j] * static_cast<A>(at[j * v_stride + c]);
          }
          out[i * o_stride + c] = sum;
        }
      }
    }
  }
}

}  // namespace heed
