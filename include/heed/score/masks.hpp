// SPDX-License-Identifier: MIT
// Masks by position: causal, window, key lengths, documents. `p` is a query's position (offset +
// row).
#pragma once

#include <algorithm>
#include <concepts>
#include <iterator>
#include <optional>
#include <span>

#include "heed/core/target.hpp"
#include "heed/score/concepts.hpp"

namespace heed::inline HEED_TARGET {

/// Key j is visible iff j <= p.
struct causal_mask {
  static constexpr stage when = stage::mask;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return p.key <= p.query;
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    if (t.keys.end - 1 <= t.queries.begin) return heed::coverage::full;
    return t.keys.begin > t.queries.end - 1 ? heed::coverage::empty : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return intersect(t.keys, {t.keys.begin, t.queries.end});
  }
};

[[nodiscard]] constexpr causal_mask causal() noexcept { return {}; }

/// Key j is visible iff p - left <= j <= p + right; an absent side is unbounded. `window{.left =
/// 2}` with `causal()` sees three keys. Negative sides are allowed: left = -1 hides the key at p
/// itself. Sides whose sum is below 0 hide every key, as left = -1 with `causal()` does.
struct window {
  static constexpr stage when = stage::mask;

  std::optional<index> left = std::nullopt;
  std::optional<index> right = std::nullopt;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    // Distances, for p.query - left may leave the range of an index where left is its largest.
    return (!left || p.query - p.key <= *left) && (!right || p.key - p.query <= *right);
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    if (visible_keys(t).empty()) return heed::coverage::empty;
    const bool all = (!left || t.queries.end - 1 - t.keys.begin <= *left) &&
                     (!right || t.keys.end - 1 - t.queries.begin <= *right);
    return all ? heed::coverage::full : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    // Sides no longer than the tile's keys reach: an index could not hold every sum.
    const index p0 = t.queries.begin;
    const index p1 = t.queries.end;
    return {left ? p0 - std::clamp(*left, p0 - t.keys.end, p0 - t.keys.begin) : t.keys.begin,
            right ? p1 + std::clamp(*right, t.keys.begin - p1, t.keys.end - p1) : t.keys.end};
  }
};

/// Numbers of another type than heed::index: what takes a span of those says so.
template <class R>
concept other_numbers = !std::convertible_to<const R&, std::span<const index>> &&
                        requires(const R& r) { std::begin(r); };

/// Key j of batch b is visible iff j < length[b] (right padding). Keys past it are never read.
/// One length per batch; the numbers must outlive the call.
struct lengths {
  static constexpr stage when = stage::mask;

  std::span<const index> length;

  explicit constexpr lengths(std::span<const index> per_batch) noexcept : length(per_batch) {}
  template <other_numbers R>
  explicit lengths(const R&) {
    static_assert(!other_numbers<R>,
                  "heed: lengths are contiguous numbers of heed::index (std::ptrdiff_t), one a "
                  "batch, in a container that outlives the call");
  }

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return p.key < length[static_cast<std::size_t>(p.batch)];
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    const index n = length[static_cast<std::size_t>(t.batch)];
    if (t.keys.end <= n) return heed::coverage::full;
    return t.keys.begin >= n ? heed::coverage::empty : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return intersect(t.keys, {t.keys.begin, length[static_cast<std::size_t>(t.batch)]});
  }
  void check(const score_extents& e) const {
    require_equal("lengths", "entries", static_cast<index>(length.size()), "the call batch",
                  e.batch);
    for (const index n : length) {
      if (n < 0 || n > e.keys) {
        fail<shape_error>("lengths has an entry " + std::to_string(n) + ", k has " +
                          std::to_string(e.keys) + " tokens");
      }
    }
  }
};

/// A query sees the keys of its own document: query_id[row] == key_id[key]. Ids per token, either
/// one row for all batches or one per batch after another. Where the ids never decrease (packed
/// documents) tiles are classified from their corners. The numbers must outlive the call.
class documents {
 public:
  static constexpr stage when = stage::mask;

  documents(std::span<const index> query_ids, std::span<const index> key_ids) noexcept
      : query_(query_ids), key_(key_ids) {}
  explicit documents(std::span<const index> ids) noexcept : documents(ids, ids) {}
  template <other_numbers R>
  explicit documents(const R&) {
    static_assert(!other_numbers<R>,
                  "heed: ids of documents are contiguous numbers of heed::index (std::ptrdiff_t) "
                  "in a container that outlives the call");
  }

  [[nodiscard]] bool operator()(const position& p) const noexcept {
    return row(query_, p.batch, queries_)[p.row] == row(key_, p.batch, keys_)[p.key];
  }
  [[nodiscard]] heed::coverage coverage(const tile& t) const noexcept {
    if (!sorted_) return heed::coverage::partial;
    const index* q = row(query_, t.batch, queries_);
    const index* k = row(key_, t.batch, keys_);
    const index q0 = q[t.rows().begin];
    const index q1 = q[t.rows().end - 1];
    const index k0 = k[t.keys.begin];
    const index k1 = k[t.keys.end - 1];
    if (q1 < k0 || k1 < q0) return heed::coverage::empty;
    return q0 == q1 && k0 == k1 && q0 == k0 ? heed::coverage::full : heed::coverage::partial;
  }
  [[nodiscard]] range visible_keys(const tile& t) const noexcept {
    if (!sorted_) return t.keys;
    const index* q = row(query_, t.batch, queries_);
    const index* k = row(key_, t.batch, keys_);
    const index* first = k + t.keys.begin;
    const index* last = k + t.keys.end;
    return intersect(t.keys, {std::lower_bound(first, last, q[t.rows().begin]) - k,
                              std::upper_bound(first, last, q[t.rows().end - 1]) - k});
  }
  /// Knows the extents and whether the ids never decrease: one pass over them a call.
  [[nodiscard]] documents bind(const score_extents& e) const {
    check_ids("documents: query ids", query_, e.queries, e.batch);
    check_ids("documents: key ids", key_, e.keys, e.batch);
    documents bound = *this;
    bound.queries_ = static_cast<index>(query_.size()) == e.queries ? 0 : e.queries;
    bound.keys_ = static_cast<index>(key_.size()) == e.keys ? 0 : e.keys;
    bound.sorted_ = sorted_rows(query_, e.queries) && sorted_rows(key_, e.keys);
    return bound;
  }

 private:
  static const index* row(std::span<const index> ids, index batch, index stride) noexcept {
    return ids.data() + batch * stride;
  }
  static void check_ids(const char* what, std::span<const index> ids, index tokens, index batch) {
    const auto size = static_cast<index>(ids.size());
    if (size != tokens && size != batch * tokens) {
      fail<shape_error>(std::string(what) + " has " + std::to_string(size) + " entries, needs " +
                        std::to_string(tokens) + " (tokens) or " + std::to_string(batch * tokens) +
                        " (batch x tokens)");
    }
  }
  static bool sorted_rows(std::span<const index> ids, index tokens) noexcept {
    for (std::size_t at = 0; tokens > 0 && at < ids.size();
         at += static_cast<std::size_t>(tokens)) {
      const auto r = ids.subspan(at, static_cast<std::size_t>(tokens));
      if (!std::is_sorted(r.begin(), r.end())) return false;
    }
    return true;
  }

  std::span<const index> query_;
  std::span<const index> key_;
  // Of a bound mask: from one batch to the next, 0 where all share a row; whether ids ascend.
  index queries_ = 0;
  index keys_ = 0;
  bool sorted_ = false;
};

}  // namespace heed::inline HEED_TARGET
