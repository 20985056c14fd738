// SPDX-License-Identifier: MIT
// Tokens sorted by bucket and position, and which of the sorted keys each row reaches.
//
// Sorted keys are cut into chunks. A row is in the chunk of the last key of its bucket at or
// before its position (of the bucket's first key where none is), which is its own chunk where rows
// and keys are the same tokens; it reaches the keys of its bucket in that chunk and the one before.
// They are consecutive among the sorted keys.
#pragma once

#include <algorithm>
#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"

namespace heed::inline HEED_TARGET {

/// Every round of every head counts its buckets: more of them than this are refused.
inline constexpr index most_lsh_buckets = index{1} << 24;

}  // namespace heed::inline HEED_TARGET

namespace heed::inline HEED_TARGET::detail {

/// The tokens of one head and round by (bucket, position); those of a negative bucket are left out.
struct bucket_order {
  listed_token* tokens = nullptr;  // [count] in their order
  listed_token* start = nullptr;   // [buckets + 1]: where each bucket begins

  void allocate(arena& c, index sequence, index buckets) noexcept {
    tokens = c.allocate<listed_token>(sequence);
    start = c.allocate<listed_token>(buckets + 1);
  }
  /// `bucket_of(token)`.
  template <class F>
  void sort(index sequence, index buckets, const F& bucket_of) noexcept {
    std::fill_n(start, buckets + 1, listed_token{0});
    for (index t = 0; t < sequence; ++t) {
      const index b = bucket_of(t);
      if (b >= 0) ++start[b + 1];
    }
    for (index b = 0; b < buckets; ++b) start[b + 1] += start[b];
    for (index t = 0; t < sequence; ++t) {
      const index b = bucket_of(t);
      if (b >= 0) tokens[start[b]++] = static_cast<listed_token>(t);
    }
    for (index b = buckets; b > 0; --b) start[b] = start[b - 1];
    start[0] = 0;
  }
  [[nodiscard]] range of(index bucket) const noexcept { return {start[bucket], start[bucket + 1]}; }
};

/// The keys of one head and round, and the place of each among the sorted (-1: nowhere).
struct sorted_keys {
  bucket_order order;
  listed_token* rank = nullptr;  // [keys]

  void allocate(arena& c, index keys, index buckets) noexcept {
    order.allocate(c, keys, buckets);
    rank = c.allocate<listed_token>(keys);
  }
  template <class F>
  void sort(index keys, index buckets, const F& bucket_of) noexcept {
    order.sort(keys, buckets, bucket_of);
    std::fill_n(rank, keys, listed_token{-1});
    for (index n = 0; n < order.start[buckets]; ++n) {
      rank[order.tokens[n]] = static_cast<listed_token>(n);
    }
  }
};

/// The rows of one head and round, sorted, and the keys that each reaches: ranks first[row] ..
/// first[row] + count[row].
struct row_reach {
  bucket_order order;
  listed_token* first = nullptr;  // [rows]
  listed_token* count = nullptr;  // [rows]
  index rows = 0;                 // that are in a bucket

  void allocate(arena& c, index all, index buckets) noexcept {
    order.allocate(c, all, buckets);
    first = c.allocate<listed_token>(all);
    count = c.allocate<listed_token>(all);
  }
  template <class F>
  void find(index all, index buckets, const F& bucket_of, const sorted_keys& keys, index offset,
            index chunk) noexcept {
    order.sort(all, buckets, bucket_of);
    rows = order.start[buckets];
    std::fill_n(first, all, listed_token{0});
    std::fill_n(count, all, listed_token{0});
    for (index b = 0; b < buckets; ++b) {
      const range listed = keys.order.of(b);
      if (listed.empty()) continue;
      index at = listed.begin;
      for (index n = order.start[b]; n < order.start[b + 1]; ++n) {
        const listed_token row = order.tokens[n];
        while (at < listed.end && keys.order.tokens[at] <= offset + row) ++at;
        const index own = (std::max)(at - 1, listed.begin) / chunk;
        const range reach = intersect(listed, {(own - 1) * chunk, (own + 1) * chunk});
        first[row] = static_cast<listed_token>(reach.begin);
        count[row] = static_cast<listed_token>(reach.size());
      }
    }
  }
  [[nodiscard]] HEED_INLINE bool reaches(index row, listed_token rank) const noexcept {
    return static_cast<std::uint32_t>(rank - first[row]) < static_cast<std::uint32_t>(count[row]);
  }
};

/// Whether key j is one of `count` from `first` on, by row: the same for places in a list and
/// ranks.
struct within_reach {
  static constexpr stage when = stage::mask;
  const listed_token* first;  // by place in the list of rows
  const listed_token* count;

  HEED_INLINE bool operator()(const position& p) const noexcept {
    return static_cast<std::uint32_t>(static_cast<listed_token>(p.key) - first[p.row]) <
           static_cast<std::uint32_t>(count[p.row]);
  }
};
struct beyond_reach {
  static constexpr stage when = stage::mask;
  within_reach earlier;
  const listed_token* rank;
  const listed_token* keys;

  HEED_INLINE bool operator()(const position& p) const noexcept {
    position q = p;
    q.key = rank[keys[p.key]];
    return !earlier(q);
  }
};
/// Keeps what is not the token itself.
struct other_token {
  static constexpr stage when = stage::mask;
  token_lists lists;

  HEED_INLINE bool operator()(const position& p) const noexcept {
    const position q = lists.moved(p);
    return q.query != q.key;
  }
};

/// The rule of a task of one round: within reach, and not so in an earlier round.
struct round_rule {
  listed_token* first = nullptr;         // [earlier rounds + 1][most rows]
  listed_token* count = nullptr;         // the same
  const listed_token** ranks = nullptr;  // [earlier rounds]
  listed_token* keys = nullptr;          // the task's list
  token_lists lists;
  index stride = 0;
  index earlier = 0;
  bool self = true;  // whether a token may see itself

  void allocate(arena& c, index rounds, index most_rows, index most_keys) noexcept {
    first = c.allocate<listed_token>(rounds * most_rows);
    count = c.allocate<listed_token>(rounds * most_rows);
    ranks = c.allocate<const listed_token*>(rounds);
    keys = c.allocate<listed_token>(most_keys);
    stride = most_rows;
  }
  /// `reach` and `sorted` are those of all rounds; of this one the sorted rows `of`.
  void start(const row_reach* reach, const sorted_keys* sorted, index round, range of, index offset,
             bool sees_itself) noexcept {
    const row_reach& own = reach[round];
    lists = {own.order.tokens + of.begin, keys, of.size(), 0, offset};
    earlier = round;
    self = sees_itself;
    for (index e = 0; e < round; ++e) {
      ranks[e] = sorted[e].rank;
      for (index i = 0; i < of.size(); ++i) {
        first[(e + 1) * stride + i] = reach[e].first[lists.rows[i]];
        count[(e + 1) * stride + i] = reach[e].count[lists.rows[i]];
      }
    }
    // Reaches move on with the sorted rows: their union, end to end.
    index listed = 0;
    index end = 0;  // the union's, as a rank
    for (index i = 0; i < of.size(); ++i) {
      const index at = own.first[lists.rows[i]];
      const index n = own.count[lists.rows[i]];
      const index fresh = (std::max)(at, end);
      if (n > 0 && at + n > fresh) {
        std::copy_n(sorted[round].order.tokens + fresh, at + n - fresh, keys + listed);
        listed += at + n - fresh;
        end = at + n;
      }
      first[i] = static_cast<listed_token>(n > 0 ? listed - (end - at) : listed);
      count[i] = static_cast<listed_token>(n);
    }
    lists.key_count = listed;
  }

  template <class F>
  HEED_INLINE void each(F&& f) const {
    f(within_reach{first, count});
    for (index e = 0; e < earlier; ++e) {
      f(beyond_reach{{first + (e + 1) * stride, count + (e + 1) * stride}, ranks[e], keys});
    }
    if (!self) f(other_token{lists});
  }
  [[nodiscard]] heed::coverage coverage(const tile& t) const noexcept {
    const extremes x = extremes_of(t.queries);
    if (x.last_end <= t.keys.begin || x.first_begin >= t.keys.end) return heed::coverage::empty;
    const bool all =
        earlier == 0 && self && x.last_begin <= t.keys.begin && x.first_end >= t.keys.end;
    return all ? heed::coverage::full : heed::coverage::partial;
  }
  [[nodiscard]] range visible_keys(const tile& t) const noexcept {
    const extremes x = extremes_of(t.queries);
    return intersect(t.keys, {x.first_begin, x.last_end});
  }

 private:
  /// Where the reaches of some rows begin and end.
  struct extremes {
    listed_token first_begin, last_begin, first_end, last_end;
  };
  [[nodiscard]] extremes extremes_of(range rows) const noexcept {
    if (rows.empty()) return {0, 0, 0, 0};
    listed_token at = first[rows.begin];
    listed_token end = at + count[rows.begin];
    extremes x{at, at, end, end};
    for (index i = rows.begin + 1; i < rows.end; ++i) {
      at = first[i];
      end = at + count[i];
      x = {(std::min)(x.first_begin, at), (std::max)(x.last_begin, at),
           (std::min)(x.first_end, end), (std::max)(x.last_end, end)};
    }
    return x;
  }
};

}  // namespace heed::inline HEED_TARGET::detail
