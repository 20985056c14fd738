// SPDX-License-Identifier: MIT
// The associative scan: a recurrence whose segments of tokens run side by side, for few heads and
// many threads.
//
//   1  every segment from an empty state: what it adds to a state, and what it does to one
//   2  head by head, along its segments: the state before each of them
//   3  every segment once more, from its true state, answered
//
// Where segments begin follows from the shape of the call alone, so that the result has the same
// bits for any number of threads; it differs by rounding from that of one pass, whose work is less.
// Source: Blelloch 1990, CMU-CS-90-190 (a recurrence is a scan of an associative operator); the
// second pass is serial here, since a segment is hundreds of tokens to it.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/parallel/executor.hpp"

namespace heed::inline HEED_TARGET::detail {

/// A recurrence (heed/linear/recurrence.hpp) that also tells what a segment does to any state, in
/// `kept_size()` numbers. All but `allocate` are noexcept.
template <class R>
concept segmented_recurrence = requires(const R& r, typename R::scratch_type& s, arena& c, index i,
                                        range t, typename R::scalar* kept) {
  { r.heads() } -> std::convertible_to<index>;
  { r.span_of(i) } -> std::same_as<range>;
  { r.allocate(c) } -> std::same_as<typename R::scratch_type>;
  { r.enter(i, s) } noexcept;
  { r.leave(i, s) } noexcept;
  { r.answer_span(i, t, s) } noexcept;
  { r.kept_size() } -> std::convertible_to<index>;
  /// kept = what tokens t do to a state.
  { r.summarise(i, t, s, kept) } noexcept;
  /// Moves the scratch's state over the segment, and leaves in `kept` the state before it.
  { r.carry(kept, s) } noexcept;
  /// The scratch's state from what `carry` left, ready to answer.
  { r.resume(i, kept, s) } noexcept;
};

/// Tokens a segment, whole chunks of them: at least `least`, and at most 64 segments a sequence.
[[nodiscard]] constexpr index segment_tokens(index tokens, index least, index chunk) noexcept {
  return round_up(std::max(least, ceil_div(tokens, index{64})), chunk);
}

/// Runs r in segments of `length` tokens.
template <executor E, segmented_recurrence R>
void run_segments(E& exec, const R& r, index length, workspace& memory) {
  using A = typename R::scalar;
  const index heads = r.heads();
  if (heads == 0) return;
  index most = 1;
  for (index h = 0; h < heads; ++h) most = std::max(most, ceil_div(r.span_of(h).size(), length));
  const index tasks = heads * most;
  const index workers = std::clamp<index>(static_cast<index>(exec.concurrency()), index{1}, tasks);
  arena scratch_measure;
  (void)r.allocate(scratch_measure);
  const std::size_t each = scratch_measure.used();
  arena kept_measure;
  (void)kept_measure.allocate<A>(tasks * r.kept_size());
  std::byte* const block =
      memory.reserve(kept_measure.used() + each * static_cast<std::size_t>(workers));
  arena kept_carver(block);
  A* const kept = kept_carver.allocate<A>(tasks * r.kept_size());
  const auto scratch_of = [&](index worker) noexcept {
    arena c(block + kept_measure.used() + static_cast<std::size_t>(worker) * each);
    return r.allocate(c);
  };
  const auto kept_of = [&](index head, index segment) noexcept {
    return kept + (head * most + segment) * r.kept_size();
  };
  const auto segment_of = [&](index head, index segment) noexcept {
    const range all = r.span_of(head);
    const index begin = std::min(all.begin + segment * length, all.end);
    return range{begin, std::min(begin + length, all.end)};
  };

  for_each_task(exec, workers, tasks, [&](index worker, index task) noexcept {
    const range t = segment_of(task / most, task % most);
    if (t.empty()) return;
    auto scratch = scratch_of(worker);
    r.summarise(task / most, t, scratch, kept_of(task / most, task % most));
  });
  for_each_task(exec, std::min(workers, heads), heads, [&](index worker, index head) noexcept {
    auto scratch = scratch_of(worker);
    r.enter(head, scratch);
    for (index i = 0; !segment_of(head, i).empty(); ++i) r.carry(kept_of(head, i), scratch);
  });
  for_each_task(exec, workers, tasks, [&](index worker, index task) noexcept {
    const index head = task / most;
    const range t = segment_of(head, task % most);
    if (t.empty()) return;
    auto scratch = scratch_of(worker);
    r.resume(head, kept_of(head, task % most), scratch);
    r.answer_span(head, t, scratch);
    if (t.end == r.span_of(head).end) r.leave(head, scratch);
  });
}

}  // namespace heed::inline HEED_TARGET::detail
