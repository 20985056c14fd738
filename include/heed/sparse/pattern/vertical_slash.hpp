// SPDX-License-Identifier: MIT
// The vertical-slash pattern: some keys seen by all queries, some distances seen by all.
//
//   visible iff j <= p and (j is a vertical, or p - j is a slash)
//
// Jiang et al. 2024, arXiv 2407.02490 (MInference), section 3.
#pragma once

#include <algorithm>
#include <span>
#include <string>

#include "heed/core/target.hpp"
#include "heed/score/masks.hpp"

namespace heed::inline HEED_TARGET {

/// Both lists ascending, without repeats; they must outlive the call. Tiles are classified by
/// binary search in them. Throws shape_error, when the call is checked, for a list out of order.
class vertical_slash {
 public:
  static constexpr stage when = stage::mask;

  /// `verticals` are keys, `slashes` are distances p - j >= 0.
  vertical_slash(std::span<const index> verticals, std::span<const index> slashes) noexcept
      : verticals_(verticals), slashes_(slashes) {}

  [[nodiscard]] bool operator()(const position& p) const noexcept {
    const index distance = p.query - p.key;
    return distance >= 0 && (std::binary_search(slashes_.begin(), slashes_.end(), distance) ||
                             std::binary_search(verticals_.begin(), verticals_.end(), p.key));
  }
  [[nodiscard]] heed::coverage coverage(const tile& t) const noexcept {
    const range verticals = between(verticals_, t.keys);
    const range distances{std::max<index>(0, t.queries.begin - (t.keys.end - 1)),
                          t.queries.end - t.keys.begin};
    const range slashes = between(slashes_, distances);
    if (distances.empty() || (verticals.empty() && slashes.empty())) return heed::coverage::empty;
    const bool causal = t.keys.end - 1 <= t.queries.begin;
    const bool all = verticals.size() == t.keys.size() || slashes.size() == distances.size();
    return causal && all ? heed::coverage::full : heed::coverage::partial;
  }
  [[nodiscard]] range visible_keys(const tile& t) const noexcept {
    const range seen = causal_mask{}.visible_keys(t);
    const range verticals = between(verticals_, seen);
    range keys{seen.begin, seen.begin};
    if (!verticals.empty()) {
      keys = {verticals_[static_cast<std::size_t>(verticals.begin)],
              verticals_[static_cast<std::size_t>(verticals.end - 1)] + 1};
    }
    const range slashes = between(slashes_, {std::max<index>(0, t.queries.begin - (seen.end - 1)),
                                             t.queries.end - seen.begin});
    if (!slashes.empty()) {
      keys = hull(keys, {t.queries.begin - slashes_[static_cast<std::size_t>(slashes.end - 1)],
                         t.queries.end - slashes_[static_cast<std::size_t>(slashes.begin)]});
    }
    return intersect(seen, keys);
  }
  void check(const score_extents&) const {
    check_list("verticals", verticals_);
    check_list("slashes", slashes_);
  }

 private:
  /// The places of the list's members inside `values`.
  [[nodiscard]] static range between(std::span<const index> list, range values) noexcept {
    if (values.empty()) return {0, 0};
    return {std::lower_bound(list.begin(), list.end(), values.begin) - list.begin(),
            std::lower_bound(list.begin(), list.end(), values.end) - list.begin()};
  }
  static void check_list(const char* name, std::span<const index> list) {
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (list[i] < 0 || (i > 0 && list[i] <= list[i - 1])) {
        fail<shape_error>(std::string(name) + " are not ascending from 0: entry " +
                          std::to_string(i) + " is " + std::to_string(list[i]));
      }
    }
  }

  std::span<const index> verticals_;
  std::span<const index> slashes_;
};

}  // namespace heed::inline HEED_TARGET
