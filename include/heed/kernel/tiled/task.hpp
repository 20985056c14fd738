// SPDX-License-Identifier: MIT
// A task of the exact kernel: a few tiles of queries of one head against all the keys they may
// see.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/kernel/tiled/kv_block.hpp"
#include "heed/kernel/tiled/kv_block_bf16.hpp"
#include "heed/kernel/tiled/kv_block_int8.hpp"
#include "heed/kernel/tiled/kv_block_tiles.hpp"
#include "heed/kernel/tiled/query_tile.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// The scratch of one worker.
template <class A>
struct exact_scratch {
  using plan = tile_plan<A>;
  static_assert(plan::keys > 0 && plan::keys % keys_of_chain == 0 &&
                    plan::keys % plan::mask_step == 0 && plan::groups_per_task > 0,
                "heed: a tuned block of keys is whole chains of sums and whole steps of a mask");

  query_tile<A> groups[plan::groups_per_task];
  A* scores = nullptr;  // [keys of a block][group]
  block_copies<A> copies;

  void allocate(arena& c, head_dims d) noexcept {
    for (auto& g : groups) g.allocate(c, d.head_dim, d.value_dim);
    scores = c.allocate<A>(plan::keys * plan::group);
    copies.k = c.allocate<A>(plan::keys * d.head_dim);
    copies.v = c.allocate<A>(plan::keys * d.value_dim);
  }
};

/// What prefetches the rows of `next`, spread over the register tiles of `groups` groups with a
/// block. A head whose keys and values the second-level cache holds is there after its first task.
template <class A, class Source>
[[nodiscard]] prefetch_stream block_stream(const Source& source, const tile& where, range all,
                                           range next, head_dims d, index groups) noexcept {
  using plan = tile_plan<A>;
  constexpr auto key_bytes = static_cast<index>(sizeof(typename Source::key_scalar));
  constexpr auto value_bytes = static_cast<index>(sizeof(typename Source::value_scalar));
  const index row = d.head_dim * key_bytes + d.value_dim * value_bytes;
  if (next.empty() || all.size() * row <= plan::resident_bytes ||
      source.key_channel_stride() != 1 || source.value_channel_stride() != 1) {
    return prefetch_stream();
  }
  const index tiles =
      groups * (ceil_div(plan::keys, plan::key_step) + ceil_div(d.value_dim, plan::key_step));
  prefetch_stream stream(ceil_div(next.size() * row, 64 * tiles));
  const auto k = source.keys(where.batch, where.kv_head, next.begin);
  const auto v = source.values(where.batch, where.kv_head, next.begin);
  stream.add(k.data, k.stride * key_bytes, d.head_dim * key_bytes,
             (std::min)(k.count, next.size()));
  stream.add(v.data, v.stride * value_bytes, d.value_dim * value_bytes,
             (std::min)(v.count, next.size()));
  return stream;
}

/// Weights are multiplied with `factor` once their sums are taken.
template <class Block, class Program, class Source, class TQ, class A>
void attend_groups(const Program& program, const Source& source, const tile& where, head_dims d,
                   rectangle<const TQ> q, A scale, A factor, exact_scratch<A>& scratch) noexcept {
  using plan = tile_plan<A>;
  static_assert(kv_block<Block, A, TQ, Source> && kernel_program<Program>);
  [[maybe_unused]] typename Block::session session;
  range all{0, 0};
  const group_rows cut(where.queries.size(), plan::lanes, plan::group);
  for (index g = 0; g < cut.groups; ++g) {
    query_tile<A>& group = scratch.groups[g];
    group.where = where;
    group.where.queries = intersect(where.queries, {where.queries.begin + g * cut.rows,
                                                    where.queries.begin + (g + 1) * cut.rows});
    group.where.keys = program.visible_keys(group.where);
    all = hull(all, group.where.keys);
    group.start(d.value_dim);
    group.factor = factor;
    Block::pack(rectangle<const TQ>{q.at(g * cut.rows, 0), q.row, q.column},
                group.where.queries.size(), d.head_dim, scale, group.q);
  }
  // The first block from key `first` on in which a group may see anything: holes cost nothing.
  const auto next_block = [&](index first) noexcept {
    if constexpr (Program::template has<stage::mask>) {
      range rest{0, 0};
      for (index g = 0; g < cut.groups; ++g) {
        tile t = scratch.groups[g].where;
        t.keys = intersect(t.keys, {first, t.keys.end});
        if (!t.keys.empty()) rest = hull(rest, program.visible_keys(t));
      }
      return rest.empty() ? all.end : rest.begin / plan::keys * plan::keys;
    } else {
      return first;
    }
  };

  index after = 0;
  for (index first = all.begin / plan::keys * plan::keys; first < all.end; first = after) {
    after = next_block(first + plan::keys);
    range keys = intersect(all, {first, first + plan::keys});
    keys.begin -= keys.begin % Block::key_step;
    prefetch_stream stream = block_stream<A>(
        source, where, all, intersect(all, {after, after + plan::keys}), d, cut.groups);
    Block block(scale, stream, session);
    block.load(source, where, keys, d, scratch.copies);
    int known = -1;  // whether the block's values are finite: not yet asked
    const auto finite = [&]() noexcept {
      if (known < 0) known = block.finite(keys.size(), d.value_dim) ? 1 : 0;
      return known != 0;
    };

    for (index g = 0; g < cut.groups; ++g) {
      query_tile<A>& group = scratch.groups[g];
      tile t = group.where;
      t.keys = intersect(keys, group.where.keys);
      if constexpr (Program::template has<stage::mask>) t.keys = program.visible_keys(t);
      if (t.keys.empty()) continue;
      // Whole steps: a key beside the range is taken in, and masked, rather than left to weigh 0.
      t.keys.begin -= (t.keys.begin - keys.begin) % Block::key_step;
      t.keys.end = (std::min)(keys.end, t.keys.begin + round_up(t.keys.size(), Block::key_step));
      const coverage visible = program.coverage_in(t);
      if (visible == coverage::empty) continue;
      const Block part = block.from(t.keys.begin - keys.begin);
      attend_tile<A>(group, program, t, visible, part, d, scratch.scores, finite);
    }
  }
}

/// `where` names the head and the task's queries (keys: all of the source); q and out are the first
/// row's; `lse` may be null.
template <class Program, class Source, class TQ, class TO, class A>
void exact_task(const Program& program, const Source& source, const tile& where, head_dims d,
                rectangle<const TQ> q, rectangle<TO> out, A scale, A* lse, index lse_stride,
                exact_scratch<A>& scratch) noexcept {
  using plan = tile_plan<A>;
  const auto attend = [&](A factor) noexcept {
    const auto with = [&]<class Block>() noexcept {
      attend_groups<Block>(program, source, where, d, q, scale, factor, scratch);
    };
    // The widest unit that the target has and the source's rows fit.
    if constexpr (code_block<A>::template serves<TQ, Source>) {
      if (code_block<A>::fits(source, where, d)) {
        return with.template operator()<code_block<A>>();
      }
    } else if constexpr (matrix_block<A>::template serves<TQ, Source>) {
      if (matrix_block<A>::fits(source, where, d)) {
        return with.template operator()<matrix_block<A>>();
      }
    } else if constexpr (paired_block<A>::template serves<TQ, Source>) {
      if (paired_block<A>::fits(source, where, d)) {
        return with.template operator()<paired_block<A>>();
      }
    }
    with.template operator()<plain_block<A>>();
  };
  const group_rows cut(where.queries.size(), plan::lanes, plan::group);
  lane_numbers<A> odd[std::size_t{plan::groups_per_task}];
  bool again = false;
  attend(A(1));
  for (index g = 0; g < cut.groups; ++g) {
    query_tile<A>& group = scratch.groups[g];
    const index rows = group.where.queries.size();
    odd[g] = group.finish(d.value_dim, program.sink_logit(where.head));
    copy_tile<A, TO>({group.out, 1, plan::group}, {out.at(g * cut.rows, 0), out.row, out.column},
                     rows, d.value_dim);
    for (index i = 0; i < rows; ++i) again = again || odd[g].at[i] != A(0);
    if (lse != nullptr) {
      for (index i = 0; i < rows; ++i) {
        lse[(g * cut.rows + i) * lse_stride] = group.state(i).log_sum_exp();
      }
    }
  }
  if (!again) return;
  attend(small_weight<A>);
  for (index g = 0; g < cut.groups; ++g) {
    query_tile<A>& group = scratch.groups[g];
    (void)group.finish(d.value_dim, program.sink_logit(where.head));
    for (index i = 0; i < group.where.queries.size(); ++i) {
      if (odd[g].at[i] == A(0)) continue;
      for (index c = 0; c < d.value_dim; ++c) {
        mend(*out.at(g * cut.rows + i, c), group.out[c * plan::group + i]);
      }
    }
  }
}

}  // namespace heed::inline HEED_TARGET::kernel
