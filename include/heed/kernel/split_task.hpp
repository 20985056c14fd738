// SPDX-License-Identifier: MIT
// A task of the few-query kernel: all query rows of one KV head against one split of its keys, and
// the merge of the splits.
//
// A split leaves a partial result a row: softmax state and output not divided by the sum. Splits
// start at fixed keys and merge in their order, so that threads change no bit. Dao, Haziza, Massa,
// Sizov 2023, "Flash-Decoding for long-context inference".
#pragma once

#include "heed/core/workspace.hpp"
#include "heed/kernel/copy_tile.hpp"
#include "heed/kernel/plain_block.hpp"
#include "heed/kernel/split_tile.hpp"

namespace heed {

/// The query rows that share a KV head: `group` heads x `queries` rows, head by head.
struct shared_rows {
  index batch = 0;
  index kv_head = 0;
  index first_head = 0;  // query heads of the KV head, or some of them
  index group = 1;
  index first_query = 0;  // rows of each
  index queries = 1;
  index offset = 0;  // position of the query tensor's row 0

  [[nodiscard]] constexpr index size() const noexcept { return group * queries; }
  /// Row r as a tile of one query against `keys`.
  [[nodiscard]] constexpr tile row(index r, range keys) const noexcept {
    const index p = offset + first_query + r % queries;
    return {batch, first_head + r / queries, kv_head, {p, p + 1}, keys, offset};
  }
};

/// Where a split's partial results go: `rows` states, and rows of the output `stride` apart.
template <class A>
struct split_partial {
  softmax_state<A>* state = nullptr;
  A* out = nullptr;
  index stride = 0;
};

/// The scratch of one worker.
template <class A>
struct split_scratch {
  using plan = split_plan<A>;

  A* scores = nullptr;   // [rows][keys of a block]
  A* rescale = nullptr;  // [rows]
  A* out = nullptr;      // [rows][value dim, whole packets]
  A* k = nullptr;        // a copied block
  A* v = nullptr;
  softmax_state<A>* state = nullptr;

  /// Rows are padded to whole register tiles.
  [[nodiscard]] static constexpr index padded(index rows) noexcept {
    return round_up(rows, plan::tile_rows > plan::value_rows ? plan::tile_rows : plan::value_rows);
  }
  void carve(carver& c, index rows, head_dims d) noexcept {
    const index r = padded(rows);
    scores = c.take<A>(r * plan::keys);
    rescale = c.take<A>(r);
    out = c.take<A>(r * round_up(d.value_dim, plan::lanes));
    k = c.take<A>(plan::keys * d.head_dim);
    v = c.take<A>(plan::keys * d.value_dim);
    state = c.take<softmax_state<A>>(r);
  }
};

namespace detail {

/// A block's rows in place in their own scalar, or null where they must be copied; `left` rows of
/// the run from there on.
template <class T>
struct rows_in_place {
  const T* data = nullptr;
  index stride = 0;
  index left = 0;

  rows_in_place(const row_run<T>& r, index count, index channel_stride) noexcept {
    if (channel_stride != 1 || r.count < count) return;
    data = r.data;
    stride = r.stride;
    left = r.count;
  }
};

/// Modifiers and masks on one row's scores against `t.keys`. Whether anything may be hidden.
template <class A, class Program>
HEED_INLINE bool modify_row(const Program& program, const tile& t, A* s) noexcept {
  constexpr A hidden = softmax_state<A>::empty_max;
  const auto at = [&](index j) {
    return position{t.batch, t.head, t.kv_head, t.queries.begin, t.keys.begin + j, t.rows().begin};
  };
  const index n = t.keys.size();
  if constexpr (Program::changes_scores) {
    for (index j = 0; j < n; ++j) s[j] = program.modified(program.softcapped(s[j], at(j)), at(j));
  }
  if constexpr (Program::template has<stage::mask>) {
    if (program.coverage_in(t) != coverage::full) {
      for (index j = 0; j < n; ++j) s[j] = program.visible(at(j)) ? s[j] : hidden;
      return true;
    }
  }
  return Program::changes_scores;
}

/// Softmax and values of one row, pair by pair, leaving out what is hidden; `factor` are those of
/// dropout.
template <class A, class TV>
HEED_NOINLINE void attend_row_pairwise(softmax_state<A>& state, A* out, const A* s, index keys,
                                       const A* factor, const TV* v, index v_stride,
                                       index channels) noexcept {
  for (index j = 0; j < keys; ++j) {
    if (s[j] == softmax_state<A>::empty_max) continue;
    const auto w = state.merge({s[j], A(1)});
    const A weight = w.other * factor[j];
    for (index c = 0; c < channels; ++c) {
      out[c] = w.self * out[c] + weight * static_cast<A>(v[j * v_stride + c]);
    }
  }
}

}  // namespace detail

/// Rows `rows` against `keys` (within one split). `q` are the rows, scaled and in order, `q_stride`
/// apart, padded to split_scratch::padded(rows.size()).
template <class Program, class Source, class A>
void split_task(const Program& program, const Source& source, const shared_rows& rows, head_dims d,
                const A* q, index q_stride, range keys, split_scratch<A>& scratch,
                const split_partial<A>& partial) noexcept {
  using plan = split_plan<A>;
  using TK = typename Source::key_scalar;
  using TV = typename Source::value_scalar;
  const index n = rows.size();
  const index out_stride = round_up(d.value_dim, plan::lanes);
  for (index i = 0; i < split_scratch<A>::padded(n) * out_stride; ++i) scratch.out[i] = A(0);
  for (index r = 0; r < split_scratch<A>::padded(n); ++r) {
    scratch.state[r] = {};
    scratch.rescale[r] = A(1);
  }
  for (index i = n * plan::keys; i < split_scratch<A>::padded(n) * plan::keys; ++i) {
    scratch.scores[i] = A(0);
  }

  range seen{0, 0};
  for (index r = 0; r < n; ++r) seen = hull(seen, program.visible_keys(rows.row(r, keys)));
  for (index first = seen.begin / plan::keys * plan::keys; first < seen.end; first += plan::keys) {
    const range block = intersect(seen, {first, first + plan::keys});
    const index count = block.size();

    const auto kr = source.keys(rows.batch, rows.kv_head, block.begin);
    const detail::rows_in_place<TK> k(kr, count, source.key_channel_stride());
    if (k.data != nullptr) {
      split_scores<A>(q, q_stride, n, k.data, k.stride, count, k.left, d.head_dim, scratch.scores);
    } else {
      index stride = 0;
      const A* copy =
          block_rows<A, TK>([&](index j) { return source.keys(rows.batch, rows.kv_head, j); },
                            block, d.head_dim, source.key_channel_stride(), scratch.k, stride);
      split_scores<A, A>(q, q_stride, n, copy, stride, count, 0, d.head_dim, scratch.scores);
    }

    const auto vr = source.values(rows.batch, rows.kv_head, block.begin);
    const detail::rows_in_place<TV> v(vr, count, source.value_channel_stride());
    const auto with_values = [&](auto&& use) {
      if (v.data != nullptr) {
        use(v.data, v.stride, v.left);
      } else {
        index stride = 0;
        const A* copy =
            block_rows<A, TV>([&](index j) { return source.values(rows.batch, rows.kv_head, j); },
                              block, d.value_dim, source.value_channel_stride(), scratch.v, stride);
        use(copy, stride, index{0});
      }
    };

    bool hides = false;
    for (index r = 0; r < n; ++r) {
      hides =
          detail::modify_row(program, rows.row(r, block), scratch.scores + r * plan::keys) || hides;
    }
    with_values([&](const auto* rows_of_v, index stride, index left) noexcept {
      const bool pairwise = hides && !all_finite<A>(rows_of_v, count, stride, d.value_dim);
      const auto dropout_factors = [&](index r, index j, index keys_at, auto&& use) {
        const tile t = rows.row(r, block);
        for (index i = j; i < j + keys_at; ++i) {
          use(i, program.dropout_factor({t.batch, t.head, t.kv_head, t.queries.begin,
                                         block.begin + i, t.rows().begin}));
        }
      };
      if (pairwise) {
        for (index r = 0; r < n; ++r) {
          A factor[std::size_t{plan::keys}];
          std::fill_n(factor, count, A(1));
          if constexpr (Program::template has<stage::dropout>) {
            dropout_factors(r, 0, count, [&](index j, A f) { factor[j] = f; });
          }
          detail::attend_row_pairwise<A>(scratch.state[r], scratch.out + r * out_stride,
                                         scratch.scores + r * plan::keys, count, factor, rows_of_v,
                                         stride, d.value_dim);
        }
        return;
      }
      for (index r = 0; r < n; ++r) {
        scratch.rescale[r] =
            split_maximum(scratch.scores + r * plan::keys, count, scratch.state[r]);
      }
      const auto weigh = [&](index first_row, index j, index keys_at) {
        split_weights(scratch.scores + first_row * plan::keys + j, keys_at,
                      scratch.state + first_row);
        if constexpr (Program::template has<stage::dropout>) {
          for (index r = first_row; r < std::min<index>(first_row + plan::value_rows, n); ++r) {
            A* const s = scratch.scores + r * plan::keys;
            dropout_factors(r, j, keys_at, [&](index i, A f) { s[i] *= f; });
          }
        }
      };
      split_values<A>(scratch.scores, n, rows_of_v, stride, count, left, d.value_dim,
                      scratch.rescale, scratch.out, out_stride, weigh);
    });
  }

  for (index r = 0; r < n; ++r) {
    partial.state[r] = scratch.state[r];
    for (index c = 0; c < d.value_dim; ++c) {
      partial.out[r * partial.stride + c] = scratch.out[r * out_stride + c];
    }
  }
}

/// The partials of `rows` rows, those of each split `stride` rows after the last one's, merged in
/// the order of the splits into the first. Read as they lie: by now they are far away in memory.
template <class A>
void merge_splits(softmax_state<A>* state, A* out, index rows, index stride, index splits,
                  index channels) noexcept {
  for (index i = 1; i < splits; ++i) {
    for (index r = 0; r < rows; ++r) {
      const auto w = state[r].merge(state[i * stride + r]);
      A* const into = out + r * channels;
      const A* const from = out + (i * stride + r) * channels;
      for (index c = 0; c < channels; ++c) into[c] = w.self * into[c] + w.other * from[c];
    }
  }
}

}  // namespace heed
