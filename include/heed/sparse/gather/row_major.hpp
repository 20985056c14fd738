// SPDX-License-Identifier: MIT
// Attention to selected blocks, row by row: keys and values of a row's blocks are read where they
// lie, once for all heads that share them.
//
//   query block   some hundred rows: their selected indices, ascending, their queries, their states
//   key range     so many keys that they and their values stay in the second-level cache
//
// The rows of a query block attend to one key range after another, in each of which many of them
// select the same keys. Read row after row instead, single keys would miss the cache each time. A
// row's state continues from range to range as over the blocks of one call, so that query blocks,
// which may follow the number of threads, change no bit; key ranges follow from the shape alone.
#pragma once

#include <algorithm>
#include <utility>

#include "heed/attention/split_kv.hpp"
#include "heed/core/target.hpp"
#include "heed/score/remap.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"
#include "heed/sparse/gather/selection_view.hpp"
#include "heed/sparse/gather/tuning.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The selected blocks of one row, ascending, laid end to end as keys 0, 1, 2, ...
struct selected_tokens {
  const listed_token* block = nullptr;
  index count = 0;
  index size = 1;
  index tokens = 0;  // of the whole sequence: only its last block may be shorter than `size`

  [[nodiscard]] index keys() const noexcept {
    return count == 0 ? 0 : (count - 1) * size + (std::min)(size, tokens - block[count - 1] * size);
  }
  /// In which block key j lies, and at which of its keys. Single keys, for which this is called
  /// most often, need no division.
  [[nodiscard]] std::pair<index, index> place(index j) const noexcept {
    if (size == 1) return {j, 0};
    return {j / size, j % size};
  }
  /// The token of key j.
  [[nodiscard]] index token(index j) const noexcept {
    const auto [n, at] = place(j);
    return block[n] * size + at;
  }

  [[nodiscard]] position moved(position p) const noexcept {
    p.key = token(p.key);
    return p;
  }
  [[nodiscard]] HEED_INLINE const selected_tokens& positions() const noexcept { return *this; }
  template <class Program>
  [[nodiscard]] static range visible_keys(const Program&, const tile& t) noexcept {
    return t.keys;
  }
  template <class Program>
  [[nodiscard]] coverage coverage_in(const Program& program, const tile& t) const noexcept {
    // Blocks ascend: of most rows all keys lie on one side of a mask's edge.
    tile around = t;
    around.keys = {token(t.keys.begin), token(t.keys.end - 1) + 1};
    const coverage of_all = program.coverage_in(around);
    if (of_all != coverage::partial) return of_all;
    bool any = false;
    bool all = true;
    for (index j = t.keys.begin; j < t.keys.end;) {
      const index n = (std::min)(size - j % size, t.keys.end - j);
      tile part = t;
      part.keys = {token(j), token(j) + n};
      const coverage c = program.coverage_in(part);
      any = any || c != coverage::empty;
      all = all && c == coverage::full;
      if (any && !all) return coverage::partial;
      j += n;
    }
    return !any ? coverage::empty : coverage::full;
  }
};

/// Reads the selected blocks of a source.
template <class Source>
class selected_source {
 public:
  using key_scalar = typename Source::key_scalar;
  using value_scalar = typename Source::value_scalar;
  selected_source(const Source& s, const selected_tokens& c) noexcept
      : source_(&s), selected_(&c) {}
  [[nodiscard]] row_run<key_scalar> keys(index b, index h, index j) const noexcept {
    const auto [n, at] = selected_->place(j);
    return within(source_->keys(b, h, selected_->block[n] * selected_->size + at), at);
  }
  [[nodiscard]] row_run<value_scalar> values(index b, index h, index j) const noexcept {
    const auto [n, at] = selected_->place(j);
    return within(source_->values(b, h, selected_->block[n] * selected_->size + at), at);
  }
  [[nodiscard]] bool list_keys(index b, index h, range of, const void** to) const noexcept {
    return list(source_->keys(b, h, 0), of, to);
  }
  [[nodiscard]] bool list_values(index b, index h, range of, const void** to) const noexcept {
    return list(source_->values(b, h, 0), of, to);
  }
  [[nodiscard]] index key_channel_stride() const noexcept { return source_->key_channel_stride(); }
  [[nodiscard]] index value_channel_stride() const noexcept {
    return source_->value_channel_stride();
  }

 private:
  /// A run from key `at` of a block on ends where the block does.
  template <class T>
  [[nodiscard]] row_run<T> within(row_run<T> r, index at) const noexcept {
    r.count = (std::min)(r.count, selected_->size - at);
    return r;
  }
  /// Single keys of a source that is one run need not be looked for one by one.
  template <class T>
  [[nodiscard]] bool list(const row_run<T>& all, range of, const void** to) const noexcept {
    if (selected_->size != 1 || all.count < selected_->tokens) return false;
    for (index j = of.begin; j < of.end; ++j)
      to[j - of.begin] = all.data + selected_->block[j] * all.stride;
    return true;
  }
  const Source* source_;
  const selected_tokens* selected_;
};

/// Heads whose rows share their keys: a whole group, unless each of its heads chooses for itself.
template <class Call, class I>
[[nodiscard]] index sharing_heads(const Call& call, const view<const I, 4>& selection) noexcept {
  const score_extents& e = call.extents;
  return selection.extent(1) == e.heads && e.heads != e.kv_heads ? 1 : call.group();
}

/// How queries and keys are cut.
template <class A>
struct row_major_cut {
  using plan = tuning<selected_rows, A>;
  index rows = 1;        // of a query block
  index key_blocks = 1;  // of a key range

  row_major_cut(index keys, index block, index selected, index token_bytes, index row_bytes,
                index queries, index shares, index workers) noexcept {
    const index blocks = ceil_div(keys, block);
    const index nearest = plan::key_bytes / (std::max<index>(token_bytes, 1) * block);
    const index often = ceil_div(plan::fewest_keys * blocks, std::max<index>(selected * block, 1));
    key_blocks = std::clamp<index>((std::max)(nearest, often), 1, std::max<index>(blocks, 1));
    const index fit = plan::row_bytes / std::max<index>(row_bytes, 1);
    const index even = queries * shares / (8 * workers);
    const index most = key_blocks >= blocks ? plan::rows_of_one_range : plan::most_rows;
    rows = std::clamp<index>((std::min)({fit, even, queries}), 1, most);
  }
};

template <class E, class Call, class I>
void run_selected_rows(E& exec, const Call& call, const view<const I, 4>& selection, index block) {
  using A = typename Call::A;
  using plan = split_plan<A>;
  const score_extents e = call.extents;
  const head_dims d{call.q.extent(3), call.out.extent(3)};
  const index group = sharing_heads(call, selection);
  const index shares = group > 0 ? e.heads / group : 0;
  if (e.batch * shares * e.queries == 0) return;

  const index selected = selection.extent(3);
  const index q_size = plan::padded(group) * d.head_dim;
  const index out_stride = round_up(d.value_dim, plan::lanes);
  const index out_size = plan::padded(group) * out_stride;
  constexpr auto size = static_cast<index>(sizeof(A));
  const row_major_cut<A> cut(
      e.keys, block, selected,
      d.head_dim * static_cast<index>(sizeof(typename Call::source_type::key_scalar)) +
          d.value_dim * static_cast<index>(sizeof(typename Call::source_type::value_scalar)),
      selected * static_cast<index>(sizeof(listed_token)) + (q_size + 2 * out_size) * size,
      e.queries, e.batch * shares, worker_count(exec, e.batch * shares * e.queries));
  const index query_blocks = ceil_div(e.queries, cut.rows);
  const index tasks = e.batch * shares * query_blocks;

  struct scratch_type {
    split_scratch<A> split;
    A* q = nullptr;                     // [rows][group, padded][head dim]
    A* out = nullptr;                   // [rows][group, padded][value dim, whole packets]
    A* lost = nullptr;                  // as `out`: what rounding has taken from it
    softmax_state<A>* state = nullptr;  // [rows][group, padded]
    listed_token* selected = nullptr;   // [rows][selected], ascending
    range* left = nullptr;              // [rows]: what of these a row has not yet met
    choice_marks marks;
  };
  const auto allocate = [&](arena& c) {
    scratch_type s;
    s.split.allocate(c, group, d);
    s.q = c.allocate<A>(cut.rows * q_size);
    s.out = c.allocate<A>(cut.rows * out_size);
    s.lost = c.allocate<A>(cut.rows * out_size);
    s.state = c.allocate<softmax_state<A>>(cut.rows * plan::padded(group));
    s.selected = c.allocate<listed_token>(cut.rows * selected);
    s.left = c.allocate<range>(cut.rows);
    s.marks.allocate(c, ceil_div(e.keys, block), selected);
    return s;
  };
  const index workers = worker_count(exec, tasks);
  arena measure;
  (void)allocate(measure);
  scratch_lease memory(call.options.scratch);
  std::byte* const memory_block = memory.reserve(measure.used(), workers);

  const auto task = [&](index worker, index t) noexcept {
    arena c(memory_block + static_cast<std::size_t>(worker) * measure.used());
    scratch_type s = allocate(c);
    const index first = t % query_blocks * cut.rows;
    const index count = (std::min)(cut.rows, e.queries - first);
    const index first_head = t / query_blocks % shares * group;
    const index b = t / query_blocks / shares;
    const index s_head = selection_head(selection, e, first_head);
    const index tokens = call.source.length(b);
    const index blocks = ceil_div(tokens, block);
    const auto rows_of = [&](index i) {
      return shared_rows{b, first_head / call.group(), first_head, group, first + i,
                         1, call.options.offset[b]};
    };
    const auto seen_of = [&](index i) {
      split_scratch<A> seen = s.split;
      seen.out = s.out + i * out_size;
      seen.lost = s.lost + i * out_size;
      seen.state = s.state + i * plan::padded(group);
      return seen;
    };
    for (index i = 0; i < count; ++i) {
      s.left[i] = {i * selected, i * selected + s.marks.sort(selection, b, s_head, first + i,
                                                             blocks, s.selected + i * selected)};
      pack_queries(call, rows_of(i), s.q + i * q_size);
      split_scratch<A> seen = seen_of(i);
      start_split(seen, group, d.value_dim);
    }
    for (index next = cut.key_blocks; next < blocks + cut.key_blocks; next += cut.key_blocks) {
      for (index i = 0; i < count; ++i) {
        range& left = s.left[i];
        index end = left.begin;
        while (end < left.end && s.selected[end] < next) ++end;
        if (end == left.begin) continue;
        const selected_tokens of_row{s.selected + left.begin, end - left.begin, block, tokens};
        left.begin = end;
        split_scratch<A> seen = seen_of(i);
        split_keys(remapped_program(call.program, of_row), selected_source(call.source, of_row),
                   rows_of(i), d, s.q + i * q_size, d.head_dim, {0, of_row.keys()}, seen);
      }
    }
    for (index i = 0; i < count; ++i) {
      const split_scratch<A> seen = seen_of(i);
      for (index r = 0; r < group; ++r) {
        add_lost(seen.out + r * out_stride, seen.lost + r * out_stride, d.value_dim);
      }
      finish_rows(call, rows_of(i), seen.state, seen.out, out_stride, s.split,
                  [&](split_scratch<A>& again) noexcept {
                    const selected_tokens of_row{s.selected + i * selected,
                                                 s.left[i].begin - i * selected, block, tokens};
                    split_keys(remapped_program(call.program, of_row),
                               selected_source(call.source, of_row), rows_of(i), d,
                               s.q + i * q_size, d.head_dim, {0, of_row.keys()}, again);
                  });
    }
  };
  for_each_task(exec, workers, tasks, task, 1);
}

}  // namespace heed::inline HEED_TARGET::detail
