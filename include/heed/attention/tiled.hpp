// SPDX-License-Identifier: MIT
// The tiled kernel over a call: tasks of a few groups of queries, batch by batch, head by head; of
// packed sequences as many as each has rows for.
#pragma once

#include <algorithm>

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/tiled/task.hpp"

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
  template <class Call>
  [[nodiscard]] static row_cut cut_of(const Call& call) noexcept {
    using plan = tile_plan<typename Call::A>;
    // Blocks narrower than a packet would waste more than they let skip.
    const index together = call.program.query_block();
    return row_cut(plan::group * plan::groups_per_task, together < plan::lanes ? 0 : together);
  }
  template <class Call>
  [[nodiscard]] static index tasks_of(const Call& call, const row_cut& cut) noexcept {
    if (call.starts.empty()) {
      return call.extents.batch * call.extents.heads * cut.tasks(call.extents.queries);
    }
    index tasks = 0;
    for (index b = 0; b < call.extents.batch; ++b) tasks += cut.tasks(call.queries(b));
    return tasks * call.extents.heads;
  }
  /// Bytes of a worker's scratch.
  template <class Call>
  [[nodiscard]] static std::size_t worker_bytes(const Call& call) noexcept {
    arena measure;
    exact_scratch<typename Call::A>().allocate(measure, {call.q.extent(3), call.out.extent(3)});
    return measure.used();
  }
  /// Of packed sequences where each one's tasks begin, then the workers' scratch.
  template <class Call>
  static std::size_t allocate(const Call& call, index workers, arena c, index*& begin,
                              std::byte*& scratch) noexcept {
    begin = c.allocate<index>(call.starts.empty() ? 0 : call.extents.batch);
    scratch = c.allocate<std::byte>(static_cast<index>(worker_bytes(call)) * workers);
    return c.used();
  }
  /// Bytes of scratch that `run` takes.
  template <class E, class Call>
  [[nodiscard]] static std::size_t scratch_bytes(const E& exec, const Call& call) noexcept {
    index* begin = nullptr;
    std::byte* scratch = nullptr;
    return allocate(call, worker_count(exec, tasks_of(call, cut_of(call))), arena(), begin,
                    scratch);
  }

  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    scratch_lease lease(call.options.scratch);
    run(exec, call, lease.memory());
  }
  /// In scratch that the caller has the lease of.
  template <class E, class Call>
  static void run(E& exec, const Call& call, workspace& memory) {
    require_rows_in_parts<Call>();
    using A = typename Call::A;
    const score_extents e = call.extents;
    const head_dims d{call.q.extent(3), call.out.extent(3)};
    const row_cut cut = cut_of(call);
    const index tasks = tasks_of(call, cut);
    if (tasks == 0) return;
    const index workers = worker_count(exec, tasks);

    index* begin = nullptr;
    std::byte* block = nullptr;
    std::byte* const all = memory.reserve(allocate(call, workers, arena(), begin, block));
    (void)allocate(call, workers, arena(all), begin, block);
    if (!call.starts.empty()) {
      index at = 0;
      for (index b = 0; b < e.batch; ++b) {
        begin[b] = at;
        at += e.heads * cut.tasks(call.queries(b));
      }
    }
    const std::size_t each = worker_bytes(call);
    for_each_task(exec, workers, tasks, [&](index worker, index t) noexcept {
      exact_scratch<A> scratch;
      arena c(block + static_cast<std::size_t>(worker) * each);
      scratch.allocate(c, d);
      index b = 0;
      index at = t;
      index blocks = 0;
      if (call.starts.empty()) {
        blocks = cut.tasks(e.queries);
        b = t / (e.heads * blocks);
        at = t % (e.heads * blocks);
      } else {
        b = std::upper_bound(begin, begin + e.batch, t) - begin - 1;
        blocks = cut.tasks(call.queries(b));
        at = t - begin[b];
      }
      const index h = at / blocks;
      const index offset = call.options.offset[b];
      const range rows = cut.rows(at % blocks, offset, call.queries(b));
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
