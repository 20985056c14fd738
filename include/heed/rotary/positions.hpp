// SPDX-License-Identifier: MIT
// The positions of the tokens of a tensor: the forms in which rotary functions take positions.
//
// | argument                                          | position of token n of batch b |
// |---------------------------------------------------|--------------------------------|
// | an integer `offset` (default 0, may be negative)  | offset + n                     |
// | batch_offsets{span}, one an element of the batch  | offsets[b] + n                 |
// | a span or vector of integers, one a token         | ids[n]                         |
// | an integer tensor of rank 1 (tokens)              | ids[n]                         |
// | an integer tensor of rank 2 (batch x tokens)      | ids[b, n]                      |
//
// An offset so large that the last token's position is no index is an option_error.
#pragma once

#include <concepts>
#include <limits>
#include <ranges>
#include <span>
#include <string>
#include <type_traits>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/tensor/tensor_like.hpp"

namespace heed::inline HEED_TARGET {

/// One offset an element of the batch. (A bare span means one position a token.)
struct batch_offsets {
  std::span<const index> offsets;
};

namespace detail {

template <class I>
concept position_integer = std::integral<I> && !std::same_as<I, bool>;

template <class P>
concept position_range = std::ranges::contiguous_range<P> && std::ranges::sized_range<P> &&
                         position_integer<std::ranges::range_value_t<P>>;

template <class P>
concept position_tensor = tensor_like<P> && requires {
  requires position_integer<scalar_of<P>>;
  requires rank_of<P> == 1 || rank_of<P> == 2;
};

/// offset + n, the same for the whole batch.
struct counted_positions {
  index offset = 0;
  [[nodiscard]] static constexpr bool shared() noexcept { return true; }
  [[nodiscard]] index operator()(index, index token) const noexcept { return offset + token; }
};

struct batch_counted_positions {
  std::span<const index> offsets;
  [[nodiscard]] static constexpr bool shared() noexcept { return false; }
  [[nodiscard]] index operator()(index batch, index token) const noexcept {
    return offsets[static_cast<std::size_t>(batch)] + token;
  }
};

/// ids[b, n]; batch stride 0 where one row serves the whole batch.
template <class I>
struct listed_positions {
  view<const I, 2> ids;
  [[nodiscard]] bool shared() const noexcept { return ids.stride(0) == 0; }
  [[nodiscard]] index operator()(index batch, index token) const noexcept {
    return static_cast<index>(ids(batch, token));
  }
};

inline void require_positions(index tokens, index expected) {
  require_equal("positions", "tokens", tokens, "x", expected);
}

/// The last of `tokens` counted from `offset` has a number too.
inline void require_countable(index offset, index tokens) {
  if (offset > (std::numeric_limits<index>::max)() - tokens) {
    fail<option_error>("positions begin at " + std::to_string(offset) + ", too large for " +
                       std::to_string(tokens) + " tokens");
  }
}

/// Any form of positions as a function of (batch, token), its extents checked.
template <class P>
[[nodiscard]] auto resolve_positions(const P& p, index batch, index tokens) {
  if constexpr (position_integer<P>) {
    require_countable(static_cast<index>(p), tokens);
    return counted_positions{static_cast<index>(p)};
  } else if constexpr (std::same_as<P, batch_offsets>) {
    require_equal("batch_offsets", "batch", static_cast<index>(p.offsets.size()), "x", batch);
    for (const index offset : p.offsets) require_countable(offset, tokens);
    return batch_counted_positions{p.offsets};
  } else if constexpr (position_tensor<P>) {
    const auto v = as_view(p);
    using integer = scalar_of<P>;
    if constexpr (rank_of<P> == 1) {
      require_positions(v.extent(0), tokens);
      return listed_positions<integer>{
          view<const integer, 2>(v.data(), {batch, tokens}, {0, v.stride(0)})};
    } else {
      require_equal("positions", "batch", v.extent(0), "x", batch);
      require_positions(v.extent(1), tokens);
      return listed_positions<integer>{v};
    }
  } else {
    using integer = std::ranges::range_value_t<P>;
    require_positions(static_cast<index>(std::ranges::size(p)), tokens);
    return listed_positions<integer>{
        view<const integer, 2>(std::ranges::data(p), {batch, tokens}, {0, 1})};
  }
}

}  // namespace detail

/// What rotary functions take as positions. See the top of this file.
template <class P>
concept token_positions =
    detail::position_integer<std::remove_cvref_t<P>> ||
    std::same_as<std::remove_cvref_t<P>, batch_offsets> || detail::position_tensor<P> ||
    detail::position_range<std::remove_cvref_t<P>>;

}  // namespace heed::inline HEED_TARGET
