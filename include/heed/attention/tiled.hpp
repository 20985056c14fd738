// SPDX-License-Identifier: MIT
// The tiled kernel over a call: tasks of a few groups of queries, batch by batch, head by head.
#pragma once

#include "heed/attention/door.hpp"
#include "heed/kernel/exact_task.hpp"

namespace heed::detail {

struct tiled_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    using A = typename Call::A;
    using plan = tile_plan<A>;
    const score_extents e = call.extents;
    const head_dims d{call.q.extent(3), call.out.extent(3)};
    constexpr index rows = plan::group * plan::groups_per_task;
    const index blocks = ceil_div(e.queries, rows);
    const index tasks = e.batch * e.heads * blocks;
    if (tasks == 0) return;

    const index workers = worker_count(exec, tasks);
    carver measure;
    exact_scratch<A>().carve(measure, d);
    workspace own;
    workspace& memory = call.options.scratch != nullptr ? *call.options.scratch : own;
    std::byte* const block = memory.reserve(measure.used() * static_cast<std::size_t>(workers));

    for_each_task(exec, workers, tasks, [&](index worker, index t) noexcept {
      exact_scratch<A> scratch;
      carver c(block + static_cast<std::size_t>(worker) * measure.used());
      scratch.carve(c, d);
      const index b = t / (e.heads * blocks);
      const index h = t / blocks % e.heads;
      const index first = t % blocks * rows;
      const index end = std::min(first + rows, call.queries(b));
      if (first >= end) return;
      const index offset = call.options.offset[b];
      const tile where{
          b,     h, h / call.group(), {offset + first, offset + end}, {0, call.source.length(b)},
          offset};
      exact_task(call.program, call.source, where, d, call.query_rows(b, h, first),
                 call.output_rows(b, h, first), call.scale, call.lse_rows(b, h, first),
                 call.lse.stride(2), scratch);
    });
  }
};

}  // namespace heed::detail
