// SPDX-License-Identifier: MIT
// Clusters of tokens as lists, and the rule that a pair belongs to the first cluster that holds it.
//
// A pair that several clusters hold would count once for each of them. Each token has a bit a
// cluster; a later cluster leaves out the pairs whose tokens have an earlier one in common, 32
// clusters at a time and only where its rows and keys have any.
#pragma once

#include <algorithm>
#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Clusters of the tokens of one head: ascending lists without repeats, end to end, and a bit for
/// each token and cluster.
struct head_clusters {
  listed_token* tokens = nullptr;  // [listed]
  index* begin = nullptr;          // [clusters + 1]: where each cluster's begin
  std::uint32_t* bits = nullptr;   // [words][all tokens]
  index all = 0;                   // tokens of the sequence

  [[nodiscard]] static constexpr index words(index clusters) noexcept {
    return ceil_div(clusters, 32);
  }
  void allocate(arena& c, index clusters, index window, index sequence) noexcept {
    tokens = c.allocate<listed_token>(clusters * window);
    begin = c.allocate<index>(clusters + 1);
    bits = c.allocate<std::uint32_t>(words(clusters) * sequence);
    all = sequence;
  }
  [[nodiscard]] range of(index cluster) const noexcept {
    return {begin[cluster], begin[cluster + 1]};
  }

  template <class I>
  void sort(const view<const I, 4>& lists, index b, index h) noexcept {
    const index clusters = lists.extent(2);
    std::fill_n(bits, words(clusters) * all, 0U);
    begin[0] = 0;
    for (index c = 0; c < clusters; ++c) {
      listed_token* const first = tokens + begin[c];
      listed_token* last = first;
      bool ascending = true;
      for (index i = 0; i < lists.extent(3); ++i) {
        const auto t = static_cast<index>(lists(b, h, c, i));
        if (t < 0) continue;
        ascending = ascending && (last == first || last[-1] < t);
        *last++ = static_cast<listed_token>(t);
      }
      if (!ascending) {
        std::sort(first, last);
        last = std::unique(first, last);
      }
      begin[c + 1] = last - tokens;
      for (listed_token* t = first; t < last; ++t) bits[c / 32 * all + *t] |= 1U << (c % 32);
    }
  }
};

/// The places of each row of a head in its clusters' lists.
struct row_places {
  index* begin = nullptr;  // [rows + 1]
  index* place = nullptr;  // [listed]

  void allocate(arena& c, index rows, index listed) noexcept {
    begin = c.allocate<index>(rows + 1);
    place = c.allocate<index>(listed);
  }
  /// Places ascend: a row's clusters in their order.
  void find(const head_clusters& lists, index clusters) noexcept {
    std::fill_n(begin, lists.all + 1, index{0});
    const index listed = lists.begin[clusters];
    for (index i = 0; i < listed; ++i) ++begin[lists.tokens[i] + 1];
    for (index r = 0; r < lists.all; ++r) begin[r + 1] += begin[r];
    for (index i = 0; i < listed; ++i) place[begin[lists.tokens[i]]++] = i;
    for (index r = lists.all; r > 0; --r) begin[r] = begin[r - 1];
    begin[0] = 0;
  }
};

/// Keeps the pairs that none of 32 earlier clusters holds.
struct first_cluster {
  static constexpr stage when = stage::mask;
  const std::uint32_t* rows;  // by place in the list
  const std::uint32_t* keys;  // by token
  const listed_token* key_list;

  HEED_INLINE bool operator()(const position& p) const noexcept {
    return (rows[p.row] & keys[key_list[p.key]]) == 0U;
  }
};

/// The rule of a cluster's task: a pair belongs to the first cluster that holds it.
struct cluster_rule {
  std::uint32_t* rows = nullptr;  // [words in use][most rows]: bits of earlier clusters
  const std::uint32_t** keys = nullptr;
  const listed_token* key_list = nullptr;
  index used = 0;
  index stride = 0;

  void allocate(arena& c, index clusters, index most_rows) noexcept {
    rows = c.allocate<std::uint32_t>(head_clusters::words(clusters) * most_rows);
    keys = c.allocate<const std::uint32_t*>(head_clusters::words(clusters));
    stride = most_rows;
  }
  /// For rows `r` and keys `k` of the lists, of cluster c.
  void start(const head_clusters& q, range r, const head_clusters& kv, range k, index c) noexcept {
    used = 0;
    key_list = kv.tokens + k.begin;
    for (index w = 0; w <= c / 32; ++w) {
      const std::uint32_t below = w < c / 32 ? ~0U : (1U << (c % 32)) - 1U;
      const std::uint32_t* const key_bits = kv.bits + w * kv.all;
      std::uint32_t any_row = 0;
      std::uint32_t any_key = 0;
      for (index i = r.begin; i < r.end; ++i) {
        const std::uint32_t bits = q.bits[w * q.all + q.tokens[i]] & below;
        rows[used * stride + i - r.begin] = bits;
        any_row |= bits;
      }
      for (index j = k.begin; j < k.end; ++j) any_key |= key_bits[kv.tokens[j]];
      if ((any_row & any_key) != 0U) keys[used++] = key_bits;
    }
  }

  template <class F>
  HEED_INLINE void each(F&& f) const {
    for (index w = 0; w < used; ++w) f(first_cluster{rows + w * stride, keys[w], key_list});
  }
  [[nodiscard]] heed::coverage coverage(const tile&) const noexcept {
    return used == 0 ? heed::coverage::full : heed::coverage::partial;
  }
  [[nodiscard]] static range visible_keys(const tile& t) noexcept { return t.keys; }
};

}  // namespace heed::inline HEED_TARGET::detail
