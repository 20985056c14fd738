// SPDX-License-Identifier: MIT
// A block of bfloat16 keys and values multiplied as pairs, where the target can: twice the products
// of float a cycle.
//
//   scores   pairs of channels: q packed [head dim / 2][group], k read as it lies
//   values   pairs of keys: p rounded to bfloat16, v interleaved two rows at a time
//
// Products are exact, sums are in float. Rounding p adds at most 2^-8 of its weight, of the size of
// the rounding of a bfloat16 output; the denominator sums p unrounded. Denormal bfloat16 numbers
// count as zero.
#pragma once

#include <cstdint>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/tiled/kv_block.hpp"
#include "heed/simd/bf16_dot.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// A template of the accumulator, float, so that a program may override its sizes after including it.
template <class A>
class paired_block {
 public:
  /// Whether queries of type TQ against this source can be multiplied as pairs at all.
  template <class TQ, class Source>
  static constexpr bool serves = simd::has_bfloat16_pairs && std::is_same_v<TQ, bfloat16> &&
                                 std::is_same_v<typename Source::key_scalar, bfloat16> &&
                                 std::is_same_v<typename Source::value_scalar, bfloat16>;

  /// Whether the head's rows are one run with channels next to each other, in whole pairs.
  template <class Source>
  static bool fits(const Source& source, const tile& where, head_dims d) noexcept {
    if (where.keys.empty() || d.head_dim % 2 != 0 || source.key_channel_stride() != 1 ||
        source.value_channel_stride() != 1) {
      return false;
    }
    const index n = where.keys.size();
    return source.keys(where.batch, where.kv_head, 0).count >= n &&
           source.values(where.batch, where.kv_head, 0).count >= n;
  }

#if HEED_HAS_BFLOAT16_PAIRS
  using plan = tile_plan<A>;
  using P = simd::packet<A>;
  static constexpr index key_step = 2;
  using session = no_session;

  paired_block(A scale, prefetch_stream& stream, session&) noexcept
      : scale_(scale), stream_(&stream) {}

  /// Words of channel pairs; the scale stays out, for it would round.
  static void pack(rectangle<const bfloat16> q, index rows, index head_dim, A, A* to) noexcept {
    for (index c = 0; c < head_dim; c += 2) {
      for (index i = 0; i < plan::group; ++i) {
        std::uint32_t word = 0;
        if (i < rows) {
          const bfloat16 pair[2] = {*q.at(i, c), *q.at(i, c + 1)};
          std::memcpy(&word, pair, sizeof word);
        }
        std::memcpy(to + c / 2 * plan::group + i, &word, sizeof word);
      }
    }
  }

  template <class Source>
  void load(const Source& source, const tile& where, range keys, head_dims d,
            const block_copies<A>& copies) noexcept {
    const auto k = source.keys(where.batch, where.kv_head, keys.begin);
    const auto v = source.values(where.batch, where.kv_head, keys.begin);
    k_ = k.data;
    k_stride_ = k.stride;
    v_ = v.data;
    v_stride_ = v.stride;
    value_dim_ = d.value_dim;
    auto* const words = reinterpret_cast<std::uint32_t*>(copies.v);
    for (index j = 0; j < keys.size(); j += 2) {
      const bfloat16* const row = v_ + j * v_stride_;
      simd::pair_rows(row, j + 1 < keys.size() ? row + v_stride_ : nullptr,
                      words + j / 2 * value_dim_, value_dim_);
    }
    pairs_ = words;
  }

  /// n is a multiple of key_step.
  [[nodiscard]] paired_block from(index n) const noexcept {
    paired_block part = *this;
    part.k_ += n * k_stride_;
    part.v_ += n * v_stride_;
    part.pairs_ += n / 2 * value_dim_;
    return part;
  }

  template <int Packets>
  HEED_NOINLINE void scores(const A* q, index head_dim, index keys, A* s,
                            P* maximum) const noexcept {
    const auto* words = reinterpret_cast<const std::uint32_t*>(q);
    in_steps<static_cast<int>(plan::key_step)>(keys, [&](auto step, index j) HEED_INLINE_LAMBDA {
      stream_->issue();
      score_register_tile<decltype(step)::value, Packets>(words, j, head_dim / 2,
                                                          s + j * plan::group, maximum);
    });
  }

  template <int Packets>
  HEED_NOINLINE void values(A* p, index first, index keys, index value_dim, const P* rescale,
                            const running_values<A>& out) const noexcept {
    auto* const words = reinterpret_cast<std::uint32_t*>(p);
    for (index j = 0; j < keys; j += 2) {
      simd::unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA {
        const index at = j * plan::group + r * plan::lanes;
        const P odd = j + 1 < keys ? simd::load(p + at + plan::group) : simd::zero<A>();
        simd::store_pairs(words + j / 2 * plan::group + r * plan::lanes,
                          simd::round_to_pairs(simd::load(p + at), odd));
      });
    }
    in_steps<static_cast<int>(plan::key_step)>(
        value_dim, [&](auto step, index c) HEED_INLINE_LAMBDA {
          stream_->issue();
          value_register_tile<decltype(step)::value, Packets>(
              words, c, first / 2, ceil_div(keys, 2), rescale, out.from(c * plan::group));
        });
  }

  [[nodiscard]] A value(index j, index c) const noexcept {
    return static_cast<A>(v_[j * v_stride_ + c]);
  }
  [[nodiscard]] bool finite(index keys, index value_dim) const noexcept {
    return all_finite<A>(strided_rows<bfloat16>{v_, v_stride_}, keys, value_dim);
  }

 private:
  template <int Keys, int Packets>
  HEED_INLINE void score_register_tile(const std::uint32_t* q, index first, index channel_pairs,
                                       A* s, P* maximum) const noexcept {
    using simd::unroll;
    P sum[std::size_t{Keys}][std::size_t{Packets}];
    const bfloat16* row[std::size_t{Keys}];
    unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
      row[j] = k_ + (first + j) * k_stride_;
      unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA { sum[j][p] = simd::zero<A>(); });
    });
    for (index c = 0; c < channel_pairs; ++c) {
      simd::pairs query[std::size_t{Packets}];
      unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
        query[p] = simd::load_pairs(q + c * plan::group + p * plan::lanes);
      });
      unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
        const simd::pairs key = simd::broadcast_pair(row[j] + 2 * c);
        unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
          sum[j][p] = simd::dot_pairs(sum[j][p], key, query[p]);
        });
      });
    }
    const P scale = simd::broadcast(scale_);
    unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
      P m = maximum[p];
      unroll<Keys>([&](auto j) HEED_INLINE_LAMBDA {
        const P x = simd::mul(sum[j][p], scale);
        simd::store(s + j * plan::group + p * plan::lanes, x);
        m = (simd::max)(m, x);
      });
      maximum[p] = m;
    });
  }

  template <int Channels, int Packets>
  HEED_INLINE void value_register_tile(const std::uint32_t* p, index channel, index first_pair,
                                       index key_pairs, const P* rescale,
                                       const running_values<A>& out) const noexcept {
    using simd::unroll;
    join_chains<A, Channels, Packets, keys_of_chain / 2>(
        first_pair, key_pairs, rescale, out,
        [&](auto& sum, index begin, index end) HEED_INLINE_LAMBDA {
          unroll<Channels>([&](auto c) HEED_INLINE_LAMBDA {
            unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA { sum[c][r] = simd::zero<A>(); });
          });
          for (index j = begin; j < end; ++j) {
            simd::pairs weight[std::size_t{Packets}];
            unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA {
              weight[r] = simd::load_pairs(p + j * plan::group + r * plan::lanes);
            });
            const std::uint32_t* const row = pairs_ + j * value_dim_ + channel;
            unroll<Channels>([&](auto c) HEED_INLINE_LAMBDA {
              const simd::pairs value = simd::broadcast_pair(row[c]);
              unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA {
                sum[c][r] = simd::dot_pairs(sum[c][r], value, weight[r]);
              });
            });
          }
        });
  }

  const bfloat16* k_ = nullptr;
  const bfloat16* v_ = nullptr;
  const std::uint32_t* pairs_ = nullptr;  // [keys / 2][value dim]
  index k_stride_ = 0;
  index v_stride_ = 0;
  index value_dim_ = 0;
  A scale_;
  prefetch_stream* stream_;
#endif
};

}  // namespace heed::inline HEED_TARGET::kernel
