// SPDX-License-Identifier: MIT
// What a member of the linear family is to its driver: a recurrence with a state.
//
// Heads (of batch x KV heads) are independent; tokens of one head follow one another. A recurrence
// says how one token, or a chunk of consecutive tokens, updates the state and reads its output from
// it; the driver schedules the tasks. Scratch is allocated once a worker. One head is one task,
// computed from its first token to its last, so that the result has the same bits for any number of
// threads.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <span>
#include <string>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/parallel/scratch_tasks.hpp"

namespace heed::inline HEED_TARGET {

/// `load_state` copies the head's state to the scratch, `store_state` writes it back. In between
/// come, in the order of the tokens, steps of one token or chunks of several. All are noexcept.
template <class R>
concept recurrence = requires(const R& r, typename R::scratch_type& s, arena& c, index i, range t) {
  { r.heads() } -> std::convertible_to<index>;
  { r.tokens() } -> std::convertible_to<index>;
  { r.chunk_size() } -> std::convertible_to<index>;
  { r.allocate(c) } -> std::same_as<typename R::scratch_type>;
  { r.load_state(i, s) } noexcept;
  { r.step(i, i, s) } noexcept;
  { r.chunk(i, t, s) } noexcept;
  { r.store_state(i, s) } noexcept;
};

/// One whose state may take up all keys before any output is computed.
template <class R>
concept separable_recurrence =
    recurrence<R> && requires(const R& r, typename R::scratch_type& s, index i, range t) {
      { r.keys() } -> std::convertible_to<index>;
      { r.update_state(i, t, s) } noexcept;
      { r.compute_output(i, t, s) } noexcept;
    };

namespace detail {

/// Throws unless the bounds rise from 0 to the tokens of a batch of 1, or are absent.
inline void check_sequence_bounds(std::span<const index> bounds, const char* name, index batch,
                                  index tokens) {
  if (bounds.empty()) return;
  require_equal(name, "batch", batch, "a ragged call", 1);
  if (bounds.front() != 0 || bounds.back() != tokens ||
      !std::is_sorted(bounds.begin(), bounds.end())) {
    fail<shape_error>("sequence_bounds " + format_extents(bounds) + " do not rise from 0 to " +
                      name + "'s tokens " + std::to_string(tokens));
  }
}

/// f(sequence, its tokens) for each sequence of a ragged batch.
template <class F>
void for_each_sequence(std::span<const index> bounds, F&& f) {
  for (std::size_t n = 0; n + 1 < bounds.size(); ++n) {
    f(static_cast<index>(n), range{bounds[n], bounds[n + 1]});
  }
}

/// The sequences of a ragged batch, or the entries of a plain one.
[[nodiscard]] inline index sequence_count(std::span<const index> bounds, index batch) noexcept {
  return bounds.empty() ? batch : static_cast<index>(bounds.size()) - 1;
}
/// The tokens of a sequence: all of them where the batch is plain.
[[nodiscard]] inline range sequence_tokens(std::span<const index> bounds, index sequence,
                                           index tokens) noexcept {
  if (bounds.empty()) return {0, tokens};
  const auto at = static_cast<std::size_t>(sequence);
  return {bounds[at], bounds[at + 1]};
}
/// Tokens of the longest sequence.
[[nodiscard]] inline index longest_sequence(std::span<const index> bounds, index tokens) noexcept {
  if (bounds.empty()) return tokens;
  index most = 0;
  for_each_sequence(bounds, [&](index, range t) { most = (std::max)(most, t.size()); });
  return most;
}

/// Bytes that for_each_with_scratch reserves for these tasks.
template <class E, class Allocate>
[[nodiscard]] std::size_t scratch_bytes(E& exec, index tasks, Allocate&& allocate) {
  if (tasks <= 0) return 0;
  const index workers = worker_count(exec, tasks);
  arena measure;
  (void)allocate(measure);
  return measure.used() * static_cast<std::size_t>(workers);
}

/// f({0, step}), f({step, 2 step}), ... the last one perhaps shorter.
template <class F>
void for_each_chunk(index tokens, index step, F&& f) noexcept {
  for (index t = 0; t < tokens; t += step) f(range{t, (std::min)(t + step, tokens)});
}

/// body(head, scratch) for every head, between the loading and the storing of its state.
template <class E, class R, class Body>
void for_each_state(E& exec, const R& r, workspace& memory, Body&& body) {
  for_each_with_scratch(
      exec, static_cast<index>(r.heads()), memory, [&](arena& c) noexcept { return r.allocate(c); },
      [&](auto& scratch, index head) noexcept {
        r.load_state(head, scratch);
        body(head, scratch);
        r.store_state(head, scratch);
      });
}

}  // namespace detail

/// Token by token.
template <executor E, recurrence R>
void run_recurrent(E& exec, const R& r, workspace& memory) {
  detail::for_each_state(exec, r, memory, [&](index head, auto& scratch) noexcept {
    for (index t = 0; t < r.tokens(); ++t) r.step(head, t, scratch);
  });
}

/// Chunk by chunk.
template <executor E, recurrence R>
void run_chunked(E& exec, const R& r, workspace& memory) {
  detail::for_each_state(exec, r, memory, [&](index head, auto& scratch) noexcept {
    detail::for_each_chunk(r.tokens(), r.chunk_size(),
                           [&](range t) noexcept { r.chunk(head, t, scratch); });
  });
}

/// All keys, then all queries, `step` at a time.
template <executor E, separable_recurrence R>
void run_separately(E& exec, const R& r, index step, workspace& memory) {
  detail::for_each_state(exec, r, memory, [&](index head, auto& scratch) noexcept {
    detail::for_each_chunk(r.keys(), step,
                           [&](range t) noexcept { r.update_state(head, t, scratch); });
    detail::for_each_chunk(r.tokens(), step,
                           [&](range t) noexcept { r.compute_output(head, t, scratch); });
  });
}

}  // namespace heed::inline HEED_TARGET
