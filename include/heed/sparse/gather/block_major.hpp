// SPDX-License-Identifier: MIT
// Attention to selected blocks, block by block: the rows that selected a block run against it as
// tiles.
//
//   lists    for each block the rows that selected it, ascending: the inverted selection
//   parts    the tiled kernel on those rows x the block's keys, which are read where they lie
//   merge    a row's parts join by their log-sum-exps, in the order of their blocks
//
// What a row gets does not depend on which rows share its tiles. Cost 2 (D + Dv) FLOPs for each row
// and selected key, as of dense attention, and value dim + 3 numbers a row and index to write and
// read again: a few rows or heads at a time, so that the parts stay under 32 MiB. Where the
// rows are cut follows from the shape alone: the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"
#include "heed/sparse/gather/inverted_index.hpp"
#include "heed/sparse/gather/selection_view.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The rows and keys of a task: rows of an ascending list, keys from `first_key` on.
struct rows_of_block {
  const listed_token* rows = nullptr;
  index first_key = 0;
  index offset = 0;  // position minus row

  [[nodiscard]] HEED_INLINE position moved(position p) const noexcept {
    p.row = rows[p.row];
    p.query = offset + p.row;
    p.key += first_key;
    return p;
  }
  [[nodiscard]] HEED_INLINE rows_of_block positions() const noexcept { return *this; }
  template <class Program>
  [[nodiscard]] coverage coverage_in(const Program& program, const tile& t) const noexcept {
    return program.coverage_in(rectangle_around(t));
  }
  template <class Program>
  [[nodiscard]] range visible_keys(const Program& program, const tile& t) const noexcept {
    const range seen = program.visible_keys(rectangle_around(t));
    return {seen.begin - first_key, seen.end - first_key};
  }

 private:
  /// Rows ascend: the first and the last one span the rest. A tile has rows.
  [[nodiscard]] tile rectangle_around(tile t) const noexcept {
    t.queries = {offset + rows[t.queries.begin], offset + rows[t.queries.end - 1] + 1};
    t.keys = {t.keys.begin + first_key, t.keys.end + first_key};
    t.offset = offset;
    return t;
  }
};

/// A source from key `first` on.
template <class Source>
class later_source {
 public:
  using key_scalar = typename Source::key_scalar;
  using value_scalar = typename Source::value_scalar;
  later_source(const Source& s, index first) noexcept : source_(&s), first_(first) {}
  [[nodiscard]] row_run<key_scalar> keys(index b, index h, index j) const noexcept {
    return source_->keys(b, h, first_ + j);
  }
  [[nodiscard]] row_run<value_scalar> values(index b, index h, index j) const noexcept {
    return source_->values(b, h, first_ + j);
  }
  [[nodiscard]] index key_channel_stride() const noexcept { return source_->key_channel_stride(); }
  [[nodiscard]] index value_channel_stride() const noexcept {
    return source_->value_channel_stride();
  }

 private:
  const Source* source_;
  index first_;
};

/// `rows` listed rows (most_rows at the most) of head h against `keys` keys: `out` gets
/// [rows][value dim], `lse` [rows].
template <class Call, class A>
void attend_block(const Call& call, index b, index h, const rows_of_block& lists, index rows,
                  index keys, listed_scratch<Call>& s, A* out, A* lse) noexcept {
  using TQ = typename Call::query_scalar;
  const head_dims d{call.q.extent(3), call.out.extent(3)};
  constexpr index prefetched_rows = 12;  // rows lie apart: the processor does not guess where
  const auto prefetch = [&](index r) noexcept {
    if (r < rows) prefetch_row<1>(call.query_rows(b, h, lists.rows[r]).data, d.head_dim);
  };
  for (index r = 0; r < prefetched_rows; ++r) prefetch(r);
  for (index r = 0; r < rows; ++r) {
    prefetch(r + prefetched_rows);
    const rectangle<const TQ> row = call.query_rows(b, h, lists.rows[r]);
    TQ* const to = s.q + r * d.head_dim;
    if (row.column == 1) {
      copy_row(row.data, to, d.head_dim);
    } else {
      copy_tile(row, rectangle<TQ>{to, d.head_dim, 1}, 1, d.head_dim);
    }
  }
  const tile where{b, h, h / call.group(), {0, rows}, {0, keys}, 0};
  exact_task(remapped_program(call.program, lists), later_source(call.source, lists.first_key),
             where, d, rectangle<const TQ>{s.q, d.head_dim, 1}, rectangle<A>{out, d.value_dim, 1},
             call.scale, lse, 1, s.kernel);
}

/// Sums the normalised parts at `place`, times `scale`, into `to`, perhaps the first of them, not
/// divided by the sum of the state that is returned. Their log-sum-exps become their weights.
template <class A>
softmax_state<A> merge_parts(const A* parts, A* lse, const listed_token* place, index count,
                             A scale, index channels, A* to) noexcept {
  softmax_state<A> state;
  if (count == 0) return state;
  for (index n = 0; n < count; ++n) state.max = (std::max)(state.max, lse[place[n]]);
  for (index n = 0; n < count; ++n) {
    A& x = lse[place[n]];
    x = softmax_state<A>::weight(x, state.max);
    state.add(x);
    x *= scale;
  }
  index c = 0;
  for (; c + simd::lanes<A> <= channels; c += simd::lanes<A>) {
    auto sum = simd::zero<A>();
    auto lost = simd::zero<A>();
    for (index first = 0; first < count; first += keys_of_chain) {
      auto chain = simd::zero<A>();
      for (index n = first; n < (std::min)(count, first + keys_of_chain); ++n) {
        chain = simd::fmadd(simd::broadcast(lse[place[n]]),
                            simd::load(parts + place[n] * channels + c), chain);
      }
      add_to_past(sum, lost, simd::broadcast(A(1)), chain);
    }
    simd::store(to + c, total(sum, lost));
  }
  for (; c < channels; ++c) {
    A sum = A(0);
    A lost = A(0);
    for (index n = 0; n < count; ++n) {
      add_to_past(sum, lost, A(1), lse[place[n]] * parts[place[n] * channels + c]);
    }
    to[c] = total(sum, lost);
  }
  return state;
}

template <class E, class Call, class I>
void run_selected_blocks(E& exec, const Call& call, const view<const I, 4>& selection,
                         index block) {
  using A = typename Call::A;
  constexpr index most = listed_scratch<Call>::most_rows;
  const score_extents e = call.extents;
  const head_dims d{call.q.extent(3), call.out.extent(3)};
  const index selected = selection.extent(3);
  const index blocks = ceil_div(e.keys, block);
  const index heads = e.batch * e.heads;
  if (heads * e.queries == 0) return;
  const block_pass<typename Call::A> pass = passes_of(call, selection, block);
  const index listed = pass.rows * selected;
  const index most_tasks = block_lists::most_tasks(blocks, listed, most);
  constexpr index stretch = 64;  // rows sorted or merged at a time
  const index stretches = ceil_div(pass.rows, stretch);

  arena measure;
  listed_scratch<Call>().allocate(measure, d);
  const index workers = worker_count(exec, pass.heads * (std::max)(most_tasks, stretches));
  block_lists* lists = nullptr;
  A* out = nullptr;  // [heads of a pass][listed][value dim]
  A* lse = nullptr;
  std::byte* scratch = nullptr;
  const auto allocate = [&](arena c) {
    lists = c.allocate<block_lists>(pass.heads);
    const bool counts = lists == nullptr;
    for (index n = 0; n < pass.heads; ++n) {
      block_lists l;
      l.allocate(c, blocks, listed, most);
      if (!counts) lists[n] = l;
    }
    out = c.allocate<A>(pass.heads * listed, d.value_dim);
    lse = c.allocate<A>(pass.heads * listed);
    scratch = c.allocate<std::byte>(static_cast<index>(measure.used()), workers);
    return c.used();
  };
  scratch_lease memory(call.options.scratch);
  (void)allocate(arena(memory.reserve(allocate(arena()))));

  const auto run_pass = [&](range of_heads, range rows) {
    const index n_heads = of_heads.size();
    const auto rows_of = [&](index s) {
      return intersect(rows, {rows.begin + s * stretch, rows.begin + (s + 1) * stretch});
    };
    for_each_task(exec, workers, n_heads * stretches, [&](index, index t) noexcept {
      const index head = of_heads.begin + t / stretches;
      const index b = head / e.heads;
      const index here = ceil_div(call.source.length(b), block);
      const range r = rows_of(t % stretches);
      for (index i = r.begin; i < r.end; ++i) {
        listed_token* const to = lists[t / stretches].place + (i - rows.begin) * selected;
        const index n =
            sort_choices(selection, b, selection_head(selection, e, head % e.heads), i, here, to);
        std::fill(to + n, to + selected, listed_token{-1});
      }
    });
    for_each_task(exec, workers, n_heads,
                  [&](index, index n) noexcept { lists[n].invert(rows, selected, blocks, most); });
    for_each_task(exec, workers, n_heads * most_tasks, [&](index worker, index t) noexcept {
      const block_lists& l = lists[t / most_tasks];
      if (t % most_tasks >= l.task_count) return;
      const block_lists::task task = l.tasks[t % most_tasks];
      arena c(scratch + static_cast<std::size_t>(worker) * measure.used());
      listed_scratch<Call> s;
      s.allocate(c, d);
      const index head = of_heads.begin + t / most_tasks;
      const index b = head / e.heads;
      const index first = task.block * block;
      const rows_of_block where{l.rows + task.listed.begin, first, call.options.offset[b]};
      const index at = t / most_tasks * listed + task.listed.begin;
      attend_block(call, b, head % e.heads, where, task.listed.size(),
                   (std::min)(block, call.source.length(b) - first), s, out + at * d.value_dim,
                   lse + at);
    });
    for_each_task(exec, workers, n_heads * stretches, [&](index, index t) noexcept {
      const index n = t / stretches;
      const index head = of_heads.begin + n;
      A* const parts = out + n * listed * d.value_dim;
      const range r = rows_of(t % stretches);
      for (index i = r.begin; i < r.end; ++i) {
        const listed_token* const place = lists[n].place + (i - rows.begin) * selected;
        for (index c = selected; i + 1 < r.end && c < 2 * selected && place[c] >= 0; ++c) {
          prefetch_row<1>(parts + place[c] * d.value_dim, d.value_dim);
        }
        index count = 0;
        while (count < selected && place[count] >= 0) ++count;
        A* const row = count > 0 ? parts + place[0] * d.value_dim : nullptr;
        const A scale = part_sums<A>::scale_for(count);
        const auto state =
            merge_parts(parts, lse + n * listed, place, count, scale, d.value_dim, row);
        write_row(call, head / e.heads, head % e.heads, i, state, row, scale);
      }
    });
  };
  for (index h = 0; h < heads; h += pass.heads) {
    for (index i = 0; i < e.queries; i += pass.rows) {
      run_pass({h, (std::min)(h + pass.heads, heads)}, {i, (std::min)(i + pass.rows, e.queries)});
    }
  }
}

}  // namespace heed::inline HEED_TARGET::detail
