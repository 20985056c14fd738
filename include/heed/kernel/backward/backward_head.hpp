// SPDX-License-Identifier: MIT
// One query head backward: blocks of keys outside, groups of queries inside.
//
// A block's keys, values and the sums of their gradients stay in the second-level cache while the
// groups pass by; a group's dq is read and written once a block.
//
// Digits. Of more than `groups_together` groups, so many are added up from 0 and join what keys have
// received with a compensation term, as in online_softmax.hpp: dk and dv are off by (b + 5 + c n u) u
// of their terms' absolute sum, b = 64 the queries of a group and the groups, u = eps / 2.
#pragma once

#include <algorithm>
#include <limits>

#include "heed/core/target.hpp"
#include "heed/kernel/backward/backward_tile.hpp"
#include "heed/kernel/online_softmax.hpp"
#include "heed/kernel/tiled/kv_block.hpp"

namespace heed::inline HEED_TARGET::kernel {

struct backward_sizes {
  head_dims d;
  index queries = 0;
  index keys = 0;

  template <class A>
  [[nodiscard]] index groups() const noexcept {
    return ceil_div(queries, tile_plan<A>::group);
  }
  /// Numbers of a head's dq, group by group.
  template <class A>
  [[nodiscard]] index query_numbers() const noexcept {
    return groups<A>() * d.head_dim * tile_plan<A>::group;
  }
  template <class A>
  [[nodiscard]] index head_stride() const noexcept {
    return round_up(d.head_dim, tile_plan<A>::lanes);
  }
  template <class A>
  [[nodiscard]] index value_stride() const noexcept {
    return round_up(d.value_dim, tile_plan<A>::lanes);
  }
};

/// Every `parts`-th block of keys from the `part`-th on.
struct key_part {
  index part = 0;
  index parts = 1;

  /// f(range) for each of the part's blocks of `keys` keys.
  template <class F>
  void each_block(index keys, F&& f) const noexcept {
    constexpr index step = backward_plan::keys;
    for (index first = part * step; first < keys; first += parts * step) {
      f(range{first, (std::min)(first + step, keys)});
    }
  }
};

template <class A>
void add_into(A* sum, const A* part, index count) noexcept {
  for (index i = 0; i < count; ++i) sum[i] += part[i];
}

/// Groups of queries whose sums are plainly added up.
inline constexpr index groups_together = 16;

/// The scratch of one worker: one query head packed, its dq, and the sums of a kv head.
template <class A>
struct backward_scratch {
  using plan = tile_plan<A>;

  A* q = nullptr;                 // [groups][head dim][group], scaled
  A* d_out = nullptr;             // [groups][value dim][group]
  A* q_rows = nullptr;            // [queries][head stride], scaled
  A* d_out_rows = nullptr;        // [queries][value stride]
  A* shift = nullptr;             // [groups][group]
  A* delta = nullptr;             // [groups][group]
  bool* finite = nullptr;         // [groups]
  A* dq[2] = {nullptr, nullptr};  // [groups][head dim][group]
  A* dk = nullptr;                // [keys][head stride]
  A* dv = nullptr;                // [keys][value stride]
  A* part = nullptr;              // of a block's dk, then dv: what some groups add up to
  A* lost = nullptr;              // likewise: what rounding has taken from its sums
  block_copies<A> copies;
  backward_tiles<A> tiles;

  void allocate(arena& c, const backward_sizes& n, index query_sums) noexcept {
    const index rows = n.groups<A>() * plan::group;
    q = c.allocate<A>(rows * n.d.head_dim);
    d_out = c.allocate<A>(rows * n.d.value_dim);
    q_rows = c.allocate<A>(rows * n.head_stride<A>());
    d_out_rows = c.allocate<A>(rows * n.value_stride<A>());
    shift = c.allocate<A>(rows);
    delta = c.allocate<A>(rows);
    finite = c.allocate<bool>(n.groups<A>());
    for (index s = 0; s < query_sums; ++s) dq[s] = c.allocate<A>(rows * n.d.head_dim);
    dk = c.allocate<A>(n.keys * n.head_stride<A>());
    dv = c.allocate<A>(n.keys * n.value_stride<A>());
    part = c.allocate<A>(backward_plan::keys * (n.head_stride<A>() + n.value_stride<A>()));
    lost = c.allocate<A>(backward_plan::keys * (n.head_stride<A>() + n.value_stride<A>()));
    copies.k = c.allocate<A>(backward_plan::keys * n.d.head_dim);
    copies.v = c.allocate<A>(backward_plan::keys * n.d.value_dim);
    tiles.allocate(c);
  }

  void clear(A* sums, const backward_sizes& n) const noexcept {
    std::fill_n(sums, n.query_numbers<A>(), A(0));
  }
  /// The sums of a part's keys.
  void clear_keys(const backward_sizes& n, key_part own) const noexcept {
    own.each_block(n.keys, [&](range keys) noexcept {
      const index head = n.head_stride<A>(), value = n.value_stride<A>();
      std::fill_n(dk + keys.begin * head, keys.size() * head, A(0));
      std::fill_n(dv + keys.begin * value, keys.size() * value, A(0));
    });
  }

  /// Rows `first` to `first + rows` of q and d_out, group `g`.
  template <class TQ, class TD>
  void pack(index g, index rows, rectangle<const TQ> from_q, rectangle<const TD> from_d_out,
            A scale, const backward_sizes& n) noexcept {
    const index first = g * plan::group;
    A* const rows_q = q_rows + first * n.head_stride<A>();
    A* const rows_d = d_out_rows + first * n.value_stride<A>();
    pack_rows(from_q, rows, n.d.head_dim, n.head_stride<A>(), scale, rows_q,
              q + first * n.d.head_dim);
    pack_rows(from_d_out, rows, n.d.value_dim, n.value_stride<A>(), A(1), rows_d,
              d_out + first * n.d.value_dim);
    finite[g] = all_finite<A>(strided_rows<A>{rows_q, n.head_stride<A>()}, rows, n.d.head_dim) &&
                all_finite<A>(strided_rows<A>{rows_d, n.value_stride<A>()}, rows, n.d.value_dim);
    for (index i = rows; i < plan::group; ++i) {
      shift[first + i] = std::numeric_limits<A>::infinity();
      delta[first + i] = A(0);
    }
  }
  /// A block of `keys`, of which `part` and `lost` are to be sums.
  void begin_parts(range keys, const backward_sizes& n) const noexcept {
    const index count = keys.size() * (n.head_stride<A>() + n.value_stride<A>());
    std::fill_n(part, count, A(0));
    std::fill_n(lost, count, A(0));
  }
  [[nodiscard]] A* value_part(range keys, const backward_sizes& n) const noexcept {
    return part + keys.size() * n.head_stride<A>();
  }
  /// The part joins dk and dv; with `last` what rounding has taken, too.
  void join_parts(range keys, bool last, const backward_sizes& n) const noexcept {
    const index strides[] = {n.head_stride<A>(), n.value_stride<A>()};
    A* const sums[] = {dk + keys.begin * strides[0], dv + keys.begin * strides[1]};
    A* from = part;
    A* rest = lost;
    for (int i = 0; i < 2; ++i) {
      const index count = keys.size() * strides[i];
      add_to_past(sums[i], rest, A(1), from, count);
      if (last) add_lost(sums[i], rest, count);
      std::fill_n(from, count, A(0));
      from += count;
      rest += count;
    }
  }
  /// A row's log-sum-exp and delta. One that saw nothing has probabilities exp(s - infinity) = 0.
  void set_row(index i, A log_sum_exp, A row_delta) noexcept {
    const bool empty = log_sum_exp == softmax_state<A>::empty_max;
    shift[i] = empty ? std::numeric_limits<A>::infinity() : log_sum_exp;
    delta[i] = row_delta;
  }

  [[nodiscard]] backward_group<A> group(index g, A* sums, const backward_sizes& n) const noexcept {
    const index first = g * plan::group;
    return {q + first * n.d.head_dim,
            d_out + first * n.d.value_dim,
            q_rows + first * n.head_stride<A>(),
            d_out_rows + first * n.value_stride<A>(),
            shift + first,
            delta + first,
            sums + first * n.d.head_dim,
            finite[g]};
  }

 private:
  template <class T>
  static void pack_rows(rectangle<const T> from, index rows, index channels, index stride, A scale,
                        A* to_rows, A* to_lanes) noexcept {
    for (index i = 0; i < rows; ++i) {
      for (index c = channels; c < stride; ++c) to_rows[i * stride + c] = A(0);
    }
    copy_tile<T, A>(from, {to_rows, stride, 1}, rows, channels);
    if (scale != A(1)) {
      for (index i = 0; i < rows * stride; ++i) to_rows[i] *= scale;
    }
    if (rows < plan::group) std::fill_n(to_lanes, channels * plan::group, A(0));
    copy_tile<A, A>({to_rows, stride, 1}, {to_lanes, 1, plan::group}, rows, channels);
  }
};

/// The head `where` (queries: all of its positions; keys: all of the source) against the blocks of
/// `part`. `sums` is the head's dq before it is scaled; scratch.dk and dv get what the blocks' keys
/// receive.
template <class Program, class Gradient, class Source, class A>
void backward_head(const Program& program, const Gradient& gradient, const Source& source,
                   const tile& where, key_part part, const backward_scratch<A>& scratch, A* sums,
                   const backward_sizes& n) noexcept {
  using plan = tile_plan<A>;
  const index head_stride = n.head_stride<A>();
  const index value_stride = n.value_stride<A>();
  part.each_block(where.keys.end, [&](range keys) noexcept {
    backward_block<A> block;
    bool loaded = false;
    const bool in_parts = n.groups<A>() > groups_together;
    index met = 0;
    for (index g = 0; g < n.groups<A>(); ++g) {
      tile t = where;
      t.queries = intersect(where.queries, {where.queries.begin + g * plan::group,
                                            where.queries.begin + (g + 1) * plan::group});
      t.keys = keys;
      t.keys = program.visible_keys(t);
      if (t.keys.empty()) continue;
      const coverage visible = program.coverage_in(t);
      if (visible == coverage::empty) continue;
      if (!loaded) {
        block.k = block_rows<A, typename Source::key_scalar>(
            [&](index j) { return source.keys(where.batch, where.kv_head, j); }, keys, n.d.head_dim,
            source.key_channel_stride(), scratch.copies.k, block.k_stride);
        block.v = block_rows<A, typename Source::value_scalar>(
            [&](index j) { return source.values(where.batch, where.kv_head, j); }, keys,
            n.d.value_dim, source.value_channel_stride(), scratch.copies.v, block.v_stride);
        block.dk = in_parts ? scratch.part : scratch.dk + keys.begin * head_stride;
        block.dv = in_parts ? scratch.value_part(keys, n) : scratch.dv + keys.begin * value_stride;
        if (in_parts) scratch.begin_parts(keys, n);
        block.finite =
            all_finite<A>(strided_rows<A>{block.k, block.k_stride}, keys.size(), n.d.head_dim);
        loaded = true;
      }
      backward_tile(scratch.group(g, sums, n), program, gradient, t, visible,
                    block.from(t.keys.begin - keys.begin, head_stride, value_stride), n.d,
                    scratch.tiles);
      if (in_parts && ++met % groups_together == 0) scratch.join_parts(keys, false, n);
    }
    if (in_parts && loaded) scratch.join_parts(keys, true, n);
  });
}

}  // namespace heed::inline HEED_TARGET::kernel
