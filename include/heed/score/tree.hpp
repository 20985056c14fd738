// SPDX-License-Identifier: MIT
// The mask of a tree of newest tokens: several guesses of how a text goes on, verified in one call.
#pragma once

#include <algorithm>
#include <span>
#include <string>

#include "heed/core/target.hpp"
#include "heed/score/masks.hpp"

namespace heed::inline HEED_TARGET {

/// Row i of the queries is token i of a tree: it sees every key before row 0's position, itself and
/// its ancestors. parents[i] is the row of its parent, before i, or -1 where the tree begins; as many
/// entries as a batch entry has queries, the same tree for all, and they must outlive the call. Row
/// i stands at position offset + i, as its key does; what a rotary embedding rotates by is the
/// depth, which is the caller's. O(depth) a pair of tree tokens, nothing for others. Miao et al.
/// 2023, arXiv 2305.09781, section 4.
class tree_mask {
 public:
  static constexpr stage when = stage::mask;

  explicit constexpr tree_mask(std::span<const index> parents) noexcept : parents_(parents) {}
  template <other_numbers R>
  explicit tree_mask(const R&) {
    static_assert(!other_numbers<R>,
                  "heed: parents are contiguous numbers of heed::index (std::ptrdiff_t), one a "
                  "query, in a container that outlives the call");
  }

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    const index key = p.key - (p.query - p.row);
    if (key < 0) return true;
    index at = p.row;
    while (at > key) at = parents_[static_cast<std::size_t>(at)];
    return at == key;
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    if (t.keys.end <= t.offset) return heed::coverage::full;
    return t.keys.begin >= t.queries.end ? heed::coverage::empty : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return intersect(t.keys, {t.keys.begin, t.queries.end});
  }
  void check(const score_extents& e) const {
    require_equal("tree_mask", "parents", static_cast<index>(parents_.size()), "the call queries",
                  e.queries);
    for (std::size_t i = 0; i < parents_.size(); ++i) {
      if (parents_[i] < -1 || parents_[i] >= static_cast<index>(i)) {
        fail<shape_error>("tree_mask: token " + std::to_string(i) + " has parent " +
                          std::to_string(parents_[i]) + ", needs -1 to " +
                          std::to_string(static_cast<index>(i) - 1));
      }
    }
  }

 private:
  std::span<const index> parents_;
};

}  // namespace heed::inline HEED_TARGET
