// SPDX-License-Identifier: MIT
// What a selection of blocks says: checked against a call, and read row by row.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "heed/api/attention_arguments.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class S>
[[nodiscard]] auto selection4(const S& selection) {
  using I = scalar_of<const S&>;
  static_assert(std::is_integral_v<std::remove_const_t<I>>,
                "heed: a selection is a tensor of integers");
  return view<const std::remove_const_t<I>, 4>(as_rank4(as_view(selection)));
}

template <class I>
[[nodiscard]] const I* row_of_choices(const view<const I, 4>& s, index b, index h,
                                      index i) noexcept {
  return s.data() + (s.extent(0) == 1 ? 0 : b) * s.stride(0) + h * s.stride(1) + i * s.stride(2);
}

template <class I>
void check_selection(const view<const I, 4>& s, index block, const score_extents& e) {
  if (block < 1) fail<option_error>("block is " + std::to_string(block) + ", must be at least 1");
  const bool heads = s.extent(1) == 1 || s.extent(1) == e.kv_heads || s.extent(1) == e.heads;
  if ((s.extent(0) != 1 && s.extent(0) != e.batch) || !heads || s.extent(2) != e.queries) {
    const index call[] = {e.batch, e.heads, e.queries};
    fail<shape_error>("selection has extents " + format_extents(s.extents()) +
                      " (batch, heads, queries, selected), the call has " + format_extents(call) +
                      " and " + std::to_string(e.kv_heads) + " kv heads");
  }
  const index blocks = ceil_div(e.keys, block);
  constexpr index listed = (std::numeric_limits<std::int32_t>::max)();
  if (blocks > listed) {
    fail<shape_error>("k has " + std::to_string(blocks) + " blocks of " + std::to_string(block) +
                      ", a selection may be of " + std::to_string(listed));
  }
  const index step = s.stride(3);
  for (index row = 0; row < s.extent(0) * s.extent(1) * s.extent(2); ++row) {
    const index i = row % s.extent(2);
    const index h = row / s.extent(2) % s.extent(1);
    const I* const choice = row_of_choices(s, row / s.extent(2) / s.extent(1), h, i);
    index most = -1;
    for (index c = 0; c < s.extent(3); ++c) {
      most = (std::max)(most, static_cast<index>(choice[c * step]));
    }
    if (most >= blocks) {
      fail<shape_error>("selection names block " + std::to_string(most) + ", k has " +
                        std::to_string(blocks) + " blocks of " + std::to_string(block));
    }
  }
}

/// Each of the row's indices among `blocks` blocks, as it comes.
template <class I, class Use>
HEED_INLINE void each_choice(const view<const I, 4>& s, index b, index h, index i, index blocks,
                             const Use& use) noexcept {
  const index step = s.stride(3);
  const I* choice = row_of_choices(s, b, h, i);
  for (index c = 0; c < s.extent(3); ++c, choice += step) {
    const auto block = static_cast<index>(*choice);
    if (block >= 0 && block < blocks) use(block);
  }
}

/// The row's indices among `blocks` blocks where they come ascending: how many, or -1 where not.
template <class I, class To>
[[nodiscard]] index ascending_choices(const view<const I, 4>& s, index b, index h, index i,
                                      index blocks, To* to) noexcept {
  const index count = s.extent(3);
  const index step = s.stride(3);
  const I* const choice = row_of_choices(s, b, h, i);
  const auto names_one = [=](I x) {
    return static_cast<index>(x) >= 0 && static_cast<index>(x) < blocks;
  };
  if (step == 1 && count > 0 && names_one(choice[0]) && names_one(choice[count - 1])) {
    // A whole row of indices is copied as one.
    index c = 1;
    while (c < count && choice[c - 1] < choice[c]) ++c;
    if (c == count) {
      std::transform(choice, choice + count, to, [](I x) { return static_cast<To>(x); });
      return count;
    }
  }
  index n = 0;
  index last = -1;
  for (index c = 0; c < count; ++c) {
    if (!names_one(choice[c * step])) continue;
    const auto block = static_cast<index>(choice[c * step]);
    if (block <= last) return -1;
    to[n++] = static_cast<To>(block);
    last = block;
  }
  return n;
}

/// The row's indices among `blocks` blocks, ascending, without repeats.
template <class I, class To>
[[nodiscard]] index sort_choices(const view<const I, 4>& s, index b, index h, index i, index blocks,
                                 To* to) noexcept {
  index n = ascending_choices(s, b, h, i, blocks, to);
  if (n >= 0) return n;
  n = 0;
  each_choice(s, b, h, i, blocks, [&](index block) { to[n++] = static_cast<To>(block); });
  std::sort(to, to + n);
  return std::unique(to, to + n) - to;
}

/// The same through a bit for each block, faster where a row selects many of them.
class choice_marks {
 public:
  using word = std::uint64_t;
  static constexpr index bits = 64;

  /// Where reading the marks of all blocks costs less than sorting.
  [[nodiscard]] static constexpr index words(index blocks, index selected) noexcept {
    const index all = ceil_div(blocks, bits);
    return selected >= 16 && all <= 8 * selected ? all : 0;
  }
  void allocate(arena& c, index blocks, index selected) noexcept {
    words_ = words(blocks, selected);
    marks_ = c.allocate<word>(words_);
  }
  template <class I, class To>
  [[nodiscard]] index sort(const view<const I, 4>& s, index b, index h, index i, index blocks,
                           To* to) const noexcept {
    if (words_ == 0) return sort_choices(s, b, h, i, blocks, to);
    index n = ascending_choices(s, b, h, i, blocks, to);
    if (n >= 0) return n;
    std::fill_n(marks_, words_, word{0});
    each_choice(s, b, h, i, blocks,
                [&](index block) { marks_[block / bits] |= word{1} << (block % bits); });
    // Most words have few marks, and how many is not to be guessed: some places are written for
    // each, marks or not, as far as the row has room for them.
    constexpr index at_once = 4;
    const index room = s.extent(3) - at_once;
    n = 0;
    for (index w = 0; w < words_; ++w) {
      word left = marks_[w];
      const index end = n + std::popcount(left);
      if (n <= room) {
        for (index j = 0; j < at_once; ++j, left &= left - 1) {
          to[n + j] = static_cast<To>(w * bits + std::countr_zero(left));
        }
        n += at_once;
      }
      for (; n < end; ++n, left &= left - 1) {
        to[n] = static_cast<To>(w * bits + std::countr_zero(left));
      }
      n = end;
    }
    return n;
  }

 private:
  word* marks_ = nullptr;
  index words_ = 0;
};

/// The head of the selection that serves query head h.
template <class I>
[[nodiscard]] index selection_head(const view<const I, 4>& s, const score_extents& e,
                                   index h) noexcept {
  if (s.extent(1) == 1) return 0;
  return s.extent(1) == e.heads ? h : h / (e.heads / e.kv_heads);
}

}  // namespace heed::inline HEED_TARGET::detail
