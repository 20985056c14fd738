// SPDX-License-Identifier: MIT
// Exact attention among tokens that lists put together: a task whose rows and keys are any tokens.
//
// The tiled kernel runs on the lists as if their tokens lay side by side: its source reads each
// key where it lies, its program answers about the tokens' own positions, so that causal masks,
// biases, ALiBi and lambdas mean what they mean everywhere. A `pair_rule` says which pairs of the
// lists belong together.
//
// A task leaves normalised rows and their log-sum-exps, in the accumulator type, without sinks,
// which join once a row is complete. Scratch: the task's rows, and the kernel's own.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "heed/api/attention_arguments.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/row_pointers.hpp"
#include "heed/kernel/tiled/task.hpp"
#include "heed/score/remap.hpp"

namespace heed::inline HEED_TARGET::detail {

/// A row or key of a list. Half as wide as an index: lists are as many as tokens, times rounds.
using listed_token = std::int32_t;

/// The rows and keys of a task; `offset` is the call's, position minus row.
struct token_lists {
  const listed_token* rows = nullptr;
  const listed_token* keys = nullptr;
  index row_count = 0;
  index key_count = 0;
  index offset = 0;

  [[nodiscard]] HEED_INLINE position moved(position p) const noexcept {
    p.row = rows[p.row];
    p.query = offset + p.row;
    p.key = keys[p.key];
    return p;
  }
};

/// The smallest range that holds the tokens.
[[nodiscard]] inline range hull_of(const listed_token* tokens, range of) noexcept {
  if (of.empty()) return {0, 0};
  listed_token low = tokens[of.begin];
  listed_token high = low;
  for (index i = of.begin + 1; i < of.end; ++i) {
    low = (std::min)(low, tokens[i]);
    high = (std::max)(high, tokens[i]);
  }
  return {low, index{high} + 1};
}

/// Reads listed keys of a source, a row at a time, and prefetches those that come some rows later.
template <class Source>
class listed_source {
 public:
  using key_scalar = typename Source::key_scalar;
  using value_scalar = typename Source::value_scalar;
  listed_source(const Source& s, const token_lists& l) noexcept : source_(&s), lists_(l) {}
  [[nodiscard]] row_run<key_scalar> keys(index b, index h, index j) const noexcept {
    prefetch_row<2>(source_->keys(b, h, later(j)).data, source_->head_dim());
    return one(source_->keys(b, h, lists_.keys[j]));
  }
  [[nodiscard]] row_run<value_scalar> values(index b, index h, index j) const noexcept {
    prefetch_row<2>(source_->values(b, h, later(j)).data, source_->value_dim());
    return one(source_->values(b, h, lists_.keys[j]));
  }
  [[nodiscard]] index key_channel_stride() const noexcept { return source_->key_channel_stride(); }
  [[nodiscard]] index value_channel_stride() const noexcept {
    return source_->value_channel_stride();
  }

 private:
  static constexpr index rows_ahead = 16;

  [[nodiscard]] index later(index j) const noexcept {
    return lists_.keys[(std::min)(j + rows_ahead, lists_.key_count - 1)];
  }
  template <class T>
  [[nodiscard]] static row_run<T> one(row_run<T> r) noexcept {
    r.count = 1;
    return r;
  }
  const Source* source_;
  token_lists lists_;
};

/// Which pairs of the lists belong together, by place in the lists.
template <class Rule>
concept pair_rule = requires(const Rule& rule, const tile& t) {
  /// f(mask) for each of its masks.
  rule.each([](const auto&) {});
  /// Of those masks, as a mask's own.
  { rule.coverage(t) } noexcept -> std::same_as<coverage>;
  { rule.visible_keys(t) } noexcept -> std::same_as<range>;
};

/// The tokens of lists, and the rule of which pairs belong together.
template <pair_rule Rule>
struct listed_map {
  const Rule* rule;
  token_lists lists;

  [[nodiscard]] HEED_INLINE token_lists positions() const noexcept { return lists; }
  template <class F>
  HEED_INLINE void each_mask(F&& f) const {
    rule->each(f);
  }
  /// What is visible in the rectangle around the tokens decides where it is all or nothing.
  template <class Program>
  [[nodiscard]] coverage coverage_in(const Program& program, const tile& t) const noexcept {
    const coverage c = rule->coverage(t);
    if (c == coverage::empty || !limits<Program>) return c;
    const coverage around = program.coverage_in(rectangle_around(t));
    return around == coverage::full ? c : around;
  }
  template <class Program>
  [[nodiscard]] range visible_keys(const Program& program, const tile& t) const noexcept {
    range r = rule->visible_keys(t);
    if (!limits<Program> || r.empty()) return r;
    tile part = t;
    part.keys = r;
    const range seen = program.visible_keys(rectangle_around(part));
    const auto outside = [&](index j) {
      return lists.keys[j] < seen.begin || lists.keys[j] >= seen.end;
    };
    while (!r.empty() && outside(r.end - 1)) --r.end;
    while (!r.empty() && outside(r.begin)) ++r.begin;
    return r;
  }

 private:
  template <class Program>
  static constexpr bool limits =
      Program::template has<stage::mask> || Program::template has<stage::bias>;

  [[nodiscard]] tile rectangle_around(tile t) const noexcept {
    const range rows = hull_of(lists.rows, t.queries);
    t.queries = {lists.offset + rows.begin, lists.offset + rows.end};
    t.keys = hull_of(lists.keys, t.keys);
    t.offset = lists.offset;
    return t;
  }
};

/// The scratch of one worker.
template <class Call>
struct listed_scratch {
  using A = typename Call::A;
  static constexpr index most_rows = tile_plan<A>::group * tile_plan<A>::groups_per_task;

  exact_scratch<A> kernel;
  typename Call::query_scalar* q = nullptr;  // a task's rows, gathered: [most rows][head dim]

  void allocate(arena& c, head_dims d) noexcept {
    kernel.allocate(c, d);
    q = c.allocate<typename Call::query_scalar>(most_rows * d.head_dim);
  }
};

/// The listed rows (most_rows at the most) of head h against the listed keys: `out` gets
/// [rows][value dim], `lse` [rows].
template <class Call, pair_rule Rule, class A>
void attend_lists(const Call& call, const Rule& rule, index b, index h, const token_lists& lists,
                  listed_scratch<Call>& s, A* out, A* lse) noexcept {
  using TQ = typename Call::query_scalar;
  const head_dims d{call.q.extent(3), call.out.extent(3)};
  for (index r = 0; r < lists.row_count; ++r) {
    prefetch_row<2>(call.query_rows(b, h, lists.rows[(std::min)(r + 16, lists.row_count - 1)]).data,
                    d.head_dim);
    const rectangle<const TQ> from = call.query_rows(b, h, lists.rows[r]);
    copy_tile<TQ, TQ>(from, {s.q + r * d.head_dim, d.head_dim, 1}, 1, d.head_dim);
  }
  const remapped_program program(call.program, listed_map<Rule>{&rule, lists});
  const listed_source source(call.source, lists);
  const tile where{b, h, h / call.group(), {0, lists.row_count}, {0, lists.key_count}, 0};
  exact_task(program, source, where, d, rectangle<const TQ>{s.q, d.head_dim, 1},
             rectangle<A>{out, d.value_dim, 1}, call.scale, lse, 1, s.kernel);
}

/// A row out of normalised parts: sums of their weighted values, compensated as a row's keys are.
/// Sums are kept times `scale`, a power of 2, so that values near the largest number stay in range.
template <class A>
struct part_sums {
  A scale;
  index channels;

  part_sums(index parts, index value_dim) noexcept : scale(scale_for(parts)), channels(value_dim) {}

  [[nodiscard]] static A scale_for(index parts) noexcept {
    A s = A(1);
    while (s * static_cast<A>(parts) > A(1)) s /= 2;
    return s;
  }

  /// The first part, of weight `weight`. `out` may be `part`.
  void start(A* out, A* lost, const A* part, A weight) const noexcept {
    for (index c = 0; c < channels; ++c) out[c] = scale * weight * part[c];
    if (lost != nullptr) std::fill_n(lost, channels, A(0));
  }
  /// A part joins what the row has so far. `lost` may be absent where it is the only one; `part` is
  /// overwritten.
  void join(softmax_state<A>& state, A* out, A* lost, A lse, A* part) const noexcept {
    if (lse == softmax_state<A>::empty_max) return;
    const auto w = state.merge({lse, A(1)});
    if (w.self == A(0)) return start(out, lost, part, w.other);
    for (index c = 0; c < channels; ++c) part[c] *= scale * w.other;
    add_to_past(out, lost, w.self, part, channels);
  }
  /// The sums of a row that has had all its parts.
  void finish(const softmax_state<A>& state, A* out, const A* lost) const noexcept {
    if (state.sum != A(0) && lost != nullptr) add_lost(out, lost, channels);
  }
};

/// Writes back a complete row: the sink joins the sum, which divides. `out` holds its sums times
/// `scale`.
template <class Call>
void write_row(const Call& call, index b, index h, index i, softmax_state<typename Call::A> state,
               const typename Call::A* out, typename Call::A scale = typename Call::A(1)) noexcept {
  using A = typename Call::A;
  const A factor = state.join_sink(call.program.sink_logit(h)) * state.normaliser() / scale;
  const bool empty = factor == A(0);
  const auto to = call.output_rows(b, h, i);
  for (index c = 0; c < call.out.extent(3); ++c) {
    *to.at(0, c) = static_cast<typename Call::output_scalar>(empty ? A(0) : out[c] * factor);
  }
  if (A* lse = call.lse_rows(b, h, i)) *lse = state.log_sum_exp();
}

/// Which of a list tensor's heads serves a head of the call.
struct list_heads {
  index batch;
  index heads;

  [[nodiscard]] index operator()(const score_extents& e, index b, index h) const noexcept {
    const index group = e.kv_heads > 0 ? e.heads / e.kv_heads : 1;
    return (batch == 1 ? 0 : b) * heads + (heads == 1 ? 0 : heads == e.heads ? h : h / group);
  }
  [[nodiscard]] index size() const noexcept { return batch * heads; }
};

/// Lists have 1 batch or the call's, and 1 head, the KV heads or the query heads.
inline void check_list_heads(const char* name, const std::array<index, 4>& lists,
                             const score_extents& e) {
  const bool heads = lists[1] == 1 || lists[1] == e.kv_heads || lists[1] == e.heads;
  if ((lists[0] == 1 || lists[0] == e.batch) && heads) return;
  fail<shape_error>(std::string(name) + " has extents " + format_extents(lists) +
                    ", the call has batch " + std::to_string(e.batch) + ", heads " +
                    std::to_string(e.heads) + ", kv heads " + std::to_string(e.kv_heads));
}

template <class S>
[[nodiscard]] auto lists4(const S& lists) {
  using I = std::remove_const_t<scalar_of<const S&>>;
  static_assert(std::is_integral_v<I>, "heed: lists of tokens are tensors of integers");
  return view<const I, 4>(as_rank4(as_view(lists)));
}

/// Rows and keys must be countable by a listed_token.
inline void check_listable(const score_extents& e) {
  constexpr index most = (std::numeric_limits<listed_token>::max)();
  if (e.queries > most || e.keys > most) {
    fail<shape_error>("q has " + std::to_string(e.queries) + " tokens, k " +
                      std::to_string(e.keys) + "; lists hold at most " + std::to_string(most));
  }
}

}  // namespace heed::inline HEED_TARGET::detail
