// SPDX-License-Identifier: MIT
// What a member of the linear family is to its driver: a recurrence with a state.
//
// Heads (of batch x KV heads) are independent; tokens of one head follow one another. A recurrence
// says how one token, or a chunk of consecutive tokens, changes the state and is answered from it;
// the driver says who computes what when. Scratch is allocated once a worker; one head is one task,
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

/// `enter` brings the head's state into the scratch, `leave` takes it home; in between come, in the
/// order of the tokens, steps of one token or chunks of several. All but `allocate` are noexcept.
template <class R>
concept recurrence = requires(const R& r, typename R::scratch_type& s, arena& c, index i, range t) {
  { r.heads() } -> std::convertible_to<index>;
  { r.tokens() } -> std::convertible_to<index>;
  { r.chunk_size() } -> std::convertible_to<index>;
  { r.allocate(c) } -> std::same_as<typename R::scratch_type>;
  { r.enter(i, s) } noexcept;
  { r.step(i, i, s) } noexcept;
  { r.chunk(i, t, s) } noexcept;
  { r.leave(i, s) } noexcept;
};

/// One in which the keys may all be taken in before any query is answered.
template <class R>
concept separable_recurrence =
    recurrence<R> && requires(const R& r, typename R::scratch_type& s, index i, range t) {
      { r.keys() } -> std::convertible_to<index>;
      { r.absorb(i, t, s) } noexcept;
      { r.answer(i, t, s) } noexcept;
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

/// f(sequence, its tokens) for each sequence of a ragged batch; the longest first, so that what it
/// allocates suffices for all, and nothing is written by a call that cannot.
template <class F>
void for_each_sequence(std::span<const index> bounds, F&& f) {
  const auto tokens = [&](std::size_t n) { return range{bounds[n], bounds[n + 1]}; };
  std::size_t longest = 0;
  for (std::size_t n = 0; n + 1 < bounds.size(); ++n) {
    if (tokens(n).size() > tokens(longest).size()) longest = n;
  }
  if (bounds.size() > 1) f(static_cast<index>(longest), tokens(longest));
  for (std::size_t n = 0; n + 1 < bounds.size(); ++n) {
    if (n != longest) f(static_cast<index>(n), tokens(n));
  }
}

/// f({0, step}), f({step, 2 step}), ... the last one perhaps shorter.
template <class F>
void for_each_chunk(index tokens, index step, F&& f) noexcept {
  for (index t = 0; t < tokens; t += step) f(range{t, std::min(t + step, tokens)});
}

/// body(head, scratch) for every head, its state brought in before and taken home after.
template <class E, class R, class Body>
void for_each_state(E& exec, const R& r, workspace& memory, Body&& body) {
  for_each_with_scratch(
      exec, static_cast<index>(r.heads()), memory, [&](arena& c) noexcept { return r.allocate(c); },
      [&](auto& scratch, index head) noexcept {
        r.enter(head, scratch);
        body(head, scratch);
        r.leave(head, scratch);
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
    detail::for_each_chunk(r.keys(), step, [&](range t) noexcept { r.absorb(head, t, scratch); });
    detail::for_each_chunk(r.tokens(), step, [&](range t) noexcept { r.answer(head, t, scratch); });
  });
}

}  // namespace heed::inline HEED_TARGET
