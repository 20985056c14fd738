// SPDX-License-Identifier: MIT
// For each query row the keys of largest q.k: a few rows at a time against all keys, or many
// against one group of keys after another.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/kernel/top_k/qk_rows.hpp"
#include "heed/kernel/top_k/qk_tiles.hpp"
#include "heed/kernel/top_k/sampled_top_k.hpp"
#include "heed/parallel/scratch_tasks.hpp"

namespace heed::inline HEED_TARGET::kernel {

template <class E, class TQ, class TK, class Seen, class To>
void largest_scores_of_few(E& exec, const view<const TQ, 4>& q, const view<const TK, 4>& k,
                           index count, index_order order, const Seen& seen, const To& to) {
  using A = accumulate_t<TQ>;
  const index n = q.extent(2);
  const index group = q.extent(1) / k.extent(1);
  constexpr index rows = split_plan<A>::tile_rows;
  const index steps = ceil_div(n, rows);
  struct scratch_type {
    row_scores_scratch<A> scored;
    running_largest<A> largest;
  };
  const auto allocate = [&](arena& c) noexcept {
    scratch_type s;
    s.scored.allocate(c, rows, k.extent(2), q.extent(3));
    s.largest.allocate(c, rows, count);
    return s;
  };
  workspace memory;
  for_each_with_scratch(exec, q.extent(0) * q.extent(1) * steps, memory, allocate,
                        [&](scratch_type& s, index t) noexcept {
                          const index b = t / steps / q.extent(1);
                          const index h = t / steps % q.extent(1);
                          const range i =
                              intersect({0, n}, {t % steps * rows, (t % steps + 1) * rows});
                          for (index r = 0; r < i.size(); ++r) {
                            s.scored.load(r, &q(b, h, i.begin + r, 0), q.stride(3), q.extent(3));
                          }
                          s.scored.score(i.size(), k, b, h / group, seen(i.end - 1));
                          s.largest.start(i.size());
                          for (index r = 0; r < i.size(); ++r) {
                            s.largest.take_row(r, s.scored.row(r), {0, seen(i.begin + r)});
                            s.largest.list(r, order, to(b, h, i.begin + r));
                          }
                        });
}

template <class E, class TQ, class TK, class Seen, class To>
void largest_scores_of_many(E& exec, const view<const TQ, 4>& q, const view<const TK, 4>& k,
                            index count, index_order order, const Seen& seen, const To& to) {
  using A = accumulate_t<TQ>;
  struct scratch_type {
    scored_rows_scratch<A> scored;
    sampled_largest<A> largest;
  };
  const index n = q.extent(2);
  const index d = q.extent(3);
  const index group = q.extent(1) / k.extent(1);
  constexpr index rows = scored_rows_scratch<A>::rows;
  const index steps = ceil_div(n, rows);
  const auto allocate = [&](arena& c) noexcept {
    scratch_type s;
    s.scored.allocate(c, d);
    s.largest.allocate(c, rows, count, seen(n - 1));
    return s;
  };
  workspace memory;
  for_each_with_scratch(
      exec, q.extent(0) * q.extent(1) * steps, memory, allocate,
      [&](scratch_type& s, index t) noexcept {
        const index b = t / steps / q.extent(1);
        const index h = t / steps % q.extent(1);
        // The last rows may see the most: long tasks first.
        const index first = (steps - 1 - t % steps) * rows;
        const TK* const keys = k.data() + b * k.stride(0) + h / group * k.stride(1);
        s.largest.list(
            {first, (std::min)(first + rows, n)}, order, seen,
            [&](range i, index step, index most, const auto& take) noexcept {
              each_scored_group(
                  s.scored, rectangle<const TQ>{&q(b, h, i.begin, 0), q.stride(2), q.stride(3)},
                  i.size(), rectangle<const TK>{keys, step * k.stride(2), k.stride(3)}, d, most,
                  [&](range at, const A* scores) noexcept {
                    for (index row = i.begin; row < i.end; ++row, scores += tile_plan<A>::group) {
                      take(row, scores, at);
                    }
                  });
            },
            [&](index row) { return to(b, h, row); });
      });
}

/// The `count` keys of largest q.k among the first `seen(i)` keys of row i, in `order`, ties to
/// the lower key, NaN as -inf; -1 where there are fewer; to `to(b, h, i)`. `seen` must not fall
/// with i. Cost 2 D FLOPs a pair; a worker's memory is O(count) for each row in its hands, for few
/// queries O(keys).
template <class E, class TQ, class TK, class Seen, class To>
void largest_scores(E& exec, const view<const TQ, 4>& q, const view<const TK, 4>& k, index count,
                    index_order order, const Seen& seen, const To& to) {
  check_listed("keys", k.extent(2));
  if (q.extent(0) * q.extent(1) * q.extent(2) == 0) return;
  if (q.extent(2) <= split_plan<accumulate_t<TQ>>::most_queries) {
    largest_scores_of_few(exec, q, k, count, order, seen, to);
  } else {
    largest_scores_of_many(exec, q, k, count, order, seen, to);
  }
}

}  // namespace heed::inline HEED_TARGET::kernel
