// SPDX-License-Identifier: MIT
// Which key blocks each block of queries sees: compressed rows of blocks, never an N x M array.
//
// A row of blocks is a list of key blocks in ascending order, each `full` (all its pairs are
// visible) or `partial` (some may be); a block not in the list is `empty`. There is one row for
// each block of queries, of each batch and head or of all alike. Blocks begin at multiples of their
// size on the position axis, so that row i of a chunked prefill, at position offset + i, finds its
// own. Memory: two words a visible block and one a row.
//
//   block_pattern p(extents, lists)            the user's own list, every block full
//   block_pattern p(exec, extents, mask)       a mask's blocks
//   p | q,  p & q,  transpose(p)               of the same extents
//   p.visible_blocks(), p.partial_blocks(), p.density(), p.flops(head_dim, value_dim)
//   whole_blocks(p)                            partial blocks made full: more pairs than the mask has
//
// As a mask of attention (block_mask.hpp) the pattern is `blocks(p)` where all blocks are full, and
// `blocks(p, mask)` where some are partial.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "heed/core/checked.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/parallel/executor.hpp"
#include "heed/score/concepts.hpp"

namespace heed::inline HEED_TARGET {

struct pattern_extents {
  index batch = 1;  ///< 1: alike in all batches
  index heads = 1;  ///< 1: alike in all heads; else the query heads, or the KV heads, of the call
  index queries = 0;
  index keys = 0;
  index query_block = 128;
  index key_block = 128;

  [[nodiscard]] constexpr index query_blocks() const noexcept {
    return ceil_div(queries, query_block);
  }
  [[nodiscard]] constexpr index key_blocks() const noexcept { return ceil_div(keys, key_block); }
  [[nodiscard]] constexpr index rows() const noexcept { return batch * heads * query_blocks(); }
  friend constexpr bool operator==(const pattern_extents&, const pattern_extents&) = default;
};

/// Throws shape_error on an extent below its least, or rows of blocks that no memory could hold.
inline const pattern_extents& check_pattern_extents(const pattern_extents& e) {
  if (e.batch < 0 || e.heads < 0 || e.queries < 0 || e.keys < 0 || e.query_block < 1 ||
      e.key_block < 1) {
    const index extents[] = {e.batch, e.heads, e.queries, e.keys, e.query_block, e.key_block};
    fail<shape_error>("pattern extents are " + format_extents(extents) +
                      " (batch, heads, queries, keys, query block, key block)");
  }
  // A list a row while the pattern is built, of either side: a pattern may be transposed.
  constexpr auto bytes = static_cast<index>(sizeof(std::vector<index>));
  const index rows[] = {e.batch, e.heads, e.query_blocks()};
  const index columns[] = {e.batch, e.heads, e.key_blocks()};
  (void)checked_size("pattern rows of blocks (batch, heads, query blocks):", rows, bytes);
  (void)checked_size("pattern columns of blocks (batch, heads, key blocks):", columns, bytes);
  return e;
}

/// A visible block of a row.
struct block_entry {
  index key_block = 0;
  bool full = true;
  friend constexpr bool operator==(const block_entry&, const block_entry&) = default;
};

class block_pattern {
 public:
  /// Key blocks of each row of blocks, in any order: query blocks of head 0 of batch 0 first.
  /// Throws shape_error on an extent below its least, a wrong number of rows or an unknown block.
  block_pattern(const pattern_extents& extents, std::span<const std::vector<index>> lists)
      : extents_(checked(extents)) {
    if (static_cast<index>(lists.size()) != extents.rows()) {
      fail<shape_error>("the pattern has " + std::to_string(lists.size()) +
                        " rows of blocks, its extents need " + std::to_string(extents.rows()));
    }
    std::vector<index> row;
    for (const auto& list : lists) {
      row.assign(list.begin(), list.end());
      std::sort(row.begin(), row.end());
      row.erase(std::unique(row.begin(), row.end()), row.end());
      if (!row.empty() && (row.front() < 0 || row.back() >= extents.key_blocks())) {
        fail<shape_error>("the pattern names key block " +
                          std::to_string(row.front() < 0 ? row.front() : row.back()) + " of " +
                          std::to_string(extents.key_blocks()));
      }
      for (const index k : row) add({k, true});
      begin_.push_back(static_cast<index>(entries_.size()));
    }
  }

  /// The blocks of a mask: by its own `coverage` where that decides, else by all their pairs. Rows
  /// of blocks are classified in parallel; the mask is evaluated at row = position.
  /// Cost: up to one call of the mask a pair for a mask that offers nothing, else less.
  template <executor E, mask_function M>
  block_pattern(E& exec, const pattern_extents& extents, const M& mask)
      : extents_(checked(extents)) {
    auto&& bound = bind_modifier(
        mask, {extents.batch, extents.heads, extents.heads, extents.queries, extents.keys});
    std::vector<std::vector<block_entry>> rows(static_cast<std::size_t>(extents.rows()));
    const index workers = detail::worker_count(exec, extents.rows());
    for_each_task(exec, workers, extents.rows(), [&](index, index r) {
      classify_row(bound, r, rows[static_cast<std::size_t>(r)]);
    });
    for (const auto& row : rows) {
      for (const block_entry& entry : row) add(entry);
      begin_.push_back(static_cast<index>(entries_.size()));
    }
  }

  [[nodiscard]] const pattern_extents& extents() const noexcept { return extents_; }

  /// The blocks that a block of queries sees, ascending. Batch and head of a pattern that is alike
  /// in all of them are not looked at. None for a block of queries outside the pattern.
  [[nodiscard]] std::span<const block_entry> row(index batch, index head,
                                                 index query_block) const& noexcept {
    if (query_block < 0 || query_block >= extents_.query_blocks()) return {};
    const index b = extents_.batch == 1 ? 0 : batch;
    const index h = extents_.heads == 1 ? 0 : head;
    const auto r =
        static_cast<std::size_t>((b * extents_.heads + h) * extents_.query_blocks() + query_block);
    return std::span(entries_).subspan(static_cast<std::size_t>(begin_[r]),
                                       static_cast<std::size_t>(begin_[r + 1] - begin_[r]));
  }

  std::span<const block_entry> row(index, index, index) const&& = delete;  // would dangle

  [[nodiscard]] coverage at(index batch, index head, index query_block,
                            index key_block) const noexcept {
    const auto r = row(batch, head, query_block);
    const auto it = std::lower_bound(r.begin(), r.end(), key_block,
                                     [](const block_entry& e, index k) { return e.key_block < k; });
    if (it == r.end() || it->key_block != key_block) return coverage::empty;
    return it->full ? coverage::full : coverage::partial;
  }

  [[nodiscard]] index visible_blocks() const noexcept {
    return static_cast<index>(entries_.size());
  }
  /// Blocks of which the mask hides some pairs: which, the pattern does not know.
  [[nodiscard]] index partial_blocks() const noexcept { return partial_; }
  /// Pairs in visible blocks: what a kernel computes.
  [[nodiscard]] double visible_pairs() const noexcept {
    double pairs = 0;
    for_each_row([&](index, index, index q) { return q; },
                 [&](index q, const block_entry& e) {
                   pairs += static_cast<double>(queries_of(q).size()) *
                            static_cast<double>(keys_of(e.key_block).size());
                 });
    return pairs;
  }
  /// Visible pairs of all pairs, 0 where there are none.
  [[nodiscard]] double density() const noexcept {
    const double all = static_cast<double>(extents_.batch * extents_.heads) *
                       static_cast<double>(extents_.queries) * static_cast<double>(extents_.keys);
    return all > 0 ? visible_pairs() / all : 0.0;
  }
  /// Of the two products of attention over the visible blocks: 2 (D + Dv) a pair.
  [[nodiscard]] double flops(index head_dim, index value_dim) const noexcept {
    return 2.0 * static_cast<double>(head_dim + value_dim) * visible_pairs();
  }

  friend bool operator==(const block_pattern&, const block_pattern&) = default;

  /// What either sees; a block is full where one of them has it full.
  friend block_pattern operator|(const block_pattern& a, const block_pattern& b) {
    return merged(a, b, [](const block_entry* x, const block_entry* y, block_entry& to) {
      to = {x != nullptr ? x->key_block : y->key_block,
            (x != nullptr && x->full) || (y != nullptr && y->full)};
      return true;
    });
  }
  /// What both see; a block is full where both have it full.
  friend block_pattern operator&(const block_pattern& a, const block_pattern& b) {
    return merged(a, b, [](const block_entry* x, const block_entry* y, block_entry& to) {
      if (x == nullptr || y == nullptr) return false;
      to = {x->key_block, x->full && y->full};
      return true;
    });
  }
  /// Every visible block full: attention then sees pairs that the pattern's mask hides.
  friend block_pattern whole_blocks(block_pattern p) {
    for (block_entry& entry : p.entries_) entry.full = true;
    p.partial_ = 0;
    return p;
  }
  /// Queries and keys change places: which blocks of queries each key block is seen by.
  friend block_pattern transpose(const block_pattern& a) {
    block_pattern t;
    const pattern_extents& e = a.extents_;
    t.extents_ = {e.batch, e.heads, e.keys, e.queries, e.key_block, e.query_block};
    std::vector<std::vector<block_entry>> rows(static_cast<std::size_t>(t.extents_.rows()));
    a.for_each_row(
        [&](index b, index h, index q) { return std::pair((b * e.heads + h) * e.key_blocks(), q); },
        [&](const std::pair<index, index>& at, const block_entry& entry) {
          rows[static_cast<std::size_t>(at.first + entry.key_block)].push_back(
              {at.second, entry.full});
        });
    for (const auto& row : rows) {
      for (const block_entry& entry : row) t.add(entry);
      t.begin_.push_back(static_cast<index>(t.entries_.size()));
    }
    return t;
  }

 private:
  block_pattern() = default;

  static const pattern_extents& checked(const pattern_extents& e) {
    return check_pattern_extents(e);
  }

  void add(const block_entry& entry) {
    entries_.push_back(entry);
    partial_ += entry.full ? 0 : 1;
  }

  [[nodiscard]] range queries_of(index q) const noexcept {
    const index begin = q * extents_.query_block;
    return {begin, begin + (std::min)(extents_.query_block, extents_.queries - begin)};
  }
  [[nodiscard]] range keys_of(index k) const noexcept {
    const index begin = k * extents_.key_block;
    return {begin, begin + (std::min)(extents_.key_block, extents_.keys - begin)};
  }

  /// f(where(batch, head, query block), entry) for every visible block.
  template <class Where, class F>
  void for_each_row(Where&& where, F&& f) const {
    for (index b = 0; b < extents_.batch; ++b) {
      for (index h = 0; h < extents_.heads; ++h) {
        for (index q = 0; q < extents_.query_blocks(); ++q) {
          const auto at = where(b, h, q);
          for (const block_entry& e : row(b, h, q)) f(at, e);
        }
      }
    }
  }

  template <class M>
  void classify_row(const M& mask, index r, std::vector<block_entry>& to) const {
    const index q = r % extents_.query_blocks();
    const index h = r / extents_.query_blocks() % extents_.heads;
    tile t{r / extents_.query_blocks() / extents_.heads, h, h, queries_of(q), {0, extents_.keys}};
    for (index from = 0; from < extents_.keys;) {
      t.keys = {from, extents_.keys};
      const range seen = visible_keys_of(mask, t);
      if (seen.empty()) return;
      const index k = (std::max)(from, seen.begin) / extents_.key_block;
      t.keys = keys_of(k);
      coverage c = coverage_of(mask, t);
      if (c == coverage::partial) c = by_pairs(mask, t);
      if (c != coverage::empty) to.push_back({k, c == coverage::full});
      from = t.keys.end;
    }
  }

  template <class M>
  static coverage by_pairs(const M& mask, const tile& t) {
    bool any = false;
    bool all = true;
    for (index i = t.queries.begin; i < t.queries.end; ++i) {
      for (index j = t.keys.begin; j < t.keys.end; ++j) {
        const bool visible = mask(position{t.batch, t.head, t.kv_head, i, j, i});
        any = any || visible;
        all = all && visible;
        if (any && !all) return coverage::partial;
      }
    }
    return any ? coverage::full : coverage::empty;
  }

  template <class Choose>
  static block_pattern merged(const block_pattern& a, const block_pattern& b, Choose&& choose) {
    if (a.extents_ != b.extents_) {
      const auto list = [](const pattern_extents& e) {
        const index x[] = {e.batch, e.heads, e.queries, e.keys, e.query_block, e.key_block};
        return format_extents(x);
      };
      fail<shape_error>("patterns have extents " + list(a.extents_) + " and " + list(b.extents_));
    }
    block_pattern c;
    c.extents_ = a.extents_;
    for (std::size_t r = 0; r + 1 < a.begin_.size(); ++r) {
      const block_entry* x = a.entries_.data() + a.begin_[r];
      const block_entry* const x_end = a.entries_.data() + a.begin_[r + 1];
      const block_entry* y = b.entries_.data() + b.begin_[r];
      const block_entry* const y_end = b.entries_.data() + b.begin_[r + 1];
      while (x != x_end || y != y_end) {
        const bool left = y == y_end || (x != x_end && x->key_block <= y->key_block);
        const bool right = x == x_end || (y != y_end && y->key_block <= x->key_block);
        block_entry e;
        if (choose(left ? x : nullptr, right ? y : nullptr, e)) c.add(e);
        x += left ? 1 : 0;
        y += right ? 1 : 0;
      }
      c.begin_.push_back(static_cast<index>(c.entries_.size()));
    }
    return c;
  }

  pattern_extents extents_;
  std::vector<index> begin_{0};
  std::vector<block_entry> entries_;
  index partial_ = 0;
};

}  // namespace heed::inline HEED_TARGET
