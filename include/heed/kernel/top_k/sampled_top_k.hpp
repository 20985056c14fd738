// SPDX-License-Identifier: MIT
// The largest few of each of many rows of scores, where a sample of them tells beforehand what most
// need not be compared with again.
//
// The list of a row that starts empty takes nearly all of its first scores, and is cut again and
// again until it knows what is large. The largest of every 17th score say so at once.
#pragma once

#include <algorithm>
#include <cmath>

#include "heed/core/target.hpp"
#include "heed/kernel/top_k/streaming_top_k.hpp"

namespace heed::inline HEED_TARGET::kernel {

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

/// The lists of a task's rows.
template <class A>
class sampled_largest {
 public:
  /// For `count` of at most `keys` keys.
  void allocate(arena& c, index rows, index count, index keys) noexcept {
    count_ = count;
    const key_sample sample(count);
    samples_ = count > running_largest<A>::in_registers && sample.pays(keys);
    sampled_.allocate(c, samples_ ? rows : 0, sample.place);
    largest_.allocate(c, rows, count);
  }

  /// The keys of the `count` largest scores of each row in `order`, ties to the lower key, NaN as
  /// -inf, -1 where there are fewer, to `to(row)`. Row i sees its first `seen(i)` keys, which
  /// must not fall with i. `score(rows, step, keys, take)` calls take(row, scores, at) for all rows
  /// of each group `at` of the first `keys` of every `step`-th key, in order.
  template <class Seen, class Score, class To>
  void list(range rows, index_order order, const Seen& seen, const Score& score,
            const To& to) noexcept {
    const key_sample sample(count_);
    const auto take = [&](running_largest<A>& into, range i, index step, const auto& most) {
      score(i, step, most(i.end - 1), [&](index row, const A* scores, range at) noexcept {
        into.take(row - i.begin, scores, at.begin, (std::min)(at.end, most(row)) - at.begin);
      });
    };
    const auto list_rows = [&](range i) {
      for (index row = i.begin; row < i.end; ++row) {
        largest_.list(row - rows.begin, order, to(row));
      }
    };

    largest_.start(rows.size());
    const index seen_by_all = seen(rows.begin);
    if (samples_ && sample.pays(seen_by_all)) {
      sampled_.start(rows.size());
      take(sampled_, rows, key_sample::step, [&](index) { return key_sample::size(seen_by_all); });
      for (index r = 0; r < rows.size(); ++r) largest_.start_above(r, sampled_.bound(r));
    }
    take(largest_, rows, 1, seen);
    // Rows of which the sample promised too much, and those between them: once more without.
    range again{rows.end, rows.end};
    for (index row = rows.begin; row < rows.end; ++row) {
      if (largest_.complete(row - rows.begin) || seen(row) < count_) continue;
      again = {(std::min)(again.begin, row), row + 1};
    }
    list_rows({rows.begin, again.begin});
    list_rows({again.end, rows.end});
    if (again.empty()) return;
    largest_.start(again.size());
    take(largest_, again, 1, seen);
    for (index row = again.begin; row < again.end; ++row) {
      largest_.list(row - again.begin, order, to(row));
    }
  }

 private:
  index count_ = 0;
  bool samples_ = false;
  running_largest<A> sampled_;
  running_largest<A> largest_;
};

}  // namespace heed::inline HEED_TARGET::kernel
