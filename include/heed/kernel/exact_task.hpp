// SPDX-License-Identifier: MIT
// A task of the exact kernel: a few groups of queries of one head against all the keys they may
// see.
//
// Keys and values are read where they lie when their rows are in the accumulator type with channels
// next to each other; else a block of them is brought to that form, once for the task's groups.
#pragma once

#include <type_traits>

#include "heed/kernel/copy_tile.hpp"
#include "heed/kernel/query_group.hpp"
#include "heed/kernel/source.hpp"

namespace heed {

/// The scratch of one worker.
template <class A>
struct exact_scratch {
  using plan = tile_plan<A>;

  query_group<A> groups[plan::groups_per_task];
  A* scores = nullptr;  // [keys of a block][group]
  A* k = nullptr;       // a copied block
  A* v = nullptr;

  void carve(carver& c, head_dims d) noexcept {
    for (auto& g : groups) g.carve(c, d.head_dim, d.value_dim);
    scores = c.take<A>(plan::keys * plan::group);
    k = c.take<A>(plan::keys * d.head_dim);
    v = c.take<A>(plan::keys * d.value_dim);
  }
};

namespace detail {

/// Rows of tokens `keys` as the kernel wants them: in place, or copied to `copy`. `run(j)` is the
/// source's run from token j on.
template <class A, class T, class Run>
const A* block_rows(const Run& run, range keys, index channels, index channel_stride, A* copy,
                    index& stride) noexcept {
  row_run<T> r = run(keys.begin);
  if constexpr (std::is_same_v<T, A>) {
    const bool aliases =
        (r.stride * static_cast<index>(sizeof(A))) % tile_plan<A>::aliasing_bytes == 0 &&
        keys.size() > 1;
    if (channel_stride == 1 && r.count >= keys.size() && !aliases) {
      stride = r.stride;
      return r.data;
    }
  }
  stride = channels;
  for (index j = keys.begin; j < keys.end;) {
    const index count = r.count < keys.end - j ? r.count : keys.end - j;
    copy_tile<T, A>({r.data, r.stride, channel_stride},
                    {copy + (j - keys.begin) * channels, channels, 1}, count, channels);
    j += count;
    if (j < keys.end) r = run(j);
  }
  return copy;
}

}  // namespace detail

/// `where` names the head and the task's queries (keys: all of the source); q and out are the first
/// row's; `lse` may be null.
template <class Program, class Source, class TQ, class TO, class A>
void exact_task(const Program& program, const Source& source, const tile& where, head_dims d,
                rectangle<const TQ> q, rectangle<TO> out, A scale, A* lse, index lse_stride,
                exact_scratch<A>& scratch) noexcept {
  using plan = tile_plan<A>;
  using TK = typename Source::key_scalar;
  using TV = typename Source::value_scalar;

  range all{0, 0};
  const index groups = ceil_div(where.queries.size(), plan::group);
  for (index g = 0; g < groups; ++g) {
    query_group<A>& group = scratch.groups[g];
    group.where = where;
    group.where.queries = intersect(where.queries, {where.queries.begin + g * plan::group,
                                                    where.queries.begin + (g + 1) * plan::group});
    group.where.keys = program.visible_keys(group.where);
    all = hull(all, group.where.keys);
    group.start(d.value_dim);
    const index rows = group.where.queries.size();
    if (rows < plan::group) {
      for (index i = 0; i < d.head_dim * plan::group; ++i) group.q[i] = A(0);
    }
    copy_tile<TQ, A>({q.at(g * plan::group, 0), q.row, q.column}, {group.q, 1, plan::group}, rows,
                     d.head_dim);
    for (index i = 0; i < d.head_dim * plan::group; ++i) group.q[i] *= scale;
  }

  for (index first = all.begin / plan::keys * plan::keys; first < all.end; first += plan::keys) {
    const range keys = intersect(all, {first, first + plan::keys});
    key_block<A> block;
    block.k = detail::block_rows<A, TK>(
        [&](index j) { return source.keys(where.batch, where.kv_head, j); }, keys, d.head_dim,
        source.key_channel_stride(), scratch.k, block.k_stride);
    block.v = detail::block_rows<A, TV>(
        [&](index j) { return source.values(where.batch, where.kv_head, j); }, keys, d.value_dim,
        source.value_channel_stride(), scratch.v, block.v_stride);
    int known = -1;  // whether the block's values are finite: not yet asked
    const auto finite = [&]() noexcept {
      if (known < 0)
        known = detail::all_finite<A>(block.v, keys.size(), block.v_stride, d.value_dim);
      return known != 0;
    };

    for (index g = 0; g < groups; ++g) {
      query_group<A>& group = scratch.groups[g];
      tile t = group.where;
      t.keys = intersect(keys, group.where.keys);
      if (t.keys.empty()) continue;
      const coverage visible = program.coverage_in(t);
      if (visible == coverage::empty) continue;
      key_block<A> part = block;
      part.k += (t.keys.begin - keys.begin) * block.k_stride;
      part.v += (t.keys.begin - keys.begin) * block.v_stride;
      switch (ceil_div(t.queries.size(), plan::lanes)) {
        case 1:
          attend_tile<A, 1>(group, program, t, visible, part, d, scratch.scores, finite);
          break;
        case 2:
          attend_tile<A, 2>(group, program, t, visible, part, d, scratch.scores, finite);
          break;
        default:
          attend_tile<A, 3>(group, program, t, visible, part, d, scratch.scores, finite);
      }
    }
  }

  for (index g = 0; g < groups; ++g) {
    query_group<A>& group = scratch.groups[g];
    const index rows = group.where.queries.size();
    group.finish(d.value_dim, program.sink_logit(where.head));
    copy_tile<A, TO>({group.out, 1, plan::group}, {out.at(g * plan::group, 0), out.row, out.column},
                     rows, d.value_dim);
    if (lse != nullptr) {
      for (index i = 0; i < rows; ++i) {
        lse[(g * plan::group + i) * lse_stride] = group.state(i).log_sum_exp();
      }
    }
  }
}

}  // namespace heed
