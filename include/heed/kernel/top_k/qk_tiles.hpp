// SPDX-License-Identifier: MIT
// Scores of a block of query rows against all keys, some packets of keys at a time: keys in the
// lanes, so that a row's scores lie side by side, and no row of them is ever whole.
//
// Keys are packed once for a block of rows, and stay in the first-level cache while the rows pass
// by; meanwhile the next ones are prefetched.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/tiled/kv_block.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// A worker's scratch.
template <class A>
struct scored_rows_scratch {
  using plan = tile_plan<A>;
  /// As many rows as meet the keys together.
  static constexpr index rows = 256;

  A* q = nullptr;       // rows whose own cannot be read in place
  A* keys = nullptr;    // [head dim][group]
  A* scores = nullptr;  // [rows][group]

  void allocate(arena& c, index head_dim, index most_rows = rows) noexcept {
    q = c.allocate<A>(most_rows * head_dim);
    keys = c.allocate<A>(head_dim * plan::group);
    scores = c.allocate<A>(most_rows * plan::group);
  }
};

/// use(keys, scores) for the groups of the keys [0, seen), `scores` being [rows][group]: q.k of as
/// many rows as the scratch is for, which `use` may change.
template <class A, class TQ, class TK, class Use>
void each_scored_group(const scored_rows_scratch<A>& s, const rectangle<const TQ>& q, index rows,
                       const rectangle<const TK>& k, index head_dim, index seen,
                       Use&& use) noexcept {
  using plan = tile_plan<A>;
  index stride = 0;
  const A* const row =
      block_rows<A, TQ>([&](index i) { return row_run<TQ>{q.at(i, 0), q.row, rows - i}; },
                        {0, rows}, head_dim, q.column, s.q, stride);
  for (index first = 0; first < seen; first += plan::group) {
    const range at{first, (std::min)(seen, first + plan::group)};
    plain_block<A>::pack(rectangle<const TK>{k.at(first, 0), k.row, k.column}, at.size(), head_dim,
                         A(1), s.keys);
    prefetch_stream stream;
    if (k.column == 1) {
      constexpr auto size = static_cast<index>(sizeof(TK));
      stream.add(k.at(at.end, 0), k.row * size, head_dim * size,
                 (std::min)(seen - at.end, plan::group));
    }
    in_packets<A>(at.size(), [&](auto packets) noexcept {
      simd::packet<A> top[std::size_t{packets()}];
      for (auto& t : top) t = simd::zero<A>();
      score_tile<A, packets()>(s.keys, row, stride, head_dim, rows, s.scores, top, stream);
    });
    use(at, s.scores);
  }
}

}  // namespace heed::inline HEED_TARGET::kernel
