// SPDX-License-Identifier: MIT
// A task of the few-query kernel: all query rows of one KV head against one split of its keys, and
// the merge of the splits.
//
// A split leaves a partial result a row: softmax state and output not divided by the sum. Splits
// start at fixed keys and merge in a fixed tree, so that threads change no bit. Dao, Haziza, Massa,
// Sizov 2023, "Flash-Decoding for long-context inference".
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/split_kv/coded_rows.hpp"
#include "heed/kernel/split_kv/coded_values.hpp"
#include "heed/kernel/split_kv/kv_rows.hpp"
#include "heed/kernel/split_kv/microkernel.hpp"

namespace heed::inline HEED_TARGET::kernel {

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
  static_assert(plan::keys > 0 && plan::keys % keys_of_chain == 0 &&
                    plan::split % plan::keys == 0 && plan::mask_step > 0,
                "heed: a tuned block of keys is whole chains of sums, and a split whole blocks");

  A* scores = nullptr;   // [rows][keys of a block]
  A* rescale = nullptr;  // [rows]
  A* out = nullptr;      // [rows][value dim, whole packets]
  A* lost = nullptr;     // as `out`: what rounding has taken from it
  A* part = nullptr;     // as `out`: the values of a block
  A* k = nullptr;        // a copied block, or what scores of codes take
  A* v = nullptr;
  const void** list = nullptr;  // where a block's rows are stored
  softmax_state<A>* state = nullptr;
  A factor = A(1);  // what the weights are multiplied with once their sum is taken

  void allocate(arena& c, index rows, head_dims d) noexcept {
    const index r = plan::padded(rows);
    scores = c.allocate<A>(r * plan::keys);
    rescale = c.allocate<A>(r);
    out = c.allocate<A>(r * round_up(d.value_dim, plan::lanes));
    lost = c.allocate<A>(r * round_up(d.value_dim, plan::lanes));
    part = c.allocate<A>(r * round_up(d.value_dim, plan::lanes));
    k = c.allocate<A>((std::max)(plan::keys * d.head_dim, r * (plan::keys + d.head_dim)));
    v = c.allocate<A>(plan::keys * d.value_dim);
    list = c.allocate<const void*>(plan::keys);
    state = c.allocate<softmax_state<A>>(r);
  }
};

/// Makes probabilities of the scores that `split_values` is about to read: [rows][keys of a block].
template <class A>
struct exp_and_sum {
  A* scores;
  softmax_state<A>* state;
  template <int Rows>
  HEED_INLINE void operator()(std::integral_constant<int, Rows>, index first_row, index j,
                              index keys) const noexcept {
    split_weights<Rows>(scores + first_row * split_plan<A>::keys + j, keys, state + first_row);
  }
};

/// Modifiers and masks on one row's scores against `t.keys`. The keys, counted from the first,
/// among which those stand that may be hidden.
template <class A, class Program>
HEED_INLINE range modify_row(const Program& program, const tile& t, A* s) noexcept {
  constexpr A none = softmax_state<A>::empty_max;
  const auto at = [&](index j) {
    return position{t.batch, t.head, t.kv_head, t.queries.begin, t.keys.begin + j, t.rows().begin};
  };
  const index n = t.keys.size();
  range hidden{0, 0};
  if constexpr (Program::changes_scores) {
    for (index j = 0; j < n; ++j) s[j] = program.modified(program.softcapped(s[j], at(j)), at(j));
    hidden = {0, n};
  }
  if constexpr (Program::template has<stage::mask>) {
    if (program.coverage_in(t) == coverage::full) return hidden;
    // Classified again in steps, so that only a mask's edge is asked about pair by pair.
    constexpr index step = split_plan<A>::mask_step;
    for (index first = 0; first < n; first += step) {
      const range keys{first, (std::min)(n, first + step)};
      tile part = t;
      part.keys = {t.keys.begin + keys.begin, t.keys.begin + keys.end};
      const coverage visible = program.coverage_in(part);
      if (visible == coverage::full) continue;
      for (index j = keys.begin; j < keys.end; ++j) {
        s[j] = visible == coverage::partial && program.visible(at(j)) ? s[j] : none;
      }
      hidden = hull(hidden, keys);
    }
  }
  return hidden;
}

/// Softmax and values of one row, pair by pair, leaving out what is hidden; `factor` are what weights
/// are multiplied with, `part` is scratch for a row.
template <class A, class Values>
HEED_NOINLINE void attend_row_pairwise(softmax_state<A>& state, A* out, A* lost, A* part,
                                       const A* s, index keys, const A* factor, const Values& v,
                                       index channels) noexcept {
  A top = softmax_state<A>::empty_max;
  for (index j = 0; j < keys; ++j) top = s[j] > top ? s[j] : top;
  A rescale = state.raise(top);
  for (index first = 0; first < keys; first += keys_of_chain) {
    std::fill_n(part, channels, A(0));
    for (index j = first; j < (std::min)(keys, first + keys_of_chain); ++j) {
      if (s[j] == softmax_state<A>::empty_max) continue;
      // Before any score there is no reference: a NaN, which is no maximum, stays one.
      const A weight = std::exp(s[j] - state.max);
      state.add(weight);
      const auto* const row = v(j);
      for (index c = 0; c < channels; ++c) part[c] += weight * factor[j] * static_cast<A>(row[c]);
    }
    add_to_past(out, lost, rescale, part, channels);
    rescale = A(1);
  }
}

/// The scratch's rows have seen nothing yet.
template <class A>
void start_split(split_scratch<A>& scratch, index rows, index value_dim) noexcept {
  using plan = split_plan<A>;
  const index padded = plan::padded(rows);
  std::fill_n(scratch.out, padded * round_up(value_dim, plan::lanes), A(0));
  std::fill_n(scratch.lost, padded * round_up(value_dim, plan::lanes), A(0));
  std::fill_n(scratch.state, padded, softmax_state<A>());
}

/// Scores of all rows against the keys of `block`, modified and masked, to scratch.scores. The keys,
/// counted from the block's first, among which are those that may be hidden. Arguments as below.
template <class Program, class Source, class Rows, class A>
[[nodiscard]] range score_block(const Program& program, const Source& source, const Rows& rows,
                                index head_dim, const A* q, index q_stride, range block,
                                split_scratch<A>& scratch) noexcept {
  using plan = split_plan<A>;
  using TK = typename Source::key_scalar;
  const index n = rows.size();
  if constexpr (coded_source<Source>) {
    split_code_scores(source, rows.batch, rows.kv_head, block, q, q_stride, n, head_dim,
                      scratch.scores, scratch.k);
  } else {
    const key_runs<Source> run{&source, rows.batch, rows.kv_head};
    const block_runs<A, TK, key_runs<Source>> k(run, block, head_dim, source.key_channel_stride(),
                                                scratch.k, scratch.list);
    k.each([&](const auto& key) noexcept {
      split_scores<A>(q, q_stride, n, key, block.size(), head_dim, scratch.scores);
    });
  }
  range hidden{0, 0};
  for (index r = 0; r < n; ++r) {
    hidden = hull(hidden, modify_row(program, rows.row(r, block), scratch.scores + r * plan::keys));
  }
  return hidden;
}

/// Rows `rows` (shared_rows, or what has its size, row, batch and kv_head) against `keys` more. `q`
/// are the rows, scaled and in order, `q_stride` apart, padded to split_plan::padded(rows.size());
/// their states and outputs in the scratch go on from what they have seen.
template <class Program, class Source, class Rows, class A>
void split_keys(const Program& program, const Source& source, const Rows& rows, head_dims d,
                const A* q, index q_stride, range keys, split_scratch<A>& scratch) noexcept {
  using plan = split_plan<A>;
  using TV = typename Source::value_scalar;
  const index n = rows.size();
  const index out_stride = round_up(d.value_dim, plan::lanes);
  std::fill_n(scratch.rescale, plan::padded(n), A(1));
  std::fill(scratch.scores + n * plan::keys, scratch.scores + plan::padded(n) * plan::keys, A(0));

  range seen{0, 0};
  for (index r = 0; r < n; ++r) seen = hull(seen, program.visible_keys(rows.row(r, keys)));
  for (index first = seen.begin / plan::keys * plan::keys; first < seen.end; first += plan::keys) {
    const range block = intersect(seen, {first, first + plan::keys});
    const index count = block.size();

    const range hidden =
        score_block(program, source, rows, d.head_dim, q, q_stride, block, scratch);
    const value_runs<Source> value_run{&source, rows.batch, rows.kv_head};
    const auto v = [&] {
      if constexpr (coded_source<Source>) {
        return coded_values<Source>(source, rows.batch, rows.kv_head, block, d.value_dim,
                                    scratch.v);
      } else {
        return block_runs<A, TV, value_runs<Source>>(
            value_run, block, d.value_dim, source.value_channel_stride(), scratch.v, scratch.list);
      }
    }();
    // What hidden values hold must not matter; that of visible ones propagates either way.
    bool finite = true;
    if constexpr (coded_source<Source>) {
      finite = v.finite(hidden);
    } else if (!hidden.empty()) {
      v.each([&](const auto& value) noexcept {
        finite = all_finite<A>(value.from(hidden.begin), hidden.size(), d.value_dim);
      });
    }
    const auto dropout_factors = [&](index r, index j, index keys_at, auto&& use) {
      const tile t = rows.row(r, block);
      for (index i = j; i < j + keys_at; ++i) {
        use(i, program.dropout_factor(
                   {t.batch, t.head, t.kv_head, t.queries.begin, block.begin + i, t.rows().begin}));
      }
    };
    if (!finite || scratch.factor != A(1)) {
      v.each([&](const auto& value) noexcept {
        for (index r = 0; r < n; ++r) {
          A factor[std::size_t{plan::keys}];
          std::fill_n(factor, count, scratch.factor);
          if constexpr (Program::template has<stage::dropout>) {
            dropout_factors(r, 0, count, [&](index j, A f) { factor[j] *= f; });
          }
          attend_row_pairwise<A>(
              scratch.state[r], scratch.out + r * out_stride, scratch.lost + r * out_stride,
              scratch.part, scratch.scores + r * plan::keys, count, factor, value, d.value_dim);
        }
      });
      continue;
    }
    for (index r = 0; r < n; ++r) {
      scratch.rescale[r] = split_maximum(scratch.scores + r * plan::keys, count, scratch.state[r]);
    }
    const exp_and_sum<A> softmax{scratch.scores, scratch.state};
    const auto read = [&](const auto& weights) noexcept {
      if constexpr (coded_source<Source>) {
        v.multiply(scratch.scores, n, scratch.part, out_stride, scratch.k, weights);
      } else {
        v.each([&](const auto& value) noexcept {
          split_values<A>(scratch.scores, n, value, count, d.value_dim, true, scratch.part,
                          out_stride, weights);
        });
      }
    };
    if constexpr (Program::template has<stage::dropout>) {
      read([&](auto tile_rows, index first_row, index j, index keys_of) noexcept {
        softmax(tile_rows, first_row, j, keys_of);
        for (index r = first_row; r < std::min<index>(first_row + tile_rows(), n); ++r) {
          A* const s = scratch.scores + r * plan::keys;
          dropout_factors(r, j, keys_of, [&](index i, A f) { s[i] *= f; });
        }
      });
    } else {
      read(softmax);
    }
    for (index r = 0; r < n; ++r) {
      add_to_past(scratch.out + r * out_stride, scratch.lost + r * out_stride, scratch.rescale[r],
                  scratch.part + r * out_stride, d.value_dim);
    }
  }
}

/// Rows `rows` against `keys`, which are one split, from nothing seen to a partial result.
template <class Program, class Source, class A>
void split_task(const Program& program, const Source& source, const shared_rows& rows, head_dims d,
                const A* q, index q_stride, range keys, split_scratch<A>& scratch,
                const split_partial<A>& partial) noexcept {
  const index out_stride = round_up(d.value_dim, split_plan<A>::lanes);
  start_split(scratch, rows.size(), d.value_dim);
  split_keys(program, source, rows, d, q, q_stride, keys, scratch);
  for (index r = 0; r < rows.size(); ++r) {
    partial.state[r] = scratch.state[r];
    add_lost(scratch.out + r * out_stride, scratch.lost + r * out_stride, d.value_dim);
    std::copy_n(scratch.out + r * out_stride, d.value_dim, partial.out + r * partial.stride);
  }
}

/// The partials of `rows` rows, those of each split `stride` rows after the last one's, merged into
/// the first: neighbours first, then pairs of them, so that a number is rounded log2(splits) times.
/// Read as they lie: by now they are far away in memory.
template <class A>
void merge_splits(softmax_state<A>* state, A* out, index rows, index stride, index splits,
                  index channels) noexcept {
  for (index apart = 1; apart < splits; apart *= 2) {
    for (index i = 0; i + apart < splits; i += 2 * apart) {
      for (index r = 0; r < rows; ++r) {
        const auto w = state[i * stride + r].merge(state[(i + apart) * stride + r]);
        A* const into = out + (i * stride + r) * channels;
        const A* const from = out + ((i + apart) * stride + r) * channels;
        for (index c = 0; c < channels; ++c) into[c] = w.self * into[c] + w.other * from[c];
      }
    }
  }
}

// Kernels that no modifier changes, as in kernel/tiled/query_tile.hpp.
#define HEED_SPLIT_KV_KERNELS(KEYWORD, A, ROWS)                                                  \
  KEYWORD template void split_scores<A, ROWS>(const A*, index, index, const ROWS&, index, index, \
                                              A*) noexcept;                                      \
  KEYWORD template void split_values<A, ROWS, const exp_and_sum<A>&>(                            \
      const A*, index, const ROWS&, index, index, bool, A*, index,                               \
      const exp_and_sum<A>&) noexcept;
#define HEED_SPLIT_KV_KERNELS_OF(KEYWORD, A, T)      \
  HEED_SPLIT_KV_KERNELS(KEYWORD, A, strided_rows<T>) \
  HEED_SPLIT_KV_KERNELS(KEYWORD, A, listed_rows<T>)

#if defined(HEED_COMPILED)
HEED_SPLIT_KV_KERNELS_OF(extern, float, float)
HEED_SPLIT_KV_KERNELS_OF(extern, float, half)
HEED_SPLIT_KV_KERNELS_OF(extern, float, bfloat16)
HEED_SPLIT_KV_KERNELS_OF(extern, double, double)
#endif

}  // namespace heed::inline HEED_TARGET::kernel
