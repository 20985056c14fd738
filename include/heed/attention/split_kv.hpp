// SPDX-License-Identifier: MIT
// Exact attention of few queries: parallel over splits of the keys, each row of keys and values
// read once for all the queries that share it. How `attention` and `decode` run when there are too
// few queries to fill the lanes.
//
// Cost: the bytes of k and v, once; 4 N M D FLOPs a head. Scratch: the queries, and a partial
// result of value dim numbers per row and split of `split_plan::split` keys.
#pragma once

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/split_kv/task.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The rows that share a KV head, scaled, in the accumulator type; padding rows are 0.
template <class Call, class A>
void pack_queries(const Call& call, const shared_rows& rows, A* q) noexcept {
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

/// Row r's output, divided by its sum after a sink has joined it, and its log-sum-exp go home.
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

struct split_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    using A = typename Call::A;
    using plan = split_plan<A>;
    const score_extents e = call.extents;
    const head_dims d{call.q.extent(3), call.out.extent(3)};
    if (e.batch * e.heads * e.queries == 0) return;
    const index rows = call.group() * e.queries;
    const index splits = std::max<index>(1, ceil_div(e.keys, plan::split));
    const index shares = e.batch * e.kv_heads;
    const index tasks = shares * splits;
    const index workers = worker_count(exec, tasks);

    arena measure;
    split_scratch<A>().allocate(measure, rows, d);
    const std::size_t each = measure.used();
    const index q_rows = split_plan<A>::padded(rows);
    const auto allocate = [&](arena c, A*& q, A*& out, softmax_state<A>*& state, std::byte*& own) {
      q = c.allocate<A>(shares * q_rows * d.head_dim);
      out = c.allocate<A>(tasks * rows * d.value_dim);
      state = c.allocate<softmax_state<A>>(tasks * rows);
      own = c.allocate<std::byte>(static_cast<index>(each) * workers);
      return c.used();
    };
    A* q = nullptr;
    A* out = nullptr;
    softmax_state<A>* state = nullptr;
    std::byte* scratch_block = nullptr;
    workspace own;
    workspace& memory = call.options.scratch != nullptr ? *call.options.scratch : own;
    std::byte* const block = memory.reserve(allocate(arena(), q, out, state, scratch_block));
    (void)allocate(arena(block), q, out, state, scratch_block);

    const auto share = [&](index s) {
      const index b = s / e.kv_heads;
      const index h = s % e.kv_heads;
      return shared_rows{
          b, h, h * call.group(), call.group(), 0, call.queries(b), call.options.offset[b]};
    };
    for (index s = 0; s < shares; ++s) pack_queries(call, share(s), q + s * q_rows * d.head_dim);

    const auto task = [&](index worker, index t) noexcept {
      split_scratch<A> scratch;
      arena c(scratch_block + static_cast<std::size_t>(worker) * each);
      scratch.allocate(c, rows, d);
      const index s = t / splits;
      const index first = t % splits * plan::split;
      const index end = std::min(first + plan::split, call.source.length(s / e.kv_heads));
      const range keys{first, std::max(first, end)};
      split_task(call.program, call.source, share(s), d, q + s * q_rows * d.head_dim, d.head_dim,
                 keys, scratch,
                 split_partial<A>{state + t * rows, out + t * rows * d.value_dim, d.value_dim});
    };
    // Splits next to each other stay with one worker, whose memory stream then runs on.
    const index grain = std::clamp<index>(tasks / (workers * 64), 1, 4);
    for_each_task(exec, workers, tasks, task, grain);

    for_each_task(exec, workers, shares, [&](index, index s) noexcept {
      softmax_state<A>* const states = state + s * splits * rows;
      A* const outs = out + s * splits * rows * d.value_dim;
      const shared_rows shared = share(s);
      merge_splits(states, outs, shared.size(), rows, splits, d.value_dim);
      for (index r = 0; r < shared.size(); ++r) {
        finish_row(call, shared, r, states[r], outs + r * d.value_dim);
      }
    });
  }
};

}  // namespace heed::inline HEED_TARGET::detail
