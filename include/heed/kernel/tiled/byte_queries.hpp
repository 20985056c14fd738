// SPDX-License-Identifier: MIT
// Queries as fixed-point numbers of two signed bytes, for products with codes of 8 bits.
//
//   q_c ~ unit (256 high_c + low_c),   unit = max_c |q_c| / 32639,   high, low in -128 .. 127
//
// of each row, times the call's scale. Errs by half a unit a channel: max |q| / 65,278.
//
// | rows of [group]    | of each query                                                    |
// |--------------------|------------------------------------------------------------------|
// | words, then words  | four high bytes a word, then four low ones, of whole tiles' depth |
// | head dim           | the unit; -1 where the query is packed as it is                  |
// | head dim + 1       | sum_c 256 high_c + low_c                                         |
//
// As it is, its channels in the first `head dim` rows, is a query that has a NaN or an infinity, or
// is smaller than 2^-100 and not all zero. The words need round_up(head dim, 64) / 2 rows, at most
// `head dim`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/tiled/query_tile.hpp"
#include "heed/simd/tile_matrix.hpp"

namespace heed::inline HEED_TARGET::kernel {

#if HEED_HAS_TILE_UNIT || defined(HEED_EMULATED_TILES)

template <class A>
struct byte_queries {
  static constexpr index group = tile_plan<A>::group;

  [[nodiscard]] static const A* units(const A* packed, index head_dim) noexcept {
    return packed + head_dim * group;
  }
  [[nodiscard]] static const A* sums(const A* packed, index head_dim) noexcept {
    return packed + (head_dim + 1) * group;
  }

  template <class T>
  static void pack(rectangle<const T> q, index rows, index head_dim, A scale, A* to) noexcept {
    std::fill_n(to, (head_dim + query_tile<A>::more) * group, A(0));
    for (index i = 0; i < rows; ++i) {
      const auto scaled = [&](index c) noexcept { return static_cast<A>(*q.at(i, c)) * scale; };
      A most = A(0);
      A probe = A(0);  // not 0 where a channel is not finite
      for (index c = 0; c < head_dim; ++c) {
        most = (std::max)(most, std::abs(scaled(c)));
        probe += scaled(c) * A(0);
      }
      A& unit = to[head_dim * group + i];
      if (!(probe == A(0)) || (most > A(0) && most < least)) {
        for (index c = 0; c < head_dim; ++c) to[c * group + i] = scaled(c);
        unit = A(-1);
      } else if (most > A(0)) {
        unit = most / levels;
        to[(head_dim + 1) * group + i] = put_bytes(scaled, levels / most, head_dim, to + i);
      }
    }
  }

 private:
  static constexpr A levels = A(127 * 256 + 127);
  /// Units of smaller queries would have no digits left.
  static constexpr A least = A(0x1p-100);

  /// The bytes of one query; returns the sum of its numbers.
  template <class Scaled>
  [[nodiscard]] static A put_bytes(const Scaled& scaled, A steps, index head_dim, A* to) noexcept {
    const index words = round_up(head_dim, simd::tile_bytes) / 4;
    const auto put = [&](index word, index at, std::int32_t byte) noexcept {
      reinterpret_cast<unsigned char*>(to + word * group)[at] = static_cast<unsigned char>(byte);
    };
    std::int32_t sum = 0;
    for (index c = 0; c < head_dim; ++c) {
      const auto x = static_cast<std::int32_t>(std::nearbyint(scaled(c) * steps));
      const std::int32_t high = (x + 128) >> 8;
      put(c / 4, c % 4, high);
      put(words + c / 4, c % 4, x - 256 * high);
      sum += x;
    }
    return static_cast<A>(sum);
  }
};

#endif

}  // namespace heed::inline HEED_TARGET::kernel
