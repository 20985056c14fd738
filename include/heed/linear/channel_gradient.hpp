// SPDX-License-Identifier: MIT
// The driver of backward passes whose channels never meet: the scans and the convolution.
//
// A block of channels of one sequence is a task. Its width is fixed, as is where chunks of tokens
// begin, so that the result has the same bits for any number of threads. What is summed over
// sequences, or over blocks, is summed by each task apart, and at last in the order of the tasks.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <span>
#include <string>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/channel_blocks.hpp"
#include "heed/linear/gradient_views.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/parallel/executor.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class G>
concept channel_gradient = requires(G& g, typename G::scratch_type& s, arena& c, index task) {
  { g.tasks() } -> std::convertible_to<index>;
  /// What tasks leave for the sums.
  { g.allocate_sums(c) } noexcept;
  { g.allocate(c) } noexcept -> std::same_as<typename G::scratch_type>;
  { g.run(task, s) } noexcept;
  { g.sum_tasks() } -> std::convertible_to<index>;
  { g.sum(task) } noexcept;
};

template <executor E, channel_gradient G>
void run_channel_gradient(E& exec, G& gradient, workspace* kept) {
  scratch_lease lease(kept);
  workspace& memory = lease.memory();
  const index tasks = gradient.tasks(), sums = gradient.sum_tasks();
  const index workers = worker_count(exec, (std::max)(tasks, sums));
  arena shared, each;
  gradient.allocate_sums(shared);
  (void)gradient.allocate(each);
  const index own = saturating_product(static_cast<index>(each.used()), workers);
  const auto before = static_cast<index>(shared.used());
  std::byte* const block =
      memory.reserve(own > largest_index - before ? workspace::most_bytes
                                                  : static_cast<std::size_t>(own + before));
  arena first(block);
  gradient.allocate_sums(first);
  for_each_task(exec, workers, tasks, [&](index worker, index task) noexcept {
    arena c(block + shared.used() + static_cast<std::size_t>(worker) * each.used());
    auto scratch = gradient.allocate(c);
    gradient.run(task, scratch);
  });
  for_each_task(exec, workers, sums, [&](index, index task) noexcept { gradient.sum(task); });
}

/// Blocks of channels of the sequences of [batch, tokens, channels].
struct gradient_blocks {
  channel_plan plan;
  std::span<const index> bounds;
  index tokens = 0;

  [[nodiscard]] index sequences() const noexcept { return plan.sequences; }
  [[nodiscard]] range tokens_of(const channel_block& c) const noexcept {
    return sequence_tokens(bounds, c.sequence, tokens);
  }
  [[nodiscard]] index longest() const noexcept { return longest_sequence(bounds, tokens); }
};

/// Throws unless the bounds fit.
[[nodiscard]] inline gradient_blocks blocks_of_channels(const char* name,
                                                        const std::array<index, 3>& x,
                                                        std::span<const index> bounds, index groups,
                                                        index width) {
  check_sequence_bounds(bounds, name, x[0], x[1]);
  return {{sequence_count(bounds, x[0]), groups, x[2], width, !bounds.empty()}, bounds, x[1]};
}

/// The chunks of `tokens`, the last one first, each with the state before it in `state`:
/// advance(tokens) makes it that after them, reverse(tokens) may leave anything there. `kept` has
/// room for `size` numbers a chunk.
template <class A, class Advance, class Reverse>
void reverse_chunks(range tokens, index chunk, A* state, index size, A* kept,
                    const Advance& advance, const Reverse& reverse) noexcept {
  const index chunks = ceil_div(tokens.size(), chunk);
  const auto at = [&](index c) noexcept {
    const index begin = tokens.begin + c * chunk;
    return range{begin, (std::min)(begin + chunk, tokens.end)};
  };
  for (index c = 0; c < chunks; ++c) {
    std::copy_n(state, size, kept + c * size);
    if (c + 1 < chunks) advance(at(c));
  }
  for (index c = chunks; c-- > 0;) {
    std::copy_n(kept + c * size, size, state);
    reverse(at(c));
  }
}

/// Rows of a tensor, or zeros where it is absent.
template <class T, class A>
void load_given(const view<const T, 3>& x, const channel_block& c, range t, A* to, index width,
                index unit) noexcept {
  if (has_data(x)) {
    load_channels(x, c, t, to, width, unit);
  } else {
    for (index i = 0; i < t.size(); ++i) std::fill_n(to + i * width, round_up(c.count, unit), A(0));
  }
}
template <class A, class T>
void store_wanted(const A* from, index width, const view<T, 3>& x, const channel_block& c,
                  range t) noexcept {
  if (has_data(x)) store_channels(from, width, x, c, t);
}

/// A number of each channel of a block, or zeros; `to` has `width` numbers.
template <class A, class F>
void load_numbers_of(bool given, const channel_block& c, index width, A* to, const F& f) noexcept {
  std::fill_n(to, width, A(0));
  for (index i = 0; given && i < c.count; ++i) to[i] = static_cast<A>(f(c.first + i));
}

/// x where e is not 0, and 0 there, whatever x is.
template <class P>
[[nodiscard]] HEED_INLINE P unless_forgotten(const P& e, const P& x, const P& zero) noexcept {
  return simd::select(simd::equal(e, zero), zero, x);
}

/// 1 / (1 + e^-s), without overflow.
template <class A>
[[nodiscard]] HEED_INLINE simd::packet<A> sigmoid_packet(const simd::packet<A>& s) noexcept {
  const auto one = simd::broadcast(A(1));
  const auto e = simd::exp_nonpositive<A>(simd::sub(simd::zero<A>(), simd::abs(s)));
  return simd::div(simd::select(simd::less(s, simd::zero<A>()), e, one), simd::add(one, e));
}

/// The derivative of s / (1 + e^-s).
template <class A>
[[nodiscard]] HEED_INLINE simd::packet<A> silu_slope(const simd::packet<A>& s) noexcept {
  const auto one = simd::broadcast(A(1));
  const auto open = sigmoid_packet<A>(s);
  return simd::mul(open, simd::fmadd(s, simd::sub(one, open), one));
}

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
