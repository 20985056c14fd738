// SPDX-License-Identifier: MIT
// The sizes of the kernel for few queries. `tuning<kernel::split_kv, A>` overrides keys,
// ahead_bytes, stretch_bytes, split, mask_step and most_queries; the others follow from the
// registers.
#pragma once

#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/tuning.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::kernel {

struct split_kv {
  template <class A>
  struct sizes;
};

template <class A>
struct split_kv::sizes {
  static constexpr index lanes = simd::lanes<A>;
  /// Keys whose scores are held at once: long runs of rows of one kind, which is what the memory's
  /// own prefetching wants.
  static constexpr index keys = 512;
  /// Rows are prefetched so many bytes ahead.
  static constexpr index ahead_bytes = 8192;
  /// Values are read in stretches of about so many bytes for each row of a full register tile,
  /// which stay in the first-level cache while all rows and channels are summed.
  static constexpr index stretch_bytes = 4096;
  /// Keys of a task. Splits start at multiples of it, whatever the threads.
  static constexpr index split = 2048;
  /// Register tile of the scores, a sum each for its (row, key) pairs, in whole packets of pairs:
  /// numbers that must be widened are so once for as many rows as commonly share them; others may
  /// as well be read twice, and memory gives more from four rows side by side than from two.
  static constexpr int pairs_of_tile = lanes > 8 ? lanes : 8;
  template <class T>
  static constexpr int rows_of_tile = lanes >= 16 || !std::is_same_v<T, A> ? 4 : 2;
  /// Register tile of the values: rows x packets of channels.
  static constexpr int tile_rows = 4;
  static constexpr int value_packets = simd::vector_registers == 32 ? 4 : 2;
  /// Rows of queries fill whole tiles; one row, or two, have tiles of their own.
  [[nodiscard]] static constexpr index padded(index rows) noexcept {
    return rows <= 2 ? rows : round_up(rows, tile_rows);
  }
  /// Keys a partly masked block is classified by.
  static constexpr index mask_step = 32;
  /// Fewest queries a head for which the tiled kernel, queries in the lanes, does less work.
  static constexpr index most_queries = lanes >= 8 ? lanes / 2 : 2;
};

template <class A>
using split_plan = tuning<split_kv, A>;

}  // namespace heed::inline HEED_TARGET::kernel
