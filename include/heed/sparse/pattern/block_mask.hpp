// SPDX-License-Identifier: MIT
// A block pattern as a mask of attention: the work follows its visible blocks.
//
//   attention(q, k, v, {}, blocks(pattern))                 pairs of visible blocks
//   attention(q, k, v, {}, blocks(pattern, mask))           of partial blocks those the mask keeps
//   attention(q, k, v, {}, blocks(pattern) && causal())     as every mask combines
//
// The pattern must outlive the call. Its batch is 1 or the call's, its heads 1, the query heads or
// the KV heads. Positions outside the pattern see nothing. Kernels cut rows at blocks of queries
// and skip from visible block to visible block: O(log) of a row's blocks each.
#pragma once

#include <algorithm>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/score/combine.hpp"
#include "heed/sparse/pattern/block_pattern.hpp"

namespace heed::inline HEED_TARGET {

/// Keeps every pair.
struct all_visible {
  static constexpr stage when = stage::mask;
  [[nodiscard]] constexpr bool operator()(const position&) const noexcept { return true; }
  [[nodiscard]] constexpr heed::coverage coverage(const tile&) const noexcept {
    return heed::coverage::full;
  }
};

template <class M = all_visible>
class block_mask {
 public:
  static constexpr stage when = stage::mask;

  explicit block_mask(const block_pattern& pattern, M inner = {})
      : pattern_(&pattern), inner_(std::move(inner)) {}

  [[nodiscard]] bool operator()(const position& p) const noexcept {
    const pattern_extents& e = pattern_->extents();
    if (p.query < 0 || p.query >= e.queries) return false;
    switch (pattern_->at(p.batch, by_kv_head_ ? p.kv_head : p.head, p.query / e.query_block,
                         p.key / e.key_block)) {
      case heed::coverage::empty:
        return false;
      case heed::coverage::full:
        return true;
      default:
        return inner_(p);
    }
  }

  [[nodiscard]] heed::coverage coverage(const tile& t) const noexcept {
    const pattern_extents& e = pattern_->extents();
    const range k = blocks_of(t.keys, e.key_block);
    bool any = false;
    bool all = t.queries.begin >= 0 && t.queries.end <= e.queries;
    each_row(t, [&](std::span<const block_entry> row) {
      const auto first = from(row, k.begin);
      index listed = 0;
      for (auto it = first; it != row.end() && it->key_block < k.end; ++it, ++listed) {
        all = all && it->full;
      }
      any = any || listed > 0;
      all = all && listed == k.size();
    });
    if (!any) return heed::coverage::empty;
    return all ? heed::coverage::full : heed::coverage::partial;
  }

  [[nodiscard]] range visible_keys(const tile& t) const noexcept {
    const index size = pattern_->extents().key_block;
    const range k = blocks_of(t.keys, size);
    range seen{t.keys.begin, t.keys.begin};
    each_row(t, [&](std::span<const block_entry> row) {
      const auto first = from(row, k.begin);
      const auto last = from(row, k.end);
      if (first == last) return;
      seen = hull(seen, {first->key_block * size, ((last - 1)->key_block + 1) * size});
    });
    return intersect(t.keys, seen);
  }

  [[nodiscard]] index query_block() const noexcept { return pattern_->extents().query_block; }

  /// Throws shape_error where the pattern does not fit the call.
  void check(const score_extents& e) const {
    const pattern_extents& p = pattern_->extents();
    if ((p.batch != 1 && p.batch != e.batch) ||
        (p.heads != 1 && p.heads != e.heads && p.heads != e.kv_heads) || p.keys < e.keys) {
      const index pattern[] = {p.batch, p.heads, p.queries, p.keys};
      const index call[] = {e.batch, e.heads, e.queries, e.keys};
      fail<shape_error>("the pattern has extents " + format_extents(pattern) +
                        ", the scores have " + format_extents(call) +
                        " (batch, heads, queries, keys)");
    }
    by_kv_head_ = p.heads != e.heads;
    check_modifier(inner_, e);
  }

 private:
  [[nodiscard]] static range blocks_of(range r, index size) noexcept {
    return {r.begin / size, ceil_div(r.end, size)};
  }
  [[nodiscard]] static auto from(std::span<const block_entry> row, index key_block) noexcept {
    return std::lower_bound(row.begin(), row.end(), key_block,
                            [](const block_entry& e, index k) { return e.key_block < k; });
  }
  template <class F>
  void each_row(const tile& t, F&& f) const noexcept {
    const range q = blocks_of(intersect({0, pattern_->extents().queries}, t.queries),
                              pattern_->extents().query_block);
    for (index i = q.begin; i < q.end; ++i) {
      f(pattern_->row(t.batch, by_kv_head_ ? t.kv_head : t.head, i));
    }
  }

  const block_pattern* pattern_;
  M inner_;
  // Learned by check(), which a call makes before any kernel runs.
  mutable bool by_kv_head_ = false;
};

[[nodiscard]] inline block_mask<> blocks(const block_pattern& pattern) {
  return block_mask<>(pattern);
}
block_mask<> blocks(const block_pattern&& pattern) = delete;

/// With `mask`, whose pattern this is, deciding within partial blocks.
template <mask_function M>
[[nodiscard]] block_mask<M> blocks(const block_pattern& pattern, M mask) {
  return block_mask<M>(pattern, std::move(mask));
}
template <mask_function M>
block_mask<M> blocks(const block_pattern&& pattern, M mask) = delete;

}  // namespace heed::inline HEED_TARGET
