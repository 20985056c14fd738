// SPDX-License-Identifier: MIT
// The two products of attention for few queries, channels in the lanes: each row of keys and values
// is read once, as it lies in memory, for all the query rows that share it.
//
//   scores   s[r][j] = q[r].k[j]
//   values   o[r][c] = w[r] o[r][c] + sum_j p[r][j] v[j][c]
//
// Reading is the work here (1 FLOP a byte and query row), so that rows ahead are prefetched. T is
// the stored scalar, widened in registers.
#pragma once

#include "heed/kernel/softmax_state.hpp"
#include "heed/simd/convert.hpp"

namespace heed {

/// The sizes of the few-query kernel: the one place that knows them.
template <class A>
struct split_plan {
  static constexpr index lanes = simd::lanes<A>;
  /// Keys whose scores are held at once: long runs of rows of one kind, which is what the memory's
  /// own prefetching wants.
  static constexpr index keys = 256;
  /// Rows are asked for in stretches of so many bytes, so many bytes ahead. Stretches of values are
  /// also what stays in the first-level cache while all channels are summed.
  static constexpr index stretch_bytes = 2048;
  static constexpr index ahead_bytes = 8192;
  /// Keys of a task. Splits start at multiples of it, whatever the threads.
  static constexpr index split = 1024;
  /// Register tile of the scores: one sum each for lanes (row, key) pairs.
  static constexpr int tile_keys = lanes >= 4 ? 4 : 1;
  static constexpr int tile_rows = static_cast<int>(lanes) / tile_keys;
  /// Register tile of the values: rows x packets of channels.
  static constexpr int value_rows = 4;
  static constexpr int value_packets = simd::vector_registers == 32 ? 4 : 2;
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

/// Asks for `rows` rows of `channels` from `p` on. Rows next to each other are asked for as one
/// stretch: the memory serves lines in order at half again the rate of lines row by row.
template <class T>
HEED_INLINE void prefetch_rows(const T* p, index stride, index rows, index channels) noexcept {
  if (stride == channels) {
    channels *= rows;
    rows = 1;
  }
  for (index r = 0; r < rows; ++r, p += stride) {
    const auto* const bytes = reinterpret_cast<const char*>(p);
    for (index at = 0; at < channels * static_cast<index>(sizeof(T)); at += 64) {
      simd::prefetch(bytes + at);
    }
  }
}

/// Scores of tile_rows query rows against tile_keys keys, written to s[row][key].
template <class A, class T>
HEED_INLINE void split_score_tile(const A* q, index q_stride, const T* k, index k_stride,
                                  index channels, A* s, index s_stride) noexcept {
  using plan = split_plan<A>;
  using P = simd::packet<A>;
  constexpr int rows = plan::tile_rows;
  constexpr int keys = plan::tile_keys;
  constexpr index lanes = plan::lanes;
  P sum[std::size_t{lanes}];
  simd::unroll<rows * keys>([&](auto i) HEED_INLINE_LAMBDA { sum[i] = simd::zero<A>(); });
  index c = 0;
  for (; c + lanes <= channels; c += lanes) {
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
  A dot[std::size_t{lanes}];
  simd::store(dot, simd::sum_each<A>(sum));
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

/// Packets x lanes channels of `Rows` output rows.
template <class A, int Rows, int Packets, class T>
HEED_INLINE void split_value_tile(const A* p, index p_stride, const T* v, index v_stride,
                                  index keys, const A* rescale, A* o, index o_stride) noexcept {
  using P = simd::packet<A>;
  constexpr index lanes = split_plan<A>::lanes;
  P sum[std::size_t{Rows}][std::size_t{Packets}];
  simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
    const P w = simd::broadcast(rescale[r]);
    simd::unroll<Packets>([&](auto i) HEED_INLINE_LAMBDA {
      sum[r][i] = simd::mul(w, simd::load(o + r * o_stride + i * lanes));
    });
  });
  for (index j = 0; j < keys; ++j) {
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
  const index ahead = detail::rows_of<T>(plan::ahead_bytes, channels);
  index j = 0;
  for (; j + plan::tile_keys <= keys; j += plan::tile_keys) {
    if (j + plan::tile_keys + ahead <= left) {
      detail::prefetch_rows(k + (j + ahead) * k_stride, k_stride, plan::tile_keys, channels);
    }
    for (index r = 0; r < rows; r += plan::tile_rows) {
      detail::split_score_tile<A>(q + r * q_stride, q_stride, k + j * k_stride, k_stride, channels,
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

/// o = rescale o + p v for `rows` rows (padded to value_rows) and any number of channels (o's rows
/// padded to whole packets); v is of a run of `left` rows.
template <class A, class T>
HEED_NOINLINE void split_values(const A* p, index rows, const T* v, index v_stride, index keys,
                                index left, index channels, const A* rescale, A* o,
                                index o_stride) noexcept {
  using plan = split_plan<A>;
  constexpr A ones[plan::value_rows] = {A(1), A(1), A(1), A(1)};
  const index ahead = detail::rows_of<T>(plan::ahead_bytes, channels);
  const index stretch = detail::rows_of<T>(plan::stretch_bytes, channels);
  for (index first = 0; first < keys; first += stretch) {
    const index count = keys - first < stretch ? keys - first : stretch;
    const T* const at = v + first * v_stride;
    if (first + count + ahead <= left) {
      detail::prefetch_rows(at + ahead * v_stride, v_stride, count, channels);
    }
    for (index r = 0; r < rows; r += plan::value_rows) {
      const A* const weight = p + r * plan::keys + first;
      const A* const scale = first == 0 ? rescale + r : ones;
      A* const out = o + r * o_stride;
      index c = 0;
      constexpr index step = plan::value_packets * plan::lanes;
      for (; c + step <= channels; c += step) {
        detail::split_value_tile<A, plan::value_rows, plan::value_packets>(
            weight, plan::keys, at + c, v_stride, count, scale, out + c, o_stride);
      }
      for (; c + plan::lanes <= channels; c += plan::lanes) {
        detail::split_value_tile<A, plan::value_rows, 1>(weight, plan::keys, at + c, v_stride,
                                                         count, scale, out + c, o_stride);
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

/// Scores of a row, up to split_plan::keys of them, become probabilities not yet divided by their
/// sum; the row's state takes them in. What rescales the row's output is returned. The scores up to
/// whole packets are scratch.
template <class A>
HEED_INLINE A split_softmax(A* s, index count, softmax_state<A>& state) noexcept {
  using plan = split_plan<A>;
  for (index j = count; j < round_up(count, plan::lanes); ++j) s[j] = softmax_state<A>::empty_max;
  auto top = simd::broadcast(state.max);
  for (index j = 0; j < count; j += plan::lanes) top = simd::max(top, simd::load(s + j));
  const A max = simd::largest(top);
  const auto shift = simd::broadcast(max == softmax_state<A>::empty_max ? A(0) : max);
  auto sum = simd::zero<A>();
  for (index j = 0; j < count; j += plan::lanes) {
    const auto e = simd::exp_nonpositive<A>(simd::sub(simd::load(s + j), shift));
    simd::store(s + j, e);
    sum = simd::add(sum, e);
  }
  return state.merge({max, simd::sum(sum)}).self;
}

}  // namespace heed
