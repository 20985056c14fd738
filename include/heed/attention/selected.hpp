// SPDX-License-Identifier: MIT
// Exact attention of each query row to blocks of keys selected for it: top-k keys, blocks chosen by
// their means or bounds, an indexer's choice.
//
//   selected_attention([executor,] q, k, v, selection, block, options = {}, modifiers...)
//
// | argument  | axes                                    | meaning                              |
// |-----------|-----------------------------------------|--------------------------------------|
// | q         | [batch, heads, queries, head dim]       |                                      |
// | k, v      | [batch, kv heads, keys, ...]            |                                      |
// | selection | [batch, S heads, queries, choices]      | blocks of `block` keys, any order    |
//
// S heads are 1 (one choice for all heads), the KV heads (shared in a group) or the query heads; a
// batch of 1 serves all. A negative choice is none; a block chosen twice counts once; `block` 1
// selects single keys. The result is that of `attention` under the mask "key / block is among the
// row's choices": scale, modifiers, masks, sinks, dropout and log-sum-exp mean what they mean
// there, `causal()` must be asked for, and a row without a visible choice is 0.
//
// Accumulator and errors as in `attention`; where blocks run one by one, a row's parts merge in the
// order of its blocks, at 2 eps each. Cost 2 (D + Dv) FLOPs for each query head and chosen key.
//   Large blocks that many rows choose (`by_blocks`, by the shape alone) run as dense tiles: the
//   rows of each block against its keys. Parallel over blocks and their rows; memory beside the
//   result up to 32 MiB, or what one row's parts need, and scratch a worker as in `attention`.
//   Others run row by row: keys and values of a row's choices are read once for all heads that
//   share them. Parallel over rows; scratch a worker: some 500 rows of keys and values, and the
//   choices of one row, up to 9 words each.
// The same bits for any number of threads. Throws shape_error, option_error, std::bad_alloc before
// anything is written.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "heed/attention/choices.hpp"
#include "heed/attention/door.hpp"
#include "heed/attention/selected_blocks.hpp"
#include "heed/attention/split.hpp"

namespace heed {

namespace detail {

/// The chosen blocks of one row, ascending, laid end to end as keys 0, 1, 2, ...
struct chosen_blocks {
  const index* block = nullptr;
  index count = 0;
  index size = 1;
  index tokens = 0;  // of the whole sequence: only its last block may be shorter than `size`

  [[nodiscard]] index keys() const noexcept {
    return count == 0 ? 0 : (count - 1) * size + std::min(size, tokens - block[count - 1] * size);
  }
  /// Where key j stands: in which block, and at which of its keys. Single keys, which ask most
  /// often, need no division.
  [[nodiscard]] std::pair<index, index> place(index j) const noexcept {
    if (size == 1) return {j, 0};
    return {j / size, j % size};
  }
  /// The token that stands at key j.
  [[nodiscard]] index token(index j) const noexcept {
    const auto [n, at] = place(j);
    return block[n] * size + at;
  }
};

/// Reads the chosen blocks of a source.
template <class Source>
class chosen_source {
 public:
  using key_scalar = typename Source::key_scalar;
  using value_scalar = typename Source::value_scalar;
  chosen_source(const Source& s, const chosen_blocks& c, head_dims d) noexcept
      : source_(&s), chosen_(&c), dims_(d) {}
  [[nodiscard]] row_run<key_scalar> keys(index b, index h, index j) const noexcept {
    return run_at(j, source_->key_channel_stride(), dims_.head_dim,
                  [&](index token) { return source_->keys(b, h, token); });
  }
  [[nodiscard]] row_run<value_scalar> values(index b, index h, index j) const noexcept {
    return run_at(j, source_->value_channel_stride(), dims_.value_dim,
                  [&](index token) { return source_->values(b, h, token); });
  }
  [[nodiscard]] index key_channel_stride() const noexcept { return source_->key_channel_stride(); }
  [[nodiscard]] index value_channel_stride() const noexcept {
    return source_->value_channel_stride();
  }

 private:
  /// The run of the block that key j stands in; single keys ahead are asked for.
  template <class Run>
  [[nodiscard]] auto run_at(index j, index channel_stride, index channels,
                            const Run& run) const noexcept {
    const auto [n, at] = chosen_->place(j);
    auto r = run(chosen_->block[n] * chosen_->size + at);
    r.count = std::min(r.count, chosen_->size - at);
    if (chosen_->size == 1 && channel_stride == 1 && n + asked_ahead < chosen_->count) {
      ask_for(run(chosen_->block[n + asked_ahead]).data, channels);
    }
    return r;
  }
  const Source* source_;
  const chosen_blocks* chosen_;
  head_dims dims_;
};

/// A program asked about chosen keys, which answers about the tokens they are.
template <class Program>
class chosen_program {
 public:
  template <stage S>
  static constexpr bool has = Program::template has<S>;
  static constexpr bool changes_scores = Program::changes_scores;
  static constexpr bool hides = Program::hides;

  chosen_program(const Program& p, const chosen_blocks& c) noexcept : program_(&p), chosen_(&c) {}

  [[nodiscard]] static range visible_keys(const tile& t) noexcept { return t.keys; }
  [[nodiscard]] coverage coverage_in(const tile& t) const noexcept {
    // Blocks ascend: of most rows all keys lie on one side of a mask's edge.
    tile around = t;
    around.keys = {chosen_->token(t.keys.begin), chosen_->token(t.keys.end - 1) + 1};
    const coverage of_all = program_->coverage_in(around);
    if (of_all != coverage::partial) return of_all;
    bool any = false;
    bool all = true;
    for (index j = t.keys.begin; j < t.keys.end;) {
      const index n = std::min(chosen_->size - j % chosen_->size, t.keys.end - j);
      tile part = t;
      part.keys = {chosen_->token(j), chosen_->token(j) + n};
      const coverage c = program_->coverage_in(part);
      any = any || c != coverage::empty;
      all = all && c == coverage::full;
      if (any && !all) return coverage::partial;
      j += n;
    }
    return !any ? coverage::empty : coverage::full;
  }
  template <class A>
  [[nodiscard]] A softcapped(A s, const position& p) const noexcept {
    return program_->softcapped(s, moved(p));
  }
  template <class A>
  [[nodiscard]] A modified(A s, const position& p) const noexcept {
    return program_->modified(s, moved(p));
  }
  [[nodiscard]] bool visible(const position& p) const noexcept {
    return program_->visible(moved(p));
  }
  [[nodiscard]] auto dropout_factor(const position& p) const noexcept {
    return program_->dropout_factor(moved(p));
  }

 private:
  [[nodiscard]] position moved(position p) const noexcept {
    p.key = chosen_->token(p.key);
    return p;
  }
  const Program* program_;
  const chosen_blocks* chosen_;
};

/// Heads whose rows share their keys: a whole group, unless each of its heads chooses for itself.
template <class Call, class I>
[[nodiscard]] index sharing_heads(const Call& call, const view<const I, 4>& selection) noexcept {
  const score_extents& e = call.extents;
  return selection.extent(1) == e.heads && e.heads != e.kv_heads ? 1 : call.group();
}

template <class E, class Call, class I>
void run_selected_rows(E& exec, const Call& call, const view<const I, 4>& selection, index block) {
  using A = typename Call::A;
  const score_extents e = call.extents;
  const head_dims d{call.q.extent(3), call.out.extent(3)};
  const index group = sharing_heads(call, selection);
  const index shares = group > 0 ? e.heads / group : 0;
  const index tasks = e.batch * shares * e.queries;
  if (tasks == 0) return;

  struct scratch_type {
    split_scratch<A> split;
    A* q = nullptr;
    A* out = nullptr;
    softmax_state<A>* state = nullptr;
    index* choices = nullptr;
    choice_marks marks;
  };
  const index most_blocks = ceil_div(e.keys, block);
  const auto carve = [&](carver& c) {
    scratch_type s;
    s.split.carve(c, group, d);
    s.q = c.take<A>(split_scratch<A>::padded(group) * d.head_dim);
    s.out = c.take<A>(group * d.value_dim);
    s.state = c.take<softmax_state<A>>(group);
    s.choices = c.take<index>(selection.extent(3));
    s.marks.carve(c, most_blocks, selection.extent(3));
    return s;
  };
  const index workers = worker_count(exec, tasks);
  carver measure;
  (void)carve(measure);
  workspace own;
  workspace& memory = call.options.scratch != nullptr ? *call.options.scratch : own;
  std::byte* const memory_block =
      memory.reserve(measure.used() * static_cast<std::size_t>(workers));

  const auto task = [&](index worker, index t) noexcept {
    carver c(memory_block + static_cast<std::size_t>(worker) * measure.used());
    scratch_type s = carve(c);
    const index i = t % e.queries;
    const index first_head = t / e.queries % shares * group;
    const index b = t / e.queries / shares;
    const index kv_head = first_head / call.group();
    const index s_head = selection_head(selection, e, first_head);
    const shared_rows rows{b, kv_head, first_head, group, i, 1, call.options.offset[b]};
    const index tokens = call.source.length(b);
    const chosen_blocks chosen{
        s.choices, s.marks.sort(selection, b, s_head, i, ceil_div(tokens, block), s.choices), block,
        tokens};
    pack_queries(call, rows, s.q);
    split_task(chosen_program(call.program, chosen), chosen_source(call.source, chosen, d), rows, d,
               s.q, d.head_dim, {0, chosen.keys()}, s.split,
               split_partial<A>{s.state, s.out, d.value_dim});
    for (index r = 0; r < group; ++r)
      finish_row(call, rows, r, s.state[r], s.out + r * d.value_dim);
  };
  for_each_task(exec, workers, tasks, task, std::clamp<index>(tasks / (workers * 64), 1, 64));
}

/// Whether to run block by block. With r rows a block, measured at 64 channels of float: row by row
/// a key costs a row 13 ns over the heads that share it, and 1 ns more; block by block 1 ns, but a
/// part is 100 ns, and a task 3,000 ns over its rows:
///   13 block / heads > 100 + 3000 / r
template <class Call, class I>
[[nodiscard]] bool by_blocks(const Call& call, const view<const I, 4>& selection,
                             index block) noexcept {
  constexpr index most = std::numeric_limits<listed_token>::max();
  const score_extents& e = call.extents;
  const index blocks = ceil_div(e.keys, block);
  if (blocks == 0 || e.queries > most || e.keys > most) return false;
  const index rows = passes_of(call, selection, block).rows * selection.extent(3) / blocks;
  const index heads = sharing_heads(call, selection);
  return rows >= 4 && (block - 8 * heads) * rows > 240 * heads;
}

template <class E, class Call, class I>
void run_selected(E& exec, const Call& call, const view<const I, 4>& selection, index block) {
  check_selection(selection, block, call.extents);
  if (by_blocks(call, selection, block)) {
    run_selected_blocks(exec, call, selection, block);
  } else {
    run_selected_rows(exec, call, selection, block);
  }
}

}  // namespace detail

/// selected_attention_into([executor,] out | into(out, lse), q, k, v, selection, block, ...)
template <detail::an_executor E, class Out, class Q, class K, class V, tensor_like S, class... M>
void selected_attention_into(E&& exec, Out&& out, const Q& q, const K& k, const V& v,
                             const S& selection, index block, const attention_options& options = {},
                             const M&... modifiers) {
  detail::run_selected(exec,
                       detail::open_call(std::forward<Out>(out), q, k, v, options, modifiers...),
                       detail::selection4(selection), block);
}
template <class Out, class Q, class K, class V, tensor_like S, class... M>
requires(!detail::an_executor<Out>) void selected_attention_into(
    Out&& out, const Q& q, const K& k, const V& v, const S& selection, index block,
    const attention_options& options = {}, const M&... modifiers) {
  default_executor exec;
  selected_attention_into(exec, std::forward<Out>(out), q, k, v, selection, block, options,
                          modifiers...);
}

/// selected_attention([executor,] q, k, v, selection, block, ...) -> a tensor of q's family
template <detail::an_executor E, class Q, class K, class V, tensor_like S, class... M>
[[nodiscard]] auto selected_attention(E&& exec, const Q& q, const K& k, const V& v,
                                      const S& selection, index block,
                                      const attention_options& options = {},
                                      const M&... modifiers) {
  detail::require_tensors<const Q&, const K&, const V&>();
  auto out = result_like<const Q&>(detail::result_extents(q, v));
  selected_attention_into(exec, out, q, k, v, selection, block, options, modifiers...);
  return out;
}
template <class Q, class K, class V, tensor_like S, class... M>
requires(!detail::an_executor<Q>)
    [[nodiscard]] auto selected_attention(const Q& q, const K& k, const V& v, const S& selection,
                                          index block, const attention_options& options = {},
                                          const M&... modifiers) {
  default_executor exec;
  return selected_attention(exec, q, k, v, selection, block, options, modifiers...);
}

}  // namespace heed
