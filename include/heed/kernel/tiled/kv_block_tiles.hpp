// SPDX-License-Identifier: MIT
// A block of bfloat16 keys and values multiplied by a matrix unit.
//
//   scores   2 x `rows` keys by 3 packets of queries, `depth` channels at a time: k read as it lies, or
//            packed once a block where the unit wants that; q packed in pairs of channels
//   values   2 x `rows` channels by 3 packets of queries, `depth` keys at a time: v transposed once a
//            block, for all query tiles of a task; p rounded to bfloat16 in pairs of keys
//
// `rows` and `depth` are the unit's, and so is the order in which operands lie (simd/tile_matrix.hpp,
// simd/tile_matrix_arm.hpp). Rounding p adds at most 2^-8 of its weight, of the size of the rounding of
// a bfloat16 output; the denominator sums p unrounded. A block's sums over keys are one chain of
// floats, with AMX two, of the even keys and of the odd.
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
  /// The thread's unit, configured for the calls of a task.
  using session = simd::bf16_matrix;
  static constexpr index key_step = session::depth;
  static constexpr index rows_of_tile = session::rows;

  /// Whether queries of type TQ against this source can be multiplied by tiles at all.
  template <class TQ, class Source>
  static constexpr bool serves =
      simd::has_bf16_matrix && plan::keys % key_step == 0 && std::is_same_v<TQ, bfloat16> &&
      std::is_same_v<typename Source::key_scalar, bfloat16> &&
      std::is_same_v<typename Source::value_scalar, bfloat16>;

  /// Whether the head's rows are one run with channels next to each other, and whole tiles of them
  /// find room in a block's copies.
  template <class Source>
  static bool fits(const Source& source, const tile& where, head_dims d) noexcept {
    if (where.keys.empty() || source.key_channel_stride() != 1 ||
        source.value_channel_stride() != 1 ||
        round_up(d.head_dim, session::depth) > 2 * d.head_dim ||
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
    for (index c = 0; c < round_up(head_dim, session::depth); c += 2) {
      for (index i = 0; i < plan::group; ++i) {
        const bfloat16 pair[2] = {i < rows && c < head_dim ? *q.at(i, c) : none,
                                  i < rows && c + 1 < head_dim ? *q.at(i, c + 1) : none};
        std::memcpy(to + session::word_at(c / 2, i, plan::group), pair, sizeof pair);
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
    depth_ = round_up(d.head_dim, session::depth);
    if (!session::reads_rows || depth_ != d.head_dim || keys.size() % rows_of_tile != 0) {
      // Tiles read whole rows of whole tiles: what is not there is zero.
      auto* const packed = reinterpret_cast<bfloat16*>(copies.k);
      session::pack_rows(k.data, k.stride, keys.size(), d.head_dim, depth_, packed);
      k_ = packed;
      k_stride_ = depth_;
    }
    auto* const transposed = reinterpret_cast<bfloat16*>(copies.v);
    session::pack_columns(v.data, v.stride, keys.size(), d.value_dim, plan::keys, transposed);
    transposed_ = transposed;
  }

  /// n is a multiple of key_step.
  [[nodiscard]] matrix_block from(index n) const noexcept {
    matrix_block part = *this;
    part.k_ += n * k_stride_;
    part.v_ += n * v_stride_;
    part.transposed_ += session::a_at(0, n, plan::keys);
    return part;
  }

  template <int Packets>
  HEED_NOINLINE void scores(const A* q, index, index keys, A* s, P* maximum) const noexcept {
    const index steps = depth_ / session::depth;
    in_tiles(keys, [&](auto tiles, index j) HEED_INLINE_LAMBDA {
      simd::tile_products<tiles(), Packets>(*unit_, k_ + j * k_stride_, k_stride_, q, plan::group,
                                            steps, s + j * plan::group, plan::group);
    });
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
    constexpr index width = Packets * plan::lanes;
    session::template round_rows<width, plan::group>(p, keys);
    const index steps = ceil_div(keys, session::depth);
    in_tiles(value_dim, [&](auto tiles, index c) HEED_INLINE_LAMBDA {
      constexpr index rows = tiles() * rows_of_tile;
      alignas(cache_line) A sums[std::size_t{rows * width}];
      simd::tile_products<tiles(), Packets>(*unit_, transposed_ + c * plan::keys, plan::keys, p,
                                            plan::group, steps, sums, width);
      for (index i = 0; i < rows && c + i < value_dim; ++i) {
        simd::unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA {
          out.add((c + i) * plan::group + r * plan::lanes, rescale[r],
                  simd::load(sums + i * width + r * plan::lanes));
        });
      }
    });
  }

  [[nodiscard]] A value(index j, index c) const noexcept {
    return static_cast<A>(v_[j * v_stride_ + c]);
  }
  [[nodiscard]] bool finite(index keys, index value_dim) const noexcept {
    return all_finite<A>(strided_rows<bfloat16>{v_, v_stride_}, keys, value_dim);
  }

 private:
  /// f(integral_constant of tiles, first row) over `count` rows, two tiles of them at a time.
  template <class F>
  HEED_INLINE void in_tiles(index count, F&& f) const noexcept {
    for (index at = 0; at < count; at += 2 * rows_of_tile) {
      for (index i = 0; i < 2 * rows_of_tile; i += plan::key_step) stream_->issue();
      if (count - at > rows_of_tile) {
        f(std::integral_constant<int, 2>{}, at);
      } else {
        f(std::integral_constant<int, 1>{}, at);
      }
    }
  }

  const bfloat16* k_ = nullptr;
  const bfloat16* v_ = nullptr;
  const bfloat16* transposed_ = nullptr;  // A of channels, each of a block's keys
  index k_stride_ = 0;
  index v_stride_ = 0;
  index depth_ = 0;  // the head dim in whole steps
  A scale_;
  prefetch_stream* stream_;
  session* unit_;
};

}  // namespace heed::inline HEED_TARGET::kernel
