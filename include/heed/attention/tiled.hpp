// SPDX-License-Identifier: MIT
// The tiled kernel over a call: tasks of a few groups of queries, batch by batch, head by head.
#pragma once

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/tiled/task.hpp"
#include "heed/parallel/scratch_tasks.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Rows cut into tasks of at most `most` rows, and at multiples of `block` positions where that is
/// not 0: the pattern's blocks of queries, which see the same keys.
class row_cut {
 public:
  constexpr row_cut(index most, index block) noexcept
      : most_(block > 0 && block < most ? block : most),
        block_(block > 0 ? block : most),
        by_position_(block > 0),
        pieces_(ceil_div(block_, most_)) {}

  /// Enough tasks for `rows` rows at any offset.
  [[nodiscard]] constexpr index tasks(index rows) const noexcept {
    return rows == 0 ? 0 : (ceil_div(rows, block_) + (by_position_ ? 1 : 0)) * pieces_;
  }
  /// Rows of task t of `count` rows, the first of them at position `offset`; perhaps none.
  [[nodiscard]] constexpr range rows(index t, index offset, index count) const noexcept {
    const index into = by_position_ ? (offset % block_ + block_) % block_ : 0;
    const index first = t / pieces_ * block_ - into;
    const index begin = first + t % pieces_ * most_;
    const index end = t % pieces_ + 1 == pieces_ ? first + block_ : begin + most_;
    return intersect({0, count}, {begin, end});
  }

 private:
  index most_;
  index block_;
  bool by_position_;
  index pieces_;
};

struct tiled_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    using A = typename Call::A;
    using plan = tile_plan<A>;
    const score_extents e = call.extents;
    const head_dims d{call.q.extent(3), call.out.extent(3)};
    // Blocks narrower than a packet would waste more than they let skip.
    const index together = call.program.query_block();
    const row_cut cut(plan::group * plan::groups_per_task, together < plan::lanes ? 0 : together);
    const index blocks = cut.tasks(e.queries);
    const index tasks = e.batch * e.heads * blocks;
    if (tasks == 0) return;

    workspace own;
    workspace& memory = call.options.scratch != nullptr ? *call.options.scratch : own;
    const auto allocate = [&](arena& c) noexcept {
      exact_scratch<A> scratch;
      scratch.allocate(c, d);
      return scratch;
    };
    for_each_with_scratch(exec, tasks, memory, allocate, [&](auto& scratch, index t) noexcept {
      const index b = t / (e.heads * blocks);
      const index h = t / blocks % e.heads;
      const index offset = call.options.offset[b];
      const range rows = cut.rows(t % blocks, offset, call.queries(b));
      if (rows.empty()) return;
      const index first = rows.begin;
      const tile where{b,
                       h,
                       h / call.group(),
                       {offset + rows.begin, offset + rows.end},
                       {0, call.source.length(b)},
                       offset};
      exact_task(call.program, call.source, where, d, call.query_rows(b, h, first),
                 call.output_rows(b, h, first), call.scale, call.lse_rows(b, h, first),
                 call.lse.stride(2), scratch);
    });
  }
};

}  // namespace heed::inline HEED_TARGET::detail
