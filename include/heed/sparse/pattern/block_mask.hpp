// SPDX-License-Identifier: MIT
// A block pattern as a mask of attention: the work follows its visible blocks.
//
//   attention(q, k, v, {}, blocks(pattern))                 a pattern of full blocks
//   attention(q, k, v, {}, blocks(pattern, mask))           of partial blocks the pairs `mask` keeps
//   attention(q, k, v, {}, blocks(pattern) && causal())     as every mask combines
//
// A pattern made from a mask has partial blocks, and goes with that mask: without it a call throws
// option_error. `whole_blocks(pattern)` sees all their pairs. A block is looked up once a tile; in a
// partial one `mask` works as it would alone.
//
// The pattern must outlive the call. Its batch is 1 or the call's, its heads 1, the query heads or
// the KV heads. Positions outside the pattern see nothing. Kernels cut rows at blocks of queries
// and skip from visible block to visible block: O(log) of a row's blocks each.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>
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

  explicit block_mask(const block_pattern& pattern, M mask = {})
      : pattern_(&pattern), inner_(std::move(mask)) {}
  block_mask(const block_pattern& pattern, M mask, bool by_kv_head)
      : pattern_(&pattern), inner_(std::move(mask)), by_kv_head_(by_kv_head) {}

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

  /// f(what the pattern has at the block that holds all of the tile); false where there is none.
  template <class F>
  bool with_block_of(const tile& t, F&& f) const noexcept {
    const pattern_extents& e = pattern_->extents();
    if (t.queries.empty() || t.keys.empty() || t.queries.begin < 0 || t.queries.end > e.queries) {
      return false;
    }
    const index q = t.queries.begin / e.query_block;
    const index k = t.keys.begin / e.key_block;
    if (t.queries.end > (q + 1) * e.query_block || t.keys.end > (k + 1) * e.key_block) return false;
    f(pattern_->at(t.batch, by_kv_head_ ? t.kv_head : t.head, q, k));
    return true;
  }
  [[nodiscard]] const M& inner() const noexcept { return inner_; }

  [[nodiscard]] heed::coverage coverage(const tile& t) const noexcept {
    heed::coverage of_block = heed::coverage::empty;
    if (with_block_of(t, [&](heed::coverage c) noexcept { of_block = c; })) {
      return of_block == heed::coverage::partial ? coverage_of(inner_, t) : of_block;
    }
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
    range of_block = t.keys;
    if (with_block_of(t, [&](heed::coverage c) noexcept {
          if (c == heed::coverage::empty) of_block.end = of_block.begin;
          if (c == heed::coverage::partial) of_block = visible_keys_of(inner_, t);
        })) {
      return of_block;
    }
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

  /// Knows the heads of the call. Throws shape_error where the pattern does not fit it.
  [[nodiscard]] auto bind(const score_extents& e) const {
    const pattern_extents& p = pattern_->extents();
    if ((p.batch != 1 && p.batch != e.batch) ||
        (p.heads != 1 && p.heads != e.heads && p.heads != e.kv_heads) || p.keys < e.keys) {
      const index pattern[] = {p.batch, p.heads, p.queries, p.keys};
      const index call[] = {e.batch, e.heads, e.queries, e.keys};
      fail<shape_error>("the pattern has extents " + format_extents(pattern) +
                        ", the scores have " + format_extents(call) +
                        " (batch, heads, queries, keys)");
    }
    if constexpr (std::is_same_v<M, all_visible>) {
      if (pattern_->partial_blocks() > 0) {
        fail<option_error>("blocks(pattern): the pattern has " +
                           std::to_string(pattern_->partial_blocks()) +
                           " partial blocks, of which a mask hides some pairs; give that mask, "
                           "blocks(pattern, mask), or take them whole, whole_blocks(pattern)");
      }
    }
    return block_mask<bound_part<M>>(*pattern_, bind_part(inner_, e), p.heads != e.heads);
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
  bool by_kv_head_ = false;  // of a bound mask whose pattern has the KV heads
};

/// Within one block the pattern is nothing, all, or its mask.
template <class M, class F>
constexpr void with_hiding(const block_mask<M>& m, const tile& t, F&& f) {
  const bool one = m.with_block_of(t, [&](coverage c) noexcept {
    if (c == coverage::partial) {
      with_hiding(m.inner(), t, f);
    } else if (c == coverage::empty) {
      f([](const position&) { return false; });
    }
  });
  if (!one) f(m);
}

/// Throws option_error, when the call is checked, where the pattern has partial blocks.
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
