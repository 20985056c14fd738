// SPDX-License-Identifier: MIT
// The associative scan: a recurrence whose segments of tokens run side by side, for few heads and
// many threads.
//
//   1  every segment from an empty state: what it adds to a state, and what it does to one
//   2  head by head, along its segments: the state before each of them
//   3  every segment once more, from its true state: the outputs
//
// A head of one segment goes through pass 3 alone, from the caller's state. Work and memory follow
// the number of segments, whatever the lengths of the other heads.
//
// Where segments begin follows from the length of the sequence alone, so that the result has the
// same bits for any number of threads and any batch; it differs by rounding from that of one pass,
// whose work is less.
// Source: Blelloch 1990, CMU-CS-90-190 (a recurrence is a scan of an associative operator); the
// second pass is serial here, since a segment is hundreds of tokens to it.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/tuning.hpp"
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
  { r.load_state(i, s) } noexcept;
  { r.store_state(i, s) } noexcept;
  { r.compute_span(i, t, s) } noexcept;
  { r.kept_size() } -> std::convertible_to<index>;
  /// kept = what tokens t do to a state.
  { r.summarise(i, t, s, kept) } noexcept;
  /// Moves the scratch's state over the segment, and writes to `kept` the state before it.
  { r.carry(kept, s) } noexcept;
  /// The scratch's state from what `carry` wrote, ready for compute_span.
  { r.resume(i, kept, s) } noexcept;
};

/// Tokens a segment, whole chunks of them: at least `least`, and at most 64 segments a sequence.
[[nodiscard]] constexpr index segment_tokens(index tokens, index least, index chunk) noexcept {
  return round_up((std::max)(least, ceil_div(tokens, index{64})), chunk);
}

/// The segments of all heads: `first[h]` counts those of the heads before h which have several.
/// A head of one segment keeps nothing between the passes, and counts 0.
class segment_list {
 public:
  /// `first` is null, or has heads + 1 numbers.
  template <class R>
  segment_list(const R& r, index least, index chunk, index* first) noexcept
      : least_(least), chunk_(chunk), first_(first) {
    const index heads = r.heads();
    for (index h = 0; h < heads; ++h) {
      if (first_ != nullptr) first_[h] = kept_;
      const index count = segments(r.span_of(h));
      if (count > 1) kept_ += count;
    }
    if (first_ != nullptr) first_[heads] = kept_;
  }
  [[nodiscard]] index kept() const noexcept { return kept_; }
  [[nodiscard]] bool single(index head) const noexcept { return first_[head] == first_[head + 1]; }
  [[nodiscard]] index first(index head) const noexcept { return first_[head]; }
  /// The head of a kept segment, among `heads`.
  [[nodiscard]] index head_of(index kept, index heads) const noexcept {
    return std::upper_bound(first_, first_ + heads + 1, kept) - first_ - 1;
  }
  [[nodiscard]] range at(range all, index segment) const noexcept {
    const index length = segment_tokens(all.size(), least_, chunk_);
    const index begin = (std::min)(all.begin + segment * length, all.end);
    return {begin, (std::min)(begin + length, all.end)};
  }

 private:
  [[nodiscard]] index segments(range all) const noexcept {
    return ceil_div(all.size(), segment_tokens(all.size(), least_, chunk_));
  }
  index least_, chunk_;
  index* first_;
  index kept_ = 0;
};

/// How much of the scratch is what: the list, what is kept between the passes, and each worker's.
struct segment_memory {
  std::size_t list = 0, kept = 0, each = 0;
  index workers = 1;
  [[nodiscard]] std::size_t bytes() const noexcept {
    return list + kept + each * static_cast<std::size_t>(workers);
  }
};

template <executor E, segmented_recurrence R>
[[nodiscard]] segment_memory measure_segments(E& exec, const R& r, index least, index chunk) {
  const index heads = r.heads();
  const segment_list list(r, least, chunk, nullptr);
  arena firsts, kept, scratch;
  (void)firsts.allocate<index>(heads + 1);
  (void)kept.allocate<typename R::scalar>(list.kept() * r.kept_size());
  (void)r.allocate(scratch);
  const index tasks = std::max<index>(list.kept() + heads, 1);
  return {firsts.used(), kept.used(), scratch.used(), worker_count(exec, tasks)};
}

/// Runs r in segments of at least `least` tokens, whole chunks of them.
template <executor E, segmented_recurrence R>
void run_segments(E& exec, const R& r, index least, index chunk, workspace& memory) {
  using A = typename R::scalar;
  const index heads = r.heads();
  if (heads == 0) return;
  const segment_memory m = measure_segments(exec, r, least, chunk);
  std::byte* const block = memory.reserve(m.bytes());
  arena shared(block);
  const segment_list list(r, least, chunk, shared.allocate<index>(heads + 1));
  A* const kept = shared.allocate<A>(list.kept() * r.kept_size());
  const auto scratch_of = [&](index worker) noexcept {
    arena c(block + m.list + m.kept + static_cast<std::size_t>(worker) * m.each);
    return r.allocate(c);
  };
  const auto kept_of = [&](index i) noexcept { return kept + i * r.kept_size(); };

  for_each_task(exec, m.workers, list.kept(), [&](index worker, index i) noexcept {
    const index head = list.head_of(i, heads);
    auto scratch = scratch_of(worker);
    r.summarise(head, list.at(r.span_of(head), i - list.first(head)), scratch, kept_of(i));
  });
  for_each_task(exec, m.workers, heads, [&](index worker, index head) noexcept {
    if (list.single(head)) return;
    auto scratch = scratch_of(worker);
    r.load_state(head, scratch);
    for (index i = list.first(head); i < list.first(head + 1); ++i) r.carry(kept_of(i), scratch);
  });
  for_each_task(exec, m.workers, list.kept() + heads, [&](index worker, index task) noexcept {
    const bool one = task >= list.kept();
    const index head = one ? task - list.kept() : list.head_of(task, heads);
    const range all = r.span_of(head);
    if (one && (!list.single(head) || all.empty())) return;
    const range t = one ? all : list.at(all, task - list.first(head));
    auto scratch = scratch_of(worker);
    if (one) {
      r.load_state(head, scratch);
    } else {
      r.resume(head, kept_of(task), scratch);
    }
    r.compute_span(head, t, scratch);
    if (t.end == all.end) r.store_state(head, scratch);
  });
}

}  // namespace heed::inline HEED_TARGET::detail
