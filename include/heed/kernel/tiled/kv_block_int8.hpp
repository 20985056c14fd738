// SPDX-License-Identifier: MIT
// A block of keys and values that are codes of 8 bits, x = scale (code - zero) with one scale and
// one zero a token, multiplied by a matrix unit without being widened.
//
//   q_c ~ unit x_c,   x_c = 256 high_c + low_c                      (byte_queries.hpp)
//   s_j = unit scale_j (256 sum_c high_c code_jc + sum_c low_c code_jc - zero_j sum_c x_c)
//   o_c = sum_j w_j code_jc - sum_j w_j zero_j,   w_j = p_j scale_j rounded to bfloat16
//
//   scores   16 keys by `lanes` queries, 64 channels at a time, twice: high and low bytes. Codes
//            are read as they lie
//   values   as those of bfloat16 (kv_block_tiles.hpp), in which codes are exact: transposed once a
//            block
//
// Six tiles hold sums, of high and of low bytes; two the operands: a tile of codes meets six tiles
// of queries. Two products of bytes cost what one of bfloat16 does.
//
// Error. Sums of bytes are exact: 65,536 channels of at most 255 x 128 stay within 32 bits. A query
// errs by half a unit a channel, so a score by at most max_c |q_c| sum_c |k_jc| / 65,278 (q times
// the call's scale), and by 2^-21 of unit scale_j (|sum_c x_c code_jc| + |zero_j sum_c x_c|). The
// rounding of w adds at most 2^-8 sum_j p_j |v_jc|, for the same rounded weights meet codes and
// zeros: what codes erred by is of that size. The denominator sums p unrounded. Weights below
// 2^-126 count as zero.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/kernel/tiled/byte_queries.hpp"
#include "heed/kernel/tiled/kv_block.hpp"
#include "heed/simd/bf16_dot.hpp"
#include "heed/simd/tile_matrix.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// Whether a source's rows are codes of 8 bits.
template <class S>
inline constexpr bool has_byte_codes = [] {
  if constexpr (coded_source<S>) return S::code_bits == 8;
  return false;
}();

/// A template of the accumulator, float, so that a program may override its sizes after including
/// it.
template <class A>
class code_block {
 public:
  using plan = tile_plan<A>;
  static constexpr index key_step = simd::tile_depth;

  /// Whether queries of type TQ against this source can be multiplied by tiles at all.
  template <class TQ, class Source>
  static constexpr bool serves = simd::has_byte_tiles && plan::keys % key_step == 0 &&
                                 std::is_same_v<A, float> && has_byte_codes<Source>;

#if HEED_HAS_TILE_UNIT || defined(HEED_EMULATED_TILES)
  using P = simd::packet<A>;
  static constexpr index rows_of_tile = simd::tile_rows;

  /// The thread's unit, configured for the calls of a task.
  using session = simd::tile_matrix;

  /// Whether all of the head's tokens are codes with one scale each, and whole tiles of them and of
  /// queries find room.
  template <class Source>
  static bool fits(const Source& source, const tile& where, head_dims d) noexcept {
    if (where.keys.empty() || round_up(d.head_dim, simd::tile_bytes) > 2 * d.head_dim ||
        round_up(d.value_dim, rows_of_tile) > 2 * d.value_dim || d.head_dim > most_channels) {
      return false;
    }
    const auto by_token = [&](const auto& run) noexcept {
      for (index j = where.keys.begin; j < where.keys.end;) {
        const code_run r = run(j);
        if (r.codes == nullptr || r.by_channel || r.group > 0) return false;
        j += r.count;
      }
      return true;
    };
    return by_token([&](index j) { return source.key_codes(where.batch, where.kv_head, j); }) &&
           by_token([&](index j) { return source.value_codes(where.batch, where.kv_head, j); }) &&
           simd::tile_unit_granted();
  }

  /// The scale is in the packed queries.
  code_block(A, prefetch_stream& stream, session& unit) noexcept : stream_(&stream), unit_(&unit) {}

  template <class T>
  static void pack(rectangle<const T> q, index rows, index head_dim, A scale, A* to) noexcept {
    byte_queries<A>::pack(q, rows, head_dim, scale, to);
  }

  template <class Source>
  void load(const Source& source, const tile& where, range keys, head_dims d,
            const block_copies<A>& copies) noexcept {
    const index n = keys.size();
    depth_ = round_up(d.head_dim, simd::tile_bytes);
    A* const scales = copies.k + plan::keys * depth_ / 4;  // behind the codes: half of the room
    key_scale_ = scales;
    key_zero_ = scales + plan::keys;
    value_scale_ = scales + 2 * plan::keys;
    value_zero_ = scales + 3 * plan::keys;
    const std::uint8_t* row[std::size_t{plan::keys}];

    const auto key_run = [&](index j) { return source.key_codes(where.batch, where.kv_head, j); };
    const code_run first = key_run(keys.begin);
    gather(key_run, keys, row, scales, scales + plan::keys);
    k_ = first.codes;
    k_stride_ = first.stride;
    if (depth_ != d.head_dim || n % rows_of_tile != 0 || first.count < n) {
      // Tiles read whole rows of whole tiles, a stride apart: what is not there is zero.
      auto* const to = reinterpret_cast<std::uint8_t*>(copies.k);
      std::fill_n(to, round_up(n, rows_of_tile) * depth_, std::uint8_t{0});
      for (index j = 0; j < n; ++j) std::copy_n(row[j], d.head_dim, to + j * depth_);
      k_ = to;
      k_stride_ = depth_;
    }
    gather([&](index j) { return source.value_codes(where.batch, where.kv_head, j); }, keys, row,
           scales + 2 * plan::keys, scales + 3 * plan::keys);
    auto* const to = reinterpret_cast<bfloat16*>(copies.v);
    for (index c = 0; c < round_up(d.value_dim, rows_of_tile); ++c) {
      for (index j = 0; j < plan::keys; ++j) {
        const bool there = j < n && c < d.value_dim;
        to[c * plan::keys + j] = there ? bfloat16(static_cast<A>(row[j][c])) : bfloat16{};
      }
    }
    values_ = to;
  }

  /// n is a multiple of key_step.
  [[nodiscard]] code_block from(index n) const noexcept {
    code_block part = *this;
    part.k_ += n * k_stride_;
    part.key_scale_ += n;
    part.key_zero_ += n;
    part.value_scale_ += n;
    part.value_zero_ += n;
    part.values_ += n;
    return part;
  }

  template <int Packets>
  HEED_NOINLINE void scores(const A* q, index head_dim, index keys, A* s,
                            P* maximum) const noexcept {
    const A* const unit = byte_queries<A>::units(q, head_dim);
    for (index j = 0; j < keys; j += rows_of_tile) {
      if (j % (2 * rows_of_tile) == 0) stream_->issue();
      score_tiles<Packets>(q, unit, j, (std::min)(rows_of_tile, keys - j), s + j * plan::group);
    }
    for (index i = 0; i < Packets * plan::lanes; ++i) {
      if (unit[i] < A(0)) widened_scores(q + i, head_dim, keys, s + i);
    }
    for (index j = 0; j < keys; ++j) {
      simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
        maximum[p] = (simd::max)(maximum[p], simd::load(s + j * plan::group + p * plan::lanes));
      });
    }
  }

  template <int Packets>
  HEED_NOINLINE void values(A* p, index, index keys, index value_dim, const P* rescale,
                            const running_values<A>& out) const noexcept {
    P zeros[std::size_t{Packets}];
    round_to_pairs<Packets>(p, keys, zeros);
    for (index c = 0; c < value_dim; c += 2 * rows_of_tile) {
      stream_->issue();
      if (value_dim - c > rows_of_tile) {
        value_tiles<2, Packets>(p, keys, c, value_dim, zeros, rescale, out);
      } else {
        value_tiles<1, Packets>(p, keys, c, value_dim, zeros, rescale, out);
      }
    }
  }

  [[nodiscard]] A value(index j, index c) const noexcept {
    return value_scale_[j] * (static_cast<A>(values_[c * plan::keys + j]) - value_zero_[j]);
  }
  /// Whether all that codes of the keys' scales can be is finite.
  [[nodiscard]] bool finite(index keys, index) const noexcept {
    A probe = A(0);
    for (index j = 0; j < keys; ++j) {
      const A least = value_scale_[j] * (A(0) - value_zero_[j]);
      const A most = value_scale_[j] * (A(255) - value_zero_[j]);
      probe += least * A(0) + most * A(0);
    }
    return probe == A(0);
  }

 private:
  static constexpr index word_bytes = 4;
  static constexpr index group_bytes = plan::group * word_bytes;
  static constexpr index lane_bytes = plan::lanes * word_bytes;
  /// Sums of bytes of so many channels stay within 32 bits.
  static constexpr index most_channels = 65536;

  /// Where the rows of the tokens `keys` are, and their scales side by side, zeros behind the last.
  template <class Run>
  static void gather(const Run& run, range keys, const std::uint8_t** row, A* scale,
                     A* zero) noexcept {
    for (index j = keys.begin; j < keys.end;) {
      const code_run r = run(j);
      const index at = j - keys.begin;
      const index count = (std::min)(r.count, keys.end - j);
      for (index i = 0; i < count; ++i) row[at + i] = r.codes + i * r.stride;
      std::copy_n(r.scale, count, scale + at);
      std::copy_n(r.zero, count, zero + at);
      j += count;
    }
    std::fill(scale + keys.size(), scale + plan::keys, A(0));
    std::fill(zero + keys.size(), zero + plan::keys, A(0));
  }

  /// Scores of the `rows` keys from `first` on, up to a tile of them.
  template <int Packets>
  HEED_INLINE void score_tiles(const A* q, const A* unit, index first, index rows,
                               A* s) const noexcept {
    constexpr index row = Packets * plan::lanes;
    session& tiles = *unit_;
    const index steps = depth_ / simd::tile_bytes;
    const std::uint8_t* const codes = k_ + first * k_stride_;
    simd::unroll<2 * Packets>([&](auto t) HEED_INLINE_LAMBDA { tiles.template zero<t()>(); });
    for (index k = 0; k < steps; ++k) {
      tiles.template load<6>(codes + k * simd::tile_bytes, k_stride_);
      simd::unroll<2 * Packets>([&](auto t) HEED_INLINE_LAMBDA {
        const index word = (t() / Packets * steps + k) * rows_of_tile;
        tiles.template load<7>(q + word * plan::group + t() % Packets * plan::lanes, group_bytes,
                               lane_bytes);
        tiles.template multiply_bytes<t(), 6, 7>();
      });
    }
    alignas(cache_line) std::int32_t sums[std::size_t{2 * rows_of_tile * row}];
    alignas(cache_line) A x[std::size_t{2 * rows_of_tile * row}];
    simd::unroll<2 * Packets>([&](auto t) HEED_INLINE_LAMBDA {
      tiles.template store<t()>(
          sums + t() / Packets * rows_of_tile * row + t() % Packets * plan::lanes,
          row * word_bytes);
    });
    for (index i = 0; i < 2 * rows_of_tile * row; ++i) x[i] = static_cast<A>(sums[i]);
    for (index j = 0; j < rows; ++j) {
      const P scale = simd::broadcast(key_scale_[first + j]);
      const P zero = simd::broadcast(-key_zero_[first + j]);
      simd::unroll<Packets>([&](auto p) HEED_INLINE_LAMBDA {
        const index at = p * plan::lanes;
        const P high = simd::load(x + j * row + at);
        const P low = simd::load(x + (rows_of_tile + j) * row + at);
        const P of_codes = simd::fmadd(high, simd::broadcast(A(256)), low);
        const P sum = simd::fmadd(zero, simd::load(unit + plan::group + at), of_codes);
        simd::store(s + j * plan::group + at,
                    simd::mul(sum, simd::mul(simd::load(unit + at), scale)));
      });
    }
  }

  /// Scores of one query that is packed as it is, with the bits of widened keys (kv_block.hpp).
  void widened_scores(const A* q, index head_dim, index keys, A* s) const noexcept {
    for (index j = 0; j < keys; ++j) {
      A sum = A(0);
      for (index c = 0; c < head_dim; ++c) {
        const A k = key_scale_[j] * (static_cast<A>(k_[j * k_stride_ + c]) - key_zero_[j]);
        sum = simd::fmadd_scalar(k, q[c * plan::group], sum);
      }
      s[j * plan::group] = sum;
    }
  }

  /// Weights times the values' scales, rounded, two keys in each word, in place, zeros up to whole
  /// tiles of keys; `zeros` are the sums of those weights times the values' zeros.
  template <int Packets>
  void round_to_pairs(A* p, index keys, P* zeros) const noexcept {
    constexpr index row = Packets * plan::lanes;
    const index padded = round_up(keys, key_step);
    for (index j = keys; j < padded; ++j) std::fill_n(p + j * plan::group, row, A(0));
    alignas(cache_line) A total[std::size_t{row}] = {};
    for (index first = 0; first < padded; first += key_step) {
      alignas(cache_line) A chain[std::size_t{row}] = {};
      for (index j = first; j < first + key_step; j += 2) {
        const A scale[2] = {value_scale_[j], value_scale_[j + 1]};
        const A zero[2] = {value_zero_[j], value_zero_[j + 1]};
        const A* const even = p + j * plan::group;
        const A* const odd = even + plan::group;
        std::uint32_t words[std::size_t{row}];
        for (index i = 0; i < row; ++i) {
          words[i] = simd::round_to_word(even[i] * scale[0], odd[i] * scale[1]);
        }
        for (index i = 0; i < row; ++i) {
          const A low = std::bit_cast<A>(words[i] << 16U);
          const A high = std::bit_cast<A>(words[i] & 0xFFFF0000U);
          chain[i] = simd::fmadd_scalar(high, zero[1], simd::fmadd_scalar(low, zero[0], chain[i]));
        }
        std::memcpy(p + j / 2 * plan::group, words, sizeof words);
      }
      for (index i = 0; i < row; ++i) total[i] += chain[i];
    }
    simd::unroll<Packets>(
        [&](auto r) HEED_INLINE_LAMBDA { zeros[r] = simd::load(total + r * plan::lanes); });
  }

  /// Up to Rows tiles of channels from c on.
  template <int Rows, int Packets>
  HEED_INLINE void value_tiles(const A* p, index keys, index c, index value_dim, const P* zeros,
                               const P* rescale, const running_values<A>& out) const noexcept {
    constexpr index row = Packets * plan::lanes;
    alignas(cache_line) A sums[std::size_t{Rows * rows_of_tile * row}];
    simd::tile_products<Rows, Packets>(*unit_, values_ + c * plan::keys, plan::keys, p, plan::group,
                                       ceil_div(keys, key_step), sums, row);
    for (index i = 0; i < Rows * rows_of_tile && c + i < value_dim; ++i) {
      simd::unroll<Packets>([&](auto r) HEED_INLINE_LAMBDA {
        const P sum = simd::load(sums + i * row + r * plan::lanes);
        out.add((c + i) * plan::group + r * plan::lanes, rescale[r], simd::sub(sum, zeros[r]));
      });
    }
  }

  const std::uint8_t* k_ = nullptr;
  index k_stride_ = 0;
  index depth_ = 0;  // the head dim in whole tiles
  const A* key_scale_ = nullptr;
  const A* key_zero_ = nullptr;
  const A* value_scale_ = nullptr;
  const A* value_zero_ = nullptr;
  const bfloat16* values_ = nullptr;  // codes, [value dim][keys of a block]
  prefetch_stream* stream_;
  session* unit_;
#endif
};

}  // namespace heed::inline HEED_TARGET::kernel
