// SPDX-License-Identifier: MIT
// What a paged cache is made of, checked before any of it is allocated.
#pragma once

#include <optional>
#include <string>

#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

struct paged_extents {
  index sequences = 1;
  index kv_heads = 1;
  index pages = 0;
  index page_size = 64;  ///< tokens; decode is quickest with 64 or more
  index head_dim = 0;
  std::optional<index> value_dim = std::nullopt;   ///< head_dim where absent
  std::optional<index> max_tokens = std::nullopt;  ///< of one sequence; the whole pool where absent
  std::optional<index> group = std::nullopt;       ///< channels a scale, of codes; all where absent
};

namespace detail {

/// Each of the extents may fit while their product does not.
template <class TK, class TV>
const paged_extents& check_paged_extents(const paged_extents& e) {
  if (e.page_size < 1) {
    fail<shape_error>("paged_cache has page size " + std::to_string(e.page_size) +
                      ", needs at least 1");
  }
  if (e.max_tokens && *e.max_tokens < 0) {
    fail<shape_error>("paged_cache has max_tokens " + std::to_string(*e.max_tokens) +
                      ", needs at least 0");
  }
  if (e.head_dim == 0) fail<shape_error>("paged_cache has head_dim 0, needs at least 1");
  const index keys[] = {e.pages, e.kv_heads, e.page_size, e.head_dim};
  const index values[] = {e.pages, e.kv_heads, e.page_size, e.value_dim.value_or(e.head_dim)};
  (void)checked_size("paged_cache", keys, static_cast<index>(sizeof(TK)));
  (void)checked_size("paged_cache", values, static_cast<index>(sizeof(TV)));
  return e;
}

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
