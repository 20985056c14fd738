// SPDX-License-Identifier: MIT
// Analytic sparse patterns, as masks: each says in O(1) which keys of a tile it may see.
//
// | pattern          | key j is visible to position p iff                                | source
// |------------------|-------------------------------------------------------------------|--------
// | global_tokens g  | j < g or p < g                                                    | 1
// | longformer w, g  | abs(p - j) <= w, or j < g or p < g                                | 1
// | longformer w,g,d | abs(p - j) <= w d[h] and d[h] divides p - j, or global            | 1
// | dilated_window   | p - left d <= j <= p + right d and d divides p - j                | 1
// | strided l        | j <= p and (p - j < l or l divides p - j)                         | 2
// | fixed l, c       | j <= p and (j / l = p / l or j % l >= l - c)                      | 2
// | prefix n         | j <= p or j < n                                                   | 3
// | log_sparse       | p - j is 0 or a power of two                                      | 4
//
// All combine with `&&`, `||` and `!` and with every option of attention. What a mask costs: tiles
// without a visible pair are skipped, full ones run no mask code, others are computed and masked;
// so a pattern costs its visible blocks, which for `dilated_window`, `strided` and `log_sparse` are
// more than its pairs: diagonals one pair wide cross every tile they meet.
//
// Sources: 1 Beltagy, Peters, Cohan 2020, arXiv 2004.05150, section 3.1; 2 Child, Gray, Radford,
// Sutskever 2019, arXiv 1904.10509, section 4.3; 3 Raffel et al. 2019, arXiv 1910.10683, section
// 3.2.1; 4 Li et al. 2019, arXiv 1907.00235, section 4.2.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <string>

#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"
#include "heed/score/combine.hpp"
#include "heed/score/masks.hpp"

namespace heed::inline HEED_TARGET {

/// The first `count` tokens see all and are seen by all.
struct global_tokens {
  static constexpr stage when = stage::mask;
  index count = 0;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return p.key < count || p.query < count;
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    if (t.keys.end <= count || t.queries.end <= count) return heed::coverage::full;
    const bool none = t.keys.begin >= count && t.queries.begin >= count;
    return none ? heed::coverage::empty : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return t.queries.begin < count ? t.keys : intersect(t.keys, {t.keys.begin, count});
  }
};

/// A window of `reach` keys on either side, and global tokens in front. With `causal()` the window
/// looks back alone.
[[nodiscard]] constexpr auto longformer(index reach, index global) {
  return window{.left = reach, .right = reach} || global_tokens{global};
}

/// Every `dilation`-th key, `left` of them before the query's own and `right` after it.
struct dilated_window {
  static constexpr stage when = stage::mask;
  index left = 0;
  index right = 0;
  index dilation = 1;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    const index distance = p.query - p.key;
    return distance <= saturating_product(left, dilation) &&
           -distance <= saturating_product(right, dilation) && distance % dilation == 0;
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    const heed::coverage c = reach().coverage(t);
    return c == heed::coverage::full && dilation > 1 ? heed::coverage::partial : c;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return reach().visible_keys(t);
  }
  void check(const score_extents&) const {
    if (left < 0 || right < 0 || dilation < 1) {
      fail<option_error>("dilated_window has left " + std::to_string(left) + ", right " +
                         std::to_string(right) + ", dilation " + std::to_string(dilation));
    }
  }

 private:
  [[nodiscard]] constexpr window reach() const noexcept {
    return {.left = saturating_product(left, dilation),
            .right = saturating_product(right, dilation)};
  }
};

/// dilated_window of `reach` keys on either side, dilated by dilations[head]: some heads look near,
/// others far. The list outlives the call, and has an entry a query head.
struct dilated_window_of_heads {
  static constexpr stage when = stage::mask;
  index reach = 0;
  std::span<const index> dilations{};

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return of(p.head)(p);
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    return of(t.head).coverage(t);
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return of(t.head).visible_keys(t);
  }
  void check(const score_extents& e) const {
    require_equal("dilations", "heads", static_cast<index>(dilations.size()), "q", e.heads);
    for (const index d : dilations) dilated_window{reach, reach, d}.check(e);
  }

 private:
  [[nodiscard]] constexpr dilated_window of(index head) const noexcept {
    return {reach, reach, dilations[static_cast<std::size_t>(head)]};
  }
};

/// Longformer with a dilation of each head.
[[nodiscard]] constexpr auto longformer(index reach, index global,
                                        std::span<const index> dilations) {
  return dilated_window_of_heads{reach, dilations} || global_tokens{global};
}

/// The last `stride` keys, and every `stride`-th before them.
struct strided {
  static constexpr stage when = stage::mask;
  index stride = 1;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    const index distance = p.query - p.key;
    return distance >= 0 && (distance < stride || distance % stride == 0);
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    const index nearest = t.queries.begin - (t.keys.end - 1);
    const index farthest = t.queries.end - 1 - t.keys.begin;
    if (farthest < 0) return heed::coverage::empty;
    if (nearest >= 0 && (farthest < stride || stride == 1)) return heed::coverage::full;
    // A multiple of the stride between the distances?
    const index low = nearest > 0 ? nearest : 0;
    const bool none = low >= stride && ceil_div(low, stride) * stride > farthest;
    return none ? heed::coverage::empty : heed::coverage::partial;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return causal_mask{}.visible_keys(t);
  }
  void check(const score_extents&) const {
    if (stride < 1) fail<option_error>("strided has stride " + std::to_string(stride));
  }
};

/// The keys of the query's own block of `stride`, and the last `summary` keys of each before it.
struct fixed_pattern {
  static constexpr stage when = stage::mask;
  index stride = 128;
  index summary = 8;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return p.key <= p.query &&
           (p.key / stride == p.query / stride || p.key % stride >= stride - summary);
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    const heed::coverage c = causal_mask{}.coverage(t);
    if (c == heed::coverage::empty || visible_keys(t).empty()) return heed::coverage::empty;
    const index block = t.queries.begin / stride;
    const bool own = t.keys.begin / stride == block && (t.keys.end - 1) / stride == block &&
                     (t.queries.end - 1) / stride == block;
    const bool summaries = t.keys.begin % stride >= stride - summary &&
                           t.keys.size() <= stride - t.keys.begin % stride;
    return own || summaries ? c : heed::coverage::partial;
  }
  /// Between the blocks of the queries and the next summary before them there is nothing.
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    const range seen = causal_mask{}.visible_keys(t);
    if (seen.empty()) return seen;
    const index own = t.queries.begin / stride * stride;
    const index in_block = seen.begin % stride;
    index begin = seen.begin;
    if (begin < own && in_block < stride - summary) begin += stride - summary - in_block;
    // The tile may end between two summaries.
    index end = seen.end;
    if (end <= own && end % stride <= stride - summary && end % stride != 0) end -= end % stride;
    return intersect(seen, {begin, end});
  }
  [[nodiscard]] constexpr index query_block() const noexcept { return stride; }
  void check(const score_extents&) const {
    if (stride < 1 || summary < 0 || summary > stride) {
      fail<option_error>("fixed_pattern has stride " + std::to_string(stride) + ", summary " +
                         std::to_string(summary));
    }
  }
};

/// Causal behind a prefix of `length` tokens, which all see (prefix language models).
struct prefix {
  static constexpr stage when = stage::mask;
  index length = 0;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    return p.key <= p.query || p.key < length;
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    if (t.keys.end <= length) return heed::coverage::full;
    const heed::coverage c = causal_mask{}.coverage(t);
    return c == heed::coverage::empty && t.keys.begin < length ? heed::coverage::partial : c;
  }
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    return intersect(t.keys, {t.keys.begin, t.queries.end > length ? t.queries.end : length});
  }
};

/// The query's own key and those 1, 2, 4, ... before it: O(log n) a row.
struct log_sparse {
  static constexpr stage when = stage::mask;

  [[nodiscard]] constexpr bool operator()(const position& p) const noexcept {
    const index distance = p.query - p.key;
    return distance >= 0 && (distance & (distance - 1)) == 0;
  }
  [[nodiscard]] constexpr heed::coverage coverage(const tile& t) const noexcept {
    const index nearest = t.queries.begin - (t.keys.end - 1);
    const index farthest = t.queries.end - 1 - t.keys.begin;
    if (farthest < 0) return heed::coverage::empty;
    if (nearest <= 2)
      return nearest >= 0 && farthest <= 2 ? heed::coverage::full : heed::coverage::partial;
    return power_from(nearest) > farthest ? heed::coverage::empty : heed::coverage::partial;
  }
  /// Keys at the largest power that reaches the tile, and nearer.
  [[nodiscard]] constexpr range visible_keys(const tile& t) const noexcept {
    const range seen = causal_mask{}.visible_keys(t);
    if (seen.empty()) return seen;
    const index farthest = t.queries.end - 1 - seen.begin;
    if (farthest <= 2) return seen;
    // Largest power of two up to the farthest distance; its nearest key is the first that may be
    // visible unless a query further back has it inside the tile.
    const auto power = static_cast<index>(std::bit_floor(static_cast<std::uint64_t>(farthest)));
    return intersect(seen, {t.queries.begin - power, seen.end});
  }

 private:
  [[nodiscard]] static constexpr index power_from(index distance) noexcept {
    return static_cast<index>(std::bit_ceil(static_cast<std::uint64_t>(distance)));
  }
};

}  // namespace heed::inline HEED_TARGET
