// SPDX-License-Identifier: MIT
// Which rows selected each block of keys: an inverted index of a selection, some rows at a time.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"
#include "heed/sparse/gather/tuning.hpp"

namespace heed::inline HEED_TARGET::detail {

/// How many heads and rows are worked on at a time: all rows of some heads, or some rows of one.
/// A pass has enough rows for the keys of a block to be worth reading, no more parts than may be,
/// and otherwise few, so that caches hold them until they merge.
template <class A>
struct block_pass {
  using plan = tuning<selected_blocks, A>;
  index heads;
  index rows;

  /// `row_bytes`: of the parts of a row.
  constexpr block_pass(index all_heads, index all_rows, index blocks, index selected,
                       index row_bytes) noexcept
      : heads(1), rows(all_rows) {
    const index bytes = std::max<index>(1, row_bytes);
    const index wanted = ceil_div(blocks * plan::rows_a_block, std::max<index>(1, selected));
    const index most = std::max<index>(
        1, (std::min)((std::max)(wanted, plan::cached_bytes / bytes), plan::most_bytes / bytes));
    if (all_rows > most) {
      rows = ceil_div(all_rows, ceil_div(all_rows, most));
    } else if (all_rows > 0) {
      heads = std::clamp<index>(most / all_rows, 1, std::max<index>(1, all_heads));
    }
  }
};

template <class Call, class I>
[[nodiscard]] block_pass<typename Call::A> passes_of(const Call& call,
                                                     const view<const I, 4>& selection,
                                                     index block) noexcept {
  const score_extents e = call.extents;
  const index selected = selection.extent(3);
  constexpr auto size = static_cast<index>(sizeof(typename Call::A));
  return {e.batch * e.heads, e.queries, ceil_div(e.keys, block), selected,
          selected * (call.out.extent(3) + 3) * size};
}

/// Which rows selected each block, of some rows of one head.
struct block_lists {
  struct task {
    index block;
    range listed;  // rows in the block's list
  };

  index* begin = nullptr;         // [blocks + 1]: where each block's list begins
  listed_token* rows = nullptr;   // [listed]: the lists, end to end
  listed_token* place = nullptr;  // [rows][indices]: a row's indices, ascending, then -1; once
                                  // inverted, the row's places in their lists
  task* tasks = nullptr;          // [most_tasks]
  index task_count = 0;

  /// Each block with a row has a task more than its whole ones, at the most.
  [[nodiscard]] static constexpr index most_tasks(index blocks, index listed, index most) noexcept {
    return (std::min)(blocks, listed) + listed / most;
  }
  void allocate(arena& c, index blocks, index listed, index most) noexcept {
    begin = c.allocate<index>(blocks + 1);
    rows = c.allocate<listed_token>(listed);
    place = c.allocate<listed_token>(listed);
    tasks = c.allocate<task>(most_tasks(blocks, listed, most));
  }

  /// `place` holds the indices of rows `r`, the first at place 0; tasks have `most` rows.
  void invert(range r, index selected, index blocks, index most) noexcept {
    std::fill_n(begin, blocks + 1, index{0});
    for (index n = 0; n < r.size() * selected; ++n) {
      if (place[n] >= 0) ++begin[place[n] + 1];
    }
    for (index n = 0; n < blocks; ++n) begin[n + 1] += begin[n];
    for (index i = r.begin; i < r.end; ++i) {
      listed_token* const of_row = place + (i - r.begin) * selected;
      for (index c = 0; c < selected && of_row[c] >= 0; ++c) {
        const index at = begin[of_row[c]]++;
        rows[at] = static_cast<listed_token>(i);
        of_row[c] = static_cast<listed_token>(at);
      }
    }
    for (index n = blocks; n > 0; --n) begin[n] = begin[n - 1];
    begin[0] = 0;
    task_count = 0;
    for (index n = 0; n < blocks; ++n) {
      for (index first = begin[n]; first < begin[n + 1]; first += most) {
        tasks[task_count++] = {n, {first, (std::min)(first + most, begin[n + 1])}};
      }
    }
  }
};

}  // namespace heed::inline HEED_TARGET::detail
