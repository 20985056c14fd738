// SPDX-License-Identifier: MIT
// Exact attention of few queries: parallel over splits of the keys, each row of keys and values
// read once for all the queries that share it. How `attention` and `decode` run when there are too
// few queries to fill the lanes.
//
// Cost: the bytes of k and v, once; 4 N M D FLOPs a head. Scratch: the queries, and a partial
// result of value dim numbers per row and split of `split_plan::split` keys: with batch entries of
// several lengths each has splits for its own, and work and scratch follow their sum.
#pragma once

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/split_kv/task.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The rows that share a KV head, scaled, in the accumulator type; padding rows are 0.
template <class Call, class Rows, class A>
void pack_queries(const Call& call, const Rows& rows, A* q) noexcept {
  const index d = call.q.extent(3);
  for (index r = 0; r < split_plan<A>::padded(rows.size()); ++r) {
    if (r >= rows.size()) {
      for (index c = 0; c < d; ++c) q[r * d + c] = A(0);
      continue;
    }
    const tile where = rows.row(r, {});
    const auto from = call.query_rows(where.batch, where.head, where.rows().begin);
    for (index c = 0; c < d; ++c) q[r * d + c] = static_cast<A>(*from.at(0, c)) * call.scale;
  }
}

/// Writes back row r's output, divided by its sum after a sink has joined it, and its log-sum-exp.
template <class Call, class A>
void finish_row(const Call& call, const shared_rows& rows, index r, softmax_state<A>& state,
                const A* out) noexcept {
  const tile where = rows.row(r, {});
  const A factor = state.join_sink(call.program.sink_logit(where.head)) * state.normaliser();
  const index row = where.rows().begin;
  const auto to = call.output_rows(where.batch, where.head, row);
  for (index c = 0; c < call.out.extent(3); ++c) {
    *to.at(0, c) = static_cast<typename Call::output_scalar>(out[c] * factor);
  }
  if (A* lse = call.lse_rows(where.batch, where.head, row)) *lse = state.log_sum_exp();
}

/// Finishes the rows of a share, whose states and sums these are, rows of sums `stride` apart.
/// Where a row has overflowed attend(scratch) runs the share's keys again in `scratch`, with weights
/// times its factor.
template <class Call, class A, class Attend>
void finish_rows(const Call& call, const shared_rows& rows, softmax_state<A>* state, const A* out,
                 index stride, split_scratch<A> scratch, const Attend& attend) noexcept {
  const index channels = call.out.extent(3);
  bool again = false;
  for (index r = 0; r < rows.size(); ++r) {
    finish_row(call, rows, r, state[r], out + r * stride);
    again = again || state[r].overflowed(out + r * stride, channels);
  }
  if (!again) return;
  scratch.factor = small_weight<A>;
  start_split(scratch, rows.size(), channels);
  attend(scratch);
  const index out_stride = round_up(channels, split_plan<A>::lanes);
  for (index r = 0; r < rows.size(); ++r) {
    A* const sums = scratch.out + r * out_stride;
    add_lost(sums, scratch.lost + r * out_stride, channels);
    if (!state[r].overflowed(out + r * stride, channels)) continue;
    const tile where = rows.row(r, {});
    softmax_state<A>& redone = scratch.state[r];
    const A factor = redone.join_sink(call.program.sink_logit(where.head)) * redone.normaliser();
    const auto to = call.output_rows(where.batch, where.head, where.rows().begin);
    for (index c = 0; c < channels; ++c) mend(*to.at(0, c), sums[c] * (factor / scratch.factor));
  }
}

/// Where the work of a batch entry begins: its tasks, packed query rows and partial results, all KV
/// heads one after another.
struct batch_work {
  index tasks = 0;
  index queries = 0;
  index partials = 0;
};

/// Query rows that share a KV head of batch entry b, and the splits of its keys; no splits where it
/// has no queries.
struct share_size {
  index rows = 0;
  index splits = 0;

  template <class Call>
  share_size(const Call& call, index b) noexcept
      : rows(call.group() * call.queries(b)),
        splits(rows == 0 ? 0
                         : std::max<index>(1, ceil_div(call.source.length(b),
                                                       split_plan<typename Call::A>::split))) {}
};

/// How a call's scratch is laid out. Made without memory it counts; `place` then has it all.
template <class A>
struct split_layout {
  head_dims d;
  index most_rows = 0;  // of a share
  index workers = 1;
  batch_work all;
  std::size_t each = 0;  // of a worker

  batch_work* begin = nullptr;  // [batch]
  A* q = nullptr;
  A* out = nullptr;
  softmax_state<A>* state = nullptr;
  std::byte* worker = nullptr;

  template <class E, class Call>
  split_layout(const E& exec, const Call& call) noexcept
      : split_layout(exec, call, {call.q.extent(3), call.out.extent(3)}) {}
  /// For results that are not as wide as the output's rows.
  template <class E, class Call>
  split_layout(const E& exec, const Call& call, head_dims dims) noexcept : d(dims) {
    for (index b = 0; b < call.extents.batch; ++b) all = after(call, b, all);
    workers = worker_count(exec, all.tasks);
    arena measure;
    split_scratch<A>().allocate(measure, most_rows, d);
    each = measure.used();
  }
  /// What comes behind batch entry b, whose own begins at `at`.
  template <class Call>
  batch_work after(const Call& call, index b, batch_work at) noexcept {
    const share_size s(call, b);
    const index heads = s.splits == 0 ? 0 : call.extents.kv_heads;
    most_rows = (std::max)(most_rows, s.rows);
    return {at.tasks + heads * s.splits, at.queries + heads * split_plan<A>::padded(s.rows),
            at.partials + heads * s.splits * s.rows};
  }
  /// Bytes of all.
  std::size_t allocate(arena c, index batch) noexcept {
    begin = c.allocate<batch_work>(batch);
    q = c.allocate<A>(all.queries * d.head_dim);
    out = c.allocate<A>(all.partials * d.value_dim);
    state = c.allocate<softmax_state<A>>(all.partials);
    worker = c.allocate<std::byte>(static_cast<index>(each) * workers);
    return c.used();
  }
  template <class Call>
  void place(const Call& call, std::byte* block) noexcept {
    (void)allocate(arena(block), call.extents.batch);
    batch_work at;
    for (index b = 0; b < call.extents.batch; ++b) {
      begin[b] = at;
      at = after(call, b, at);
    }
  }
  /// The batch entry that task t belongs to: the last that begins at t or before.
  [[nodiscard]] index batch_of(index t, index batch) const noexcept {
    return std::upper_bound(begin, begin + batch, t,
                            [](index task, const batch_work& w) { return task < w.tasks; }) -
           begin - 1;
  }
};

struct split_kernel {
  /// Bytes of scratch that `run` takes.
  template <class E, class Call>
  [[nodiscard]] static std::size_t scratch_bytes(const E& exec, const Call& call) noexcept {
    split_layout<typename Call::A> layout(exec, call);
    return layout.all.tasks == 0 ? 0 : layout.allocate(arena(), call.extents.batch);
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
    split_layout<typename Call::A> layout(exec, call);
    if (layout.all.tasks == 0) return;
    layout.place(call, memory.reserve(layout.allocate(arena(), call.extents.batch)));
    pack(call, layout);
    attend(exec, call, layout, 0);
    finish(exec, call, layout);
  }

  /// The rows of every share, scaled.
  template <class Call, class A>
  static void pack(const Call& call, const split_layout<A>& layout) noexcept {
    for (index b = 0; b < call.extents.batch; ++b) {
      if (call.queries(b) == 0) continue;
      for (index h = 0; h < call.extents.kv_heads; ++h) {
        pack_queries(call, share(call, b, h), queries(call, layout, b, h));
      }
    }
  }

  /// All splits but the first `given` of each batch entry, whose partial results are there.
  template <class E, class Call, class A>
  static void attend(E& exec, const Call& call, const split_layout<A>& layout, index given) {
    using plan = split_plan<A>;
    const head_dims d = layout.d;
    const auto task = [&](index worker, index t) noexcept {
      const index b = layout.batch_of(t, call.extents.batch);
      const share_size size(call, b);
      const index at = t - layout.begin[b].tasks;
      if (at % size.splits < given) return;
      split_scratch<A> scratch = scratch_of(layout, worker);
      const index h = at / size.splits;
      const index first = at % size.splits * plan::split;
      const index end = (std::min)(first + plan::split, call.source.length(b));
      const range keys{first, (std::max)(first, end)};
      const index part = layout.begin[b].partials + at * size.rows;
      split_task(
          call.program, call.source, share(call, b, h), d, queries(call, layout, b, h), d.head_dim,
          keys, scratch,
          split_partial<A>{layout.state + part, layout.out + part * d.value_dim, d.value_dim});
    };
    // Splits next to each other stay with one worker, whose memory stream then runs on.
    const index grain = std::clamp<index>(layout.all.tasks / (layout.workers * 64), 1, 4);
    for_each_task(exec, layout.workers, layout.all.tasks, task, grain);
  }

  /// Merges the splits of every row and writes it.
  template <class E, class Call, class A>
  static void finish(E& exec, const Call& call, const split_layout<A>& layout) {
    const score_extents e = call.extents;
    const head_dims d = layout.d;
    for_each_task(exec, layout.workers, e.batch * e.kv_heads, [&](index worker, index s) noexcept {
      const index b = s / e.kv_heads;
      const index h = s % e.kv_heads;
      const share_size size(call, b);
      if (size.splits == 0) return;
      const index part = layout.begin[b].partials + h * size.splits * size.rows;
      softmax_state<A>* const states = layout.state + part;
      A* const outs = layout.out + part * d.value_dim;
      merge_splits(states, outs, size.rows, size.rows, size.splits, d.value_dim);
      const shared_rows rows = share(call, b, h);
      finish_rows(call, rows, states, outs, d.value_dim, scratch_of(layout, worker),
                  [&](split_scratch<A>& scratch) noexcept {
                    split_keys(call.program, call.source, rows, d, queries(call, layout, b, h),
                               d.head_dim, {0, call.source.length(b)}, scratch);
                  });
    });
  }

  template <class A>
  [[nodiscard]] static split_scratch<A> scratch_of(const split_layout<A>& layout,
                                                   index worker) noexcept {
    split_scratch<A> scratch;
    arena c(layout.worker + static_cast<std::size_t>(worker) * layout.each);
    scratch.allocate(c, layout.most_rows, layout.d);
    return scratch;
  }
  /// The rows of batch entry b that share KV head h, and where they are packed.
  template <class Call>
  [[nodiscard]] static shared_rows share(const Call& call, index b, index h) noexcept {
    return {b, h, h * call.group(), call.group(), 0, call.queries(b), call.options.offset[b]};
  }
  template <class Call, class A>
  [[nodiscard]] static A* queries(const Call& call, const split_layout<A>& layout, index b,
                                  index h) noexcept {
    const index rows = split_plan<A>::padded(share_size(call, b).rows);
    return layout.q + (layout.begin[b].queries + h * rows) * layout.d.head_dim;
  }
};

}  // namespace heed::inline HEED_TARGET::detail
