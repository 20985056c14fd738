// SPDX-License-Identifier: MIT
// For each query row the keys of largest q.k: a few rows at a time against all keys, or many
// against one group of keys after another.
#pragma once

#include <algorithm>
#include <cmath>

#include "heed/parallel/scratch_tasks.hpp"
#include "heed/sparse/largest.hpp"
#include "heed/sparse/row_scores.hpp"
#include "heed/sparse/running_largest.hpp"
#include "heed/sparse/scored_rows.hpp"

namespace heed::detail {

template <class E, class TQ, class TK, class Seen, class To>
void largest_scores_of_few(E& exec, const view<const TQ, 4>& q, const view<const TK, 4>& k,
                           index count, const Seen& seen, const To& to) {
  using A = accumulate_t<TQ>;
  const index n = q.extent(2);
  const index group = q.extent(1) / k.extent(1);
  constexpr index rows = split_plan<A>::tile_rows;
  const index steps = ceil_div(n, rows);
  for_each_scored<A>(
      exec, q.extent(0) * q.extent(1) * steps, rows, k.extent(2), q.extent(3),
      [&](row_scores_scratch<A>& s, index t) noexcept {
        const index b = t / steps / q.extent(1);
        const index h = t / steps % q.extent(1);
        const range i = intersect({0, n}, {t % steps * rows, (t % steps + 1) * rows});
        for (index r = 0; r < i.size(); ++r) {
          s.load(r, &q(b, h, i.begin + r, 0), q.stride(3), q.extent(3));
        }
        s.score(i.size(), k, b, h / group, seen(i.end - 1));
        for (index r = 0; r < i.size(); ++r) {
          largest_indices(s.row(r), seen(i.begin + r), count, to(b, h, i.begin + r));
        }
      });
}

/// Which keys are looked at first, so that most of the others need no second look: the `place`-th
/// largest score of every `step`-th key is below the `count`-th largest of all but for one row in
/// ten thousand or so, if the order of the keys says nothing of their scores. It is four standard
/// deviations further down than the share of the sample in the largest.
struct key_sample {
  static constexpr index step = 17;  // what repeats does not do so in a prime
  index place = 0;

  explicit key_sample(index count) noexcept {
    const auto expected = static_cast<double>(count) / static_cast<double>(step);
    place = static_cast<index>(std::ceil(expected + 4 * std::sqrt(expected)));
  }
  /// Of `keys` keys.
  [[nodiscard]] static constexpr index size(index keys) noexcept { return keys / step; }
  /// Whether scoring the sample costs less than what it saves.
  [[nodiscard]] bool pays(index keys) const noexcept { return size(keys) >= 4 * place; }
};

template <class E, class TQ, class TK, class Seen, class To>
void largest_scores_of_many(E& exec, const view<const TQ, 4>& q, const view<const TK, 4>& k,
                            index count, const Seen& seen, const To& to) {
  using A = accumulate_t<TQ>;
  using lists = running_largest<A>;
  struct scratch_type {
    scored_rows_scratch<A> scored;
    lists sampled;
    lists largest;
  };
  const index n = q.extent(2);
  const index d = q.extent(3);
  const index group = q.extent(1) / k.extent(1);
  constexpr index rows = scored_rows_scratch<A>::rows;
  const index steps = ceil_div(n, rows);
  const key_sample sample(count);
  const bool samples = count > lists::handful && sample.pays(seen(n - 1));
  const auto carve = [&](carver& c) noexcept {
    scratch_type s;
    s.scored.carve(c, d);
    s.sampled.carve(c, samples ? rows : 0, sample.place);
    s.largest.carve(c, rows, count);
    return s;
  };
  workspace memory;
  for_each_with_scratch(
      exec, q.extent(0) * q.extent(1) * steps, memory, carve,
      [&](scratch_type& s, index t) noexcept {
        const index b = t / steps / q.extent(1);
        const index h = t / steps % q.extent(1);
        // The last rows may see the most: long tasks first.
        const index first = (steps - 1 - t % steps) * rows;
        const range all{first, std::min(first + rows, n)};
        // Every `step`-th key up to `most(row)` joins the rows' lists.
        const auto take = [&](lists& into, range i, index step, const auto& most) noexcept {
          const rectangle<const TK> keys{k.data() + b * k.stride(0) + h / group * k.stride(1),
                                         step * k.stride(2), k.stride(3)};
          each_scored_group(
              s.scored, rectangle<const TQ>{&q(b, h, i.begin, 0), q.stride(2), q.stride(3)},
              i.size(), keys, d, most(i.end - 1), [&](range at, const A* scores) noexcept {
                const bool seen_by_all = at.end <= most(i.begin);
                for (index r = 0; r < i.size(); ++r, scores += tile_plan<A>::group) {
                  const index end = seen_by_all ? at.end : std::min(at.end, most(i.begin + r));
                  into.take(r, scores, at.begin, end - at.begin);
                }
              });
        };
        const auto leave = [&](index r, index i) noexcept { s.largest.descending(r, to(b, h, i)); };

        s.largest.start(all.size());
        if (samples && sample.pays(seen(first))) {
          s.sampled.start(all.size());
          take(s.sampled, all, key_sample::step,
               [&](index) { return key_sample::size(seen(first)); });
          for (index r = 0; r < all.size(); ++r) s.largest.start_above(r, s.sampled.bound(r));
        }
        take(s.largest, all, 1, seen);
        // Rows of which the sample promised too much, and those between them: once more without.
        range again{0, 0};
        for (index i = first; i < all.end; ++i) {
          const bool complete = s.largest.complete(i - first) || seen(i) < count;
          if (!complete) again = hull(again, {i, i + 1});
        }
        for (index i = first; i < all.end; ++i) {
          if (i < again.begin || i >= again.end) leave(i - first, i);
        }
        if (again.empty()) return;
        s.largest.start(again.size());
        take(s.largest, again, 1, seen);
        for (index i = again.begin; i < again.end; ++i) leave(i - again.begin, i);
      });
}

/// The `count` keys of largest q.k among the first `seen(i)` keys of row i, largest first, ties to
/// the lower key, NaN as -inf; -1 where there are fewer; to `to(b, h, i)`. `seen` must not fall
/// with i. Cost 2 D FLOPs a pair; a worker's memory is O(count) for each row in its hands, for few
/// queries O(keys).
template <class E, class TQ, class TK, class Seen, class To>
void largest_scores(E& exec, const view<const TQ, 4>& q, const view<const TK, 4>& k, index count,
                    const Seen& seen, const To& to) {
  check_listed("keys", k.extent(2));
  if (q.extent(0) * q.extent(1) * q.extent(2) == 0) return;
  if (q.extent(2) <= split_plan<accumulate_t<TQ>>::most_queries) {
    largest_scores_of_few(exec, q, k, count, seen, to);
  } else {
    largest_scores_of_many(exec, q, k, count, seen, to);
  }
}

}  // namespace heed::detail
