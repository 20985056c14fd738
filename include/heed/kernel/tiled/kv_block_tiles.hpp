// SPDX-License-Identifier: MIT
// A block of bfloat16 keys and values multiplied by a matrix unit.
//
//   scores   16 keys by `lanes` queries, 32 channels at a time: k read as it lies, q packed in pairs
//            of channels [head dim / 2][group]
//   values   16 channels by `lanes` queries, 32 keys at a time: v transposed once a block, for all
//            query tiles of a task; p rounded to bfloat16 in pairs of keys [keys / 2][group]
//
// Six tiles hold sums, two the operands: 2 x 16 keys (or channels) by 3 packets of queries, so that a
// product waits for a load and a third. Rounding p adds at most 2^-8 of its weight, of the size of
// the rounding of a bfloat16 output; the denominator sums p unrounded. A block's sums over keys are
// one chain: half of its keys in each of two sums of float (simd/tile_matrix.hpp).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/tiled/kv_block.hpp"
#include "heed/simd/bf16_dot.hpp"
#include "heed/simd/tile_matrix.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// A template of the accumulator, float, so that a program may override its sizes after including it.
template <class A>
class matrix_block {
 public:
  using plan = tile_plan<A>;
  using P = simd::packet<A>;
  static constexpr index key_step = simd::tile_depth;
  static constexpr index rows_of_tile = simd::tile_rows;

  /// The thread's unit, configured for the calls of a task.
  using session = simd::tile_matrix;

  /// Whether queries of type TQ against this source can be multiplied by tiles at all.
  template <class TQ, class Source>
  static constexpr bool serves =
      simd::has_tile_matrix && plan::keys % key_step == 0 && std::is_same_v<TQ, bfloat16> &&
      std::is_same_v<typename Source::key_scalar, bfloat16> &&
      std::is_same_v<typename Source::value_scalar, bfloat16>;

  /// Whether the head's rows are one run with channels next to each other, and whole tiles of them
  /// find room in a block's copies.
  template <class Source>
  static bool fits(const Source& source, const tile& where, head_dims d) noexcept {
    if (where.keys.empty() || source.key_channel_stride() != 1 ||
        source.value_channel_stride() != 1 ||
        round_up(d.head_dim, simd::tile_depth) > 2 * d.head_dim ||
        round_up(d.value_dim, rows_of_tile) > 2 * d.value_dim) {
      return false;
    }
    const index n = where.keys.size();
    return source.keys(where.batch, where.kv_head, 0).count >= n &&
           source.values(where.batch, where.kv_head, 0).count >= n && simd::tile_unit_granted();
  }

  matrix_block(A scale, prefetch_stream& stream, session& unit) noexcept
      : scale_(scale), stream_(&stream), unit_(&unit) {}

  /// Words of channel pairs, zeros behind the last; the scale stays out, for it would round.
  static void pack(rectangle<const bfloat16> q, index rows, index head_dim, A, A* to) noexcept {
    const bfloat16 none{};
    for (index c = 0; c < round_up(head_dim, simd::tile_depth); c += 2) {
      for (index i = 0; i < plan::group; ++i) {
        const bfloat16 pair[2] = {i < rows && c < head_dim ? *q.at(i, c) : none,
                                  i < rows && c + 1 < head_dim ? *q.at(i, c + 1) : none};
        std::memcpy(to + c / 2 * plan::group + i, pair, sizeof pair);
      }
    }
  }

  template <class Source>
  void load(const Source& source, const tile& where, range keys, head_dims d,
            const block_copies<A>& copies) noexcept {
    const auto k = source.keys(where.batch, where.kv_head, keys.begin);
    const auto v = source.values(where.batch, where.kv_head, keys.begin);
    v_ = v.data;
    v_stride_ = v.stride;
    k_ = k.data;
    k_stride_ = k.stride;
    depth_ = round_up(d.head_dim, simd::tile_depth);
    if (depth_ != d.head_dim || keys.size() % rows_of_tile != 0) {
      // Tiles read whole rows of whole tiles: what is not there is zero.
      k_ = pad_rows(k.data, k.stride, keys.size(), d.head_dim, copies.k);
      k_stride_ = depth_;
    }
    transpose_values(keys.size(), d.value_dim, copies.v);
  }

  /// n is a multiple of key_step.
  [[nodiscard]] matrix_block from(index n) const noexcept {
    matrix_block part = *this;
    part.k_ += n * k_stride_;
    part.v_ += n * v_stride_;
    part.transposed_ += n;
    return part;
  }

  template <int Packets>
  HEED_NOINLINE void scores(const A* q, index, index keys, A* s, P* maximum) const noexcept {
    for (index j = 0; j < keys; j += 2 * rows_of_tile) {
      stream_->issue();
      A* const to = s + j * plan::group;
      if (keys - j > rows_of_tile) {
        score_tiles<2, Packets>(q, k_ + j * k_stride_, to);
      } else {
        score_tiles<1, Packets>(q, k_ + j * k_stride_, to);
      }
    }
    const P scale = simd::broadcast(scale_);
    for (index j = 0; j < keys; ++j) {
      simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
        A* const at = s + j * plan::group + p * plan::lanes;
        const P x = simd::mul(simd::load(at), scale);
        simd::store(at, x);
        maximum[p] = (simd::max)(maximum[p], x);
      });
    }
  }

  template <int Packets>
  HEED_NOINLINE void values(A* p, index, index keys, index value_dim, const P* rescale,
                            const running_values<A>& out) const noexcept {
    round_to_pairs<Packets>(p, keys);
    const index steps = ceil_div(keys, simd::tile_depth);
    for (index c = 0; c < value_dim; c += 2 * rows_of_tile) {
      stream_->issue();
      const index left = value_dim - c;
      if (left > rows_of_tile) {
        value_tiles<2, Packets>(p, c, steps, left, rescale, out.from(c * plan::group));
      } else {
        value_tiles<1, Packets>(p, c, steps, left, rescale, out.from(c * plan::group));
      }
    }
  }

  [[nodiscard]] A value(index j, index c) const noexcept {
    return static_cast<A>(v_[j * v_stride_ + c]);
  }
  [[nodiscard]] bool finite(index keys, index value_dim) const noexcept {
    return all_finite<A>(strided_rows<bfloat16>{v_, v_stride_}, keys, value_dim);
  }

 private:
  static constexpr index word_bytes = 4;
  static constexpr index group_bytes = plan::group * word_bytes;
  static constexpr index lane_bytes = plan::lanes * word_bytes;

  /// Whole tiles of rows of `depth_` channels.
  const bfloat16* pad_rows(const bfloat16* k, index stride, index keys, index head_dim,
                           A* copy) const noexcept {
    auto* const to = reinterpret_cast<bfloat16*>(copy);
    for (index j = 0; j < round_up(keys, rows_of_tile); ++j) {
      for (index c = 0; c < depth_; ++c) {
        to[j * depth_ + c] = j < keys && c < head_dim ? k[j * stride + c] : bfloat16{};
      }
    }
    return to;
  }

  /// [channels of whole tiles][keys of a block]; zeros where there is no key or channel.
  void transpose_values(index keys, index value_dim, A* copy) noexcept {
    auto* const to = reinterpret_cast<bfloat16*>(copy);
    for (index c = 0; c < round_up(value_dim, rows_of_tile); ++c) {
      for (index j = 0; j < plan::keys; ++j) {
        to[c * plan::keys + j] = j < keys && c < value_dim ? v_[j * v_stride_ + c] : bfloat16{};
      }
    }
    transposed_ = to;
  }

  /// Weights of two keys in each word, in place; zeros up to whole tiles of keys.
  template <int Packets>
  static void round_to_pairs(A* p, index keys) noexcept {
    for (index j = 0; j < round_up(keys, simd::tile_depth); j += 2) {
      for (index i = 0; i < Packets * plan::lanes; ++i) {
        const A even = j < keys ? p[j * plan::group + i] : A(0);
        const A odd = j + 1 < keys ? p[(j + 1) * plan::group + i] : A(0);
        const bfloat16 pair[2] = {bfloat16(even), bfloat16(odd)};
        std::memcpy(p + j / 2 * plan::group + i, pair, sizeof pair);
      }
    }
  }

  /// Sums of Rows x Packets tiles over `steps` steps: operand rows `row` apart in A, `step` further a
  /// step; of B one step's words after another.
  template <int Rows, int Packets>
  HEED_INLINE void multiply(const bfloat16* a, index row, index step, const A* b,
                            index steps) const noexcept {
    session& unit = *unit_;
    simd::unroll<Rows * Packets>([&](auto t) HEED_INLINE_LAMBDA { unit.template zero<t()>(); });
    for (index k = 0; k < steps; ++k) {
      simd::unroll<Rows>([&](auto r) HEED_INLINE_LAMBDA {
        unit.template load<6>(a + r() * rows_of_tile * row + k * step,
                              row * static_cast<index>(sizeof(bfloat16)));
        simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
          unit.template load<7>(b + k * rows_of_tile * plan::group + p() * plan::lanes, group_bytes,
                                lane_bytes);
          unit.template multiply<r() * Packets + p(), 6, 7>();
        });
      });
    }
  }

  template <int Rows, int Packets>
  HEED_INLINE void score_tiles(const A* q, const bfloat16* k, A* s) const noexcept {
    multiply<Rows, Packets>(k, k_stride_, simd::tile_depth, q, depth_ / simd::tile_depth);
    simd::unroll<Rows * Packets>([&](auto t) HEED_INLINE_LAMBDA {
      constexpr index r = t() / Packets;
      constexpr index p = t() % Packets;
      unit_->template store<t()>(s + r * rows_of_tile * plan::group + p * plan::lanes, group_bytes);
    });
  }

  /// Up to 2 x 16 channels from c on, `left` of them there.
  template <int Rows, int Packets>
  HEED_INLINE void value_tiles(const A* p, index c, index steps, index left, const P* rescale,
                               const running_values<A>& out) const noexcept {
    multiply<Rows, Packets>(transposed_ + c * plan::keys, plan::keys, simd::tile_depth, p, steps);
    alignas(cache_line) A sums[std::size_t{rows_of_tile * plan::lanes}];
    simd::unroll<Rows * Packets>([&](auto t) HEED_INLINE_LAMBDA {
      constexpr index r = t() / Packets;
      constexpr index packet = t() % Packets;
      unit_->template store<t()>(sums, lane_bytes);
      for (index i = 0; i < rows_of_tile && r * rows_of_tile + i < left; ++i) {
        out.add((r * rows_of_tile + i) * plan::group + packet * plan::lanes, rescale[packet],
                simd::load(sums + i * plan::lanes));
      }
    });
  }

  const bfloat16* k_ = nullptr;
  const bfloat16* v_ = nullptr;
  const bfloat16* transposed_ = nullptr;  // [value dim][keys of a block]
  index k_stride_ = 0;
  index v_stride_ = 0;
  index depth_ = 0;  // the head dim in whole tiles
  A scale_;
  prefetch_stream* stream_;
  session* unit_;
};

}  // namespace heed::inline HEED_TARGET::kernel
