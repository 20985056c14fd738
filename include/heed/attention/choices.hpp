// SPDX-License-Identifier: MIT
// What a selection of blocks says: checked against a call, and read row by row.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "heed/attention/call.hpp"

namespace heed::detail {

template <class S>
[[nodiscard]] auto selection4(const S& selection) {
  using I = scalar_of<const S&>;
  static_assert(std::is_integral_v<std::remove_const_t<I>>,
                "heed: a selection is a tensor of integers");
  return view<const std::remove_const_t<I>, 4>(as_rank4(as_view(selection)));
}

template <class I>
void check_selection(const view<const I, 4>& s, index block, const score_extents& e) {
  if (block < 1) fail<option_error>("block is " + std::to_string(block) + ", must be at least 1");
  const bool heads = s.extent(1) == 1 || s.extent(1) == e.kv_heads || s.extent(1) == e.heads;
  if ((s.extent(0) != 1 && s.extent(0) != e.batch) || !heads || s.extent(2) != e.queries) {
    const index call[] = {e.batch, e.heads, e.queries};
    fail<shape_error>("selection has extents " + format_extents(s.extents()) +
                      " (batch, heads, queries, choices), the call has " + format_extents(call) +
                      " and " + std::to_string(e.kv_heads) + " kv heads");
  }
  const index blocks = ceil_div(e.keys, block);
  for (index b = 0; b < s.extent(0); ++b) {
    for (index h = 0; h < s.extent(1); ++h) {
      for (index i = 0; i < s.extent(2); ++i) {
        for (index c = 0; c < s.extent(3); ++c) {
          if (static_cast<index>(s(b, h, i, c)) < blocks) continue;
          fail<shape_error>("selection names block " +
                            std::to_string(static_cast<index>(s(b, h, i, c))) + ", k has " +
                            std::to_string(blocks) + " blocks of " + std::to_string(block));
        }
      }
    }
  }
}

/// The row's choices among `blocks` blocks, ascending, without repeats.
template <class I, class To>
[[nodiscard]] index sort_choices(const view<const I, 4>& s, index b, index h, index i, index blocks,
                                 To* to) noexcept {
  index n = 0;
  for (index c = 0; c < s.extent(3); ++c) {
    const auto block = static_cast<index>(s(s.extent(0) == 1 ? 0 : b, h, i, c));
    if (block >= 0 && block < blocks) to[n++] = static_cast<To>(block);
  }
  std::sort(to, to + n);
  return std::unique(to, to + n) - to;
}

/// The head of the selection that serves query head h.
template <class I>
[[nodiscard]] index selection_head(const view<const I, 4>& s, const score_extents& e,
                                   index h) noexcept {
  if (s.extent(1) == 1) return 0;
  return s.extent(1) == e.heads ? h : h / (e.heads / e.kv_heads);
}

}  // namespace heed::detail
