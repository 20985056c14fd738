// SPDX-License-Identifier: MIT
// The driver of diagonal scans: recurrences whose channels never meet, a few numbers of state each.
//
// Consecutive blocks of channels of one sequence are one task, run over all its tokens: tile by tile,
// and in each of them block by block, so that memory is read in long rows however narrow a block.
// In the form `scan` the segments of a block are the tasks. Every token of a channel undergoes the
// same operations wherever blocks end: the result has the same bits for any number of threads. A
// sequence in pieces differs by rounding: a state keeps no low parts from call to call.
//
// What the driver needs of a recurrence is the concept `scan_kernel`.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/api/linear_overloads.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/channel_blocks.hpp"
#include "heed/linear/options.hpp"
#include "heed/linear/parallel_scan.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// What every scan takes besides its inputs.
struct scan_options {
  /// `scan` runs segments of tokens side by side, at twice the work: for fewer channels than fill
  /// the threads. Otherwise token after token; `parallel` has no meaning here.
  std::optional<linear_form> form = std::nullopt;
  /// Sequences of different lengths, one after another on the token axis of a batch of 1: where
  /// each begins, and at last where the last one ends. The state has one batch entry a sequence.
  std::span<const index> sequence_bounds{};
  workspace* scratch = nullptr;  ///< kept by the caller, so that a call allocates nothing
};

namespace detail {

/// A diagonal recurrence over blocks of channels, with states in A.
template <class K, class A>
concept scan_kernel =
    requires(const K& kernel, typename K::scratch_type& s, arena& c, const channel_block& block,
             range tokens, A* move, A* before, const channel_ahead& ahead) {
      /// Most channels of a block, whole units of which it has, and tokens of a tile.
      { K::width } -> std::convertible_to<index>;
      { K::unit } -> std::convertible_to<index>;
      { K::tile_tokens } -> std::convertible_to<index>;
      /// What any block may use for a tile.
      { kernel.allocate(c) } noexcept -> std::same_as<typename K::scratch_type>;
      /// What belongs to a block's channels from tile to tile.
      { kernel.allocate_channels(c, s) } noexcept;
      /// The latter, with the empty state.
      { kernel.prepare(block, s) } noexcept;
      /// The caller's state, if any.
      { kernel.load_state(block, s) } noexcept;
      { kernel.store_state(block, s) } noexcept;
      /// The state after `tokens`. Where `move` is not null, what they do to any state is added to its
      /// numbers. `ahead` is read next.
      { kernel.update_state(block, tokens, s, move, ahead) } noexcept;
      /// The outputs of those tokens, stored.
      { kernel.compute_output(block, tokens, s) } noexcept;
      /// The state in one piece.
      { kernel.state_numbers(s) } noexcept -> std::same_as<A*>;
      { kernel.state_size() } noexcept -> std::convertible_to<index>;
      /// Numbers of `move`, zeros before the first token.
      { kernel.move_size() } noexcept -> std::convertible_to<index>;
      /// The state, reached from an empty one, as if from `before`.
      { kernel.join(before, move, s) } noexcept;
    };

/// The tokens of a sequence, of all `tokens` where no bounds cut them.
[[nodiscard]] inline range sequence_span(std::span<const index> bounds, index sequence,
                                         index tokens) noexcept {
  if (bounds.empty()) return {0, tokens};
  const auto at = static_cast<std::size_t>(sequence);
  return {bounds[at], bounds[at + 1]};
}

/// f(tile) over the tokens t, the kernel's tiles.
template <class Kernel, class F>
void each_scan_tile(range t, F&& f) noexcept {
  for_each_chunk(t.size(), Kernel::tile_tokens,
                 [&](range c) noexcept { f(range{t.begin + c.begin, t.begin + c.end}); });
}

/// A member's kernel as a recurrence of blocks of channels.
template <class A, class Kernel>
struct channel_recurrence {
  using scalar = A;
  using scratch_type = typename Kernel::scratch_type;

  const Kernel& kernel;
  channel_plan plan;
  std::span<const index> bounds;
  index tokens;

  [[nodiscard]] index heads() const noexcept { return plan.blocks(); }
  [[nodiscard]] range span_of(index head) const noexcept {
    return sequence_span(bounds, plan.at(head).sequence, tokens);
  }
  [[nodiscard]] scratch_type allocate(arena& c) const noexcept {
    scratch_type s = kernel.allocate(c);
    kernel.allocate_channels(c, s);
    return s;
  }
  /// No token leaves the state's bits alone.
  void load_state(index head, scratch_type& s) const noexcept {
    if (span_of(head).empty()) return;
    kernel.prepare(plan.at(head), s);
    kernel.load_state(plan.at(head), s);
  }
  void store_state(index head, scratch_type& s) const noexcept {
    if (!span_of(head).empty()) kernel.store_state(plan.at(head), s);
  }
  void compute_span(index head, range t, scratch_type& s) const noexcept {
    const channel_block block = plan.at(head);
    each_scan_tile<Kernel>(t, [&](range tile) noexcept {
      kernel.update_state(block, tile, s, static_cast<A*>(nullptr), {block, tile.end});
      kernel.compute_output(block, tile, s);
    });
  }

  [[nodiscard]] index kept_size() const noexcept {
    return kernel.state_size() + kernel.move_size();
  }
  void summarise(index head, range t, scratch_type& s, A* kept) const noexcept {
    const channel_block block = plan.at(head);
    kernel.prepare(block, s);
    A* const move = kept + kernel.state_size();
    std::fill_n(move, kernel.move_size(), A(0));
    each_scan_tile<Kernel>(t, [&](range tile) noexcept {
      kernel.update_state(block, tile, s, move, {block, tile.end});
    });
    std::copy_n(kernel.state_numbers(s), kernel.state_size(), kept);
  }
  void carry(A* kept, scratch_type& s) const noexcept {
    A* const state = kernel.state_numbers(s);
    std::swap_ranges(state, state + kernel.state_size(), kept);
    kernel.join(kept, kept + kernel.state_size(), s);
  }
  void resume(index head, const A* kept, scratch_type& s) const noexcept {
    kernel.prepare(plan.at(head), s);
    std::copy_n(kept, kernel.state_size(), kernel.state_numbers(s));
  }
};

/// Bands of `length` consecutive blocks of a sequence.
template <class A, executor E, class Kernel>
void run_blocks(E& exec, const Kernel& kernel, const channel_plan& plan,
                std::span<const index> bounds, index tokens, index length, workspace& memory) {
  using scratch_type = typename Kernel::scratch_type;
  const index per_sequence = ceil_div(plan.blocks_per_sequence(), length);
  const index tasks = plan.sequences * per_sequence;
  const auto allocate = [&](arena& c) noexcept {
    const scratch_type shared = kernel.allocate(c);
    auto* const blocks = c.allocate<scratch_type>(length);
    for (index i = 0; i < length; ++i) {
      scratch_type own = shared;
      kernel.allocate_channels(c, own);
      if (blocks != nullptr) blocks[i] = own;
    }
    return blocks;
  };
  for_each_with_scratch(exec, tasks, memory, allocate, [&](scratch_type* s, index task) noexcept {
    const index sequence = task / per_sequence;
    const range all = sequence_span(bounds, sequence, tokens);
    if (all.empty()) return;  // no token leaves the state's bits alone
    const index first = sequence * plan.blocks_per_sequence() + task % per_sequence * length;
    const index count = (std::min)(length, (sequence + 1) * plan.blocks_per_sequence() - first);
    for (index i = 0; i < count; ++i) {
      kernel.prepare(plan.at(first + i), s[i]);
      kernel.load_state(plan.at(first + i), s[i]);
    }
    each_scan_tile<Kernel>(all, [&](range tile) noexcept {
      for (index i = 0; i < count; ++i) {
        const channel_block at = plan.at(first + i);
        const channel_ahead ahead = i + 1 < count
                                        ? channel_ahead{plan.at(first + i + 1), tile.begin}
                                        : channel_ahead{plan.at(first), tile.end};
        kernel.update_state(at, tile, s[i], static_cast<A*>(nullptr), ahead);
        kernel.compute_output(at, tile, s[i]);
      }
    });
    for (index i = 0; i < count; ++i) kernel.store_state(plan.at(first + i), s[i]);
  });
}

/// Runs a member's kernel over [batch, tokens, channels] in `groups`, as `o` says.
template <class A, executor E, scan_kernel<A> Kernel, class Options>
void run_channel_scan(E& exec, const Kernel& kernel, const std::array<index, 3>& x, index groups,
                      const Options& o) {
  const bool ragged = !o.sequence_bounds.empty();
  const index sequences = ragged ? static_cast<index>(o.sequence_bounds.size()) - 1 : x[0];
  const bool segmented = o.form == linear_form::scan;
  constexpr index fewest = tuning<kernel::segmented, A>::fewest_tokens;
  const index length = segment_tokens(x[1], fewest, Kernel::tile_tokens);
  const index pieces = !segmented ? sequences
                       : ragged   ? sequences + ceil_div(x[1], length)
                                  : sequences * ceil_div(x[1], length);
  const index share = channels_per_task(exec, pieces, x[2], Kernel::unit);
  const channel_plan plan{sequences, groups, x[2], (std::min)(share, Kernel::width), ragged};
  scratch_lease lease(o.scratch);
  workspace& memory = lease.memory();
  if (segmented) {
    const channel_recurrence<A, Kernel> r{kernel, plan, o.sequence_bounds, x[1]};
    return run_segments(exec, r, fewest, Kernel::tile_tokens, memory);
  }
  const index wide = std::max<index>((std::min)(plan.width, plan.group_size()), 1);
  const index together = std::max<index>((std::min)({share, task_channels<A>, x[2]}) / wide, 1);
  run_blocks<A>(exec, kernel, plan, o.sequence_bounds, x[1], together, memory);
}

/// A tensor that a scan reads, and its scalar's compatibility with the accumulator type.
template <class A, int Rank, class T>
[[nodiscard]] auto scan_input(const T& t) {
  static_assert(tensor_like<const T&>,
                "heed: an input is not a tensor; specialise heed::tensor_traits for its type");
  static_assert(attention_scalar<scalar_of<const T&>>,
                "heed: inputs of a scan are float, double, half or bfloat16");
  static_assert(std::is_same_v<accumulate_t<scalar_of<const T&>>, A>,
                "heed: inputs of a scan accumulate in different types; double goes with double "
                "alone");
  static_assert(rank_of<const T&> == Rank, "heed: an input of a scan has the wrong rank");
  return view<const scalar_of<const T&>, Rank>(as_view(t));
}

/// Throws shape_error unless `what` has the extents.
template <std::size_t Rank>
void require_extents(const char* what, const std::array<index, Rank>& got,
                     const std::array<index, Rank>& needed) {
  if (got != needed) {
    fail<shape_error>(std::string(what) + " has extents " + format_extents(got) +
                      ", the call needs " + format_extents(needed));
  }
}

/// Options, and the caller's state as a view [sequences, rest...]: null where none is kept.
template <class A, class State, class Options, std::size_t Rest>
[[nodiscard]] auto open_scan(const std::array<index, 3>& x, const char* name, State&& state,
                             const Options& o, const std::array<index, Rest>& rest) {
  check_sequence_bounds(o.sequence_bounds, name, x[0], x[1]);
  if (o.form == linear_form::parallel) {
    fail<option_error>("form is parallel, but a scan has no quadratic form");
  }
  using state_view = view<A, static_cast<int>(Rest) + 1>;
  if constexpr (std::is_same_v<std::remove_cvref_t<State>, no_state>) {
    return state_view{};
  } else {
    static_assert(tensor_like<State>,
                  "heed: a state is a tensor; options are of the member's type");
    static_assert(std::is_same_v<view_of<State>, state_view>,
                  "heed: the state has another rank, or not the accumulator type (float, or double "
                  "for double), or is constant");
    std::array<index, Rest + 1> needed{};
    needed[0] = o.sequence_bounds.empty() ? x[0] : static_cast<index>(o.sequence_bounds.size()) - 1;
    std::copy(rest.begin(), rest.end(), needed.begin() + 1);
    const state_view v = as_view(std::forward<State>(state));
    require_extents("state", v.extents(), needed);
    return v;
  }
}

/// Base of a member: results shaped as the first input.
template <std::size_t Inputs>
struct scan_method {
  static constexpr std::size_t inputs = Inputs;
  using options = scan_options;
  template <class First, class... Rest>
  [[nodiscard]] static auto result(const First& first, const Rest&...) {
    static_assert(tensor_like<const First&>,
                  "heed: the first input is not a tensor; specialise heed::tensor_traits");
    return result_like<const First&>(as_view(first).extents());
  }
};

}  // namespace detail
}  // namespace heed::inline HEED_TARGET
