// SPDX-License-Identifier: MIT
// The verticals and slashes of each head of a long prompt, estimated from its last rows.
//
//   p = softmax of the last `queries` rows against all keys up to their own position
//   vertical j: sum of p_ij over those rows;   slash s: sum of p_ij over the pairs with p - j = s
//   the `verticals` and `slashes` largest are kept, distance 0 always
//
//   auto lists = estimate_vertical_slash(exec, q, k, {.verticals = 256, .slashes = 256});
//   auto out = attention(q, k, v, {}, lists.mask());                        those pairs, exactly
//   auto pattern = vertical_slash_blocks(exec, lists, {.queries = n, .keys = n});
//   auto out = attention(q, k, v, {}, blocks(pattern) && causal());         whole blocks: no pair
//                                                                           is evaluated
// Jiang et al. 2024, arXiv 2407.02490 (MInference), section 3.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/top_k/qk_rows.hpp"
#include "heed/kernel/top_k/streaming_top_k.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/sparse/pattern/block_pattern.hpp"
#include "heed/sparse/pattern/vertical_slash.hpp"
#include "heed/sparse/select/top_k.hpp"

namespace heed::inline HEED_TARGET {

class vertical_slash_heads;

/// The keys and the distances of each head, ascending.
struct vertical_slash_lists {
  tensor<index, 3> verticals;  ///< [batch, heads, count]
  tensor<index, 3> slashes;    ///< [batch, heads, count]

  [[nodiscard]] index batch() const noexcept { return verticals.extent(0); }
  [[nodiscard]] index heads() const noexcept { return verticals.extent(1); }
  /// One head's lists as the mask they are.
  [[nodiscard]] vertical_slash of(index b, index h) const& noexcept {
    return {row(verticals, b, h), row(slashes, b, h)};
  }
  vertical_slash of(index, index) const&& = delete;  // would dangle
  /// Each head's own, as one mask; the lists must outlive it.
  [[nodiscard]] vertical_slash_heads mask() const& noexcept;
  vertical_slash_heads mask() const&& = delete;

 private:
  static std::span<const index> row(const tensor<index, 3>& t, index b, index h) noexcept {
    return {t.data() + (b * t.extent(1) + h) * t.extent(2), static_cast<std::size_t>(t.extent(2))};
  }
};

/// The vertical-slash pattern of each head: see `vertical_slash`. A pair costs two binary searches.
class vertical_slash_heads {
 public:
  static constexpr stage when = stage::mask;
  explicit vertical_slash_heads(const vertical_slash_lists& lists) noexcept : lists_(&lists) {}

  [[nodiscard]] bool operator()(const position& p) const noexcept {
    return lists_->of(p.batch, p.head)(p);
  }
  [[nodiscard]] heed::coverage coverage(const tile& t) const noexcept {
    return lists_->of(t.batch, t.head).coverage(t);
  }
  [[nodiscard]] range visible_keys(const tile& t) const noexcept {
    return lists_->of(t.batch, t.head).visible_keys(t);
  }
  /// Throws shape_error where there is not one list a batch and query head, or one out of order.
  void check(const score_extents& e) const {
    require_equal("verticals", "batch", lists_->verticals.extent(0), "the call", e.batch);
    require_equal("verticals", "heads", lists_->verticals.extent(1), "the call", e.heads);
    require_equal("slashes", "batch", lists_->slashes.extent(0), "the call", e.batch);
    require_equal("slashes", "heads", lists_->slashes.extent(1), "the call", e.heads);
    for (index b = 0; b < e.batch; ++b) {
      for (index h = 0; h < e.heads; ++h) lists_->of(b, h).check(e);
    }
  }

 private:
  const vertical_slash_lists* lists_;
};

inline vertical_slash_heads vertical_slash_lists::mask() const& noexcept {
  return vertical_slash_heads(*this);
}

/// How many columns and diagonals are kept, and what they are estimated from.
struct vertical_slash_options {
  index queries = 64;                          ///< last rows looked at
  index verticals = 256;                       ///< keys a head
  index slashes = 256;                         ///< distances a head, 0 among them
  index offset = 0;                            ///< position of row 0
  std::optional<double> scale = std::nullopt;  ///< 1 / sqrt(head dim) where absent
};

namespace detail {

struct estimate_vertical_slash_method : api::method<vertical_slash_options> {
  template <class E, tensor_like Q, tensor_like K>
  [[nodiscard]] static vertical_slash_lists call(E& exec, const Q& q, const K& k,
                                                 const vertical_slash_options& o) {
    const auto q4 = detail::selection_input(q);
    const auto k4 = detail::selection_input(k);
    detail::check_selection_call(q4.extents(), k4.extents(), {});
    if (o.queries < 1 || o.verticals < 0 || o.slashes < 1) {
      fail<option_error>("estimate from " + std::to_string(o.queries) + " rows of " +
                         std::to_string(o.verticals) + " verticals and " +
                         std::to_string(o.slashes) + " slashes, needs 1, 0 and 1 at least");
    }
    const index n = q4.extent(2);
    const index heads = q4.extent(1);
    const index d = q4.extent(3);
    detail::check_row_positions(o.offset, n);
    if (o.offset + n > k4.extent(2)) {
      fail<shape_error>("q has tokens up to position " + std::to_string(o.offset + n) + ", k has " +
                        std::to_string(k4.extent(2)));
    }
    kernel::check_listed("k's keys", k4.extent(2));
    using A = accumulate_t<scalar_of<const Q&>>;
    const index seen = n > 0 ? std::max<index>(o.offset + n, 0) : 0;
    const index verticals = (std::min)(o.verticals, seen);
    const index slashes = (std::min)(o.slashes, seen);
    vertical_slash_lists lists{tensor<index, 3>({q4.extent(0), heads, verticals}),
                               tensor<index, 3>({q4.extent(0), heads, slashes})};
    const A scale = checked_finite<A>(
        "scale", o.scale ? *o.scale : 1 / std::sqrt(static_cast<double>(std::max<index>(d, 1))));
    const index group = k4.extent(1) > 0 ? heads / k4.extent(1) : 1;
    constexpr index rows = kernel::split_plan<A>::tile_rows;
    struct scratch_type {
      kernel::row_scores_scratch<A> scored;  // two rows more hold the sums
      kernel::running_largest<A> verticals, slashes;
    };
    const auto allocate = [&](arena& c) noexcept {
      scratch_type s;
      s.scored.allocate(c, rows + 2, seen, d);
      s.verticals.allocate(c, 1, verticals);
      s.slashes.allocate(c, 1, slashes);
      return s;
    };
    workspace memory;
    for_each_with_scratch(
        exec, q4.extent(0) * heads, memory, allocate, [&](scratch_type& scratch, index t) noexcept {
          kernel::row_scores_scratch<A>& s = scratch.scored;
          const index b = t / heads;
          const index h = t % heads;
          A* const by_key = s.row(rows);
          A* const by_distance = s.row(rows + 1);
          std::fill_n(by_key, seen, A(0));
          std::fill_n(by_distance, seen, A(0));
          for (index i = (std::max)({index{0}, n - o.queries, -o.offset}); i < n; i += rows) {
            const index count = (std::min)(rows, n - i);
            for (index r = 0; r < count; ++r) s.load(r, &q4(b, h, i + r, 0), q4.stride(3), d);
            s.score(count, k4, b, h / group, o.offset + i + count);
            for (index r = 0; r < count; ++r) {
              const index p = o.offset + i + r;
              A* const x = s.row(r);
              kernel::softmax_weights(x, p + 1, scale);
              A sum = A(0);
              for (index j = 0; j <= p; ++j) sum += x[j];
              if (!(sum > A(0))) continue;
              const A share = A(1) / sum;
              for (index j = 0; j <= p; ++j) by_key[j] += x[j] * share;
              for (index j = 0; j <= p; ++j) by_distance[p - j] += x[j] * share;
            }
          }
          if (seen > 0) by_distance[0] = std::numeric_limits<A>::infinity();
          const auto choose = [&](kernel::running_largest<A>& largest, const A* sums, index* to) {
            largest.start(1);
            largest.take_row(0, sums, {0, seen});
            largest.ascending(0, to);
          };
          choose(scratch.verticals, by_key, lists.verticals.data() + t * verticals);
          choose(scratch.slashes, by_distance, lists.slashes.data() + t * slashes);
        });
    return lists;
  }
};

}  // namespace detail

/// estimate_vertical_slash([executor,] q, k, options): q [batch, heads, queries, head dim], k
/// [batch, kv heads, keys, head dim]; always causal. Lists are shorter where there are fewer keys than
/// wanted; ties go to the lower index. Products, exponentials and sums are in the accumulator
/// type; a row with a NaN among its scores counts for nothing. Cost 2 queries M D FLOPs and queries
/// M exponentials a head, parallel over heads: the same lists for any number of threads; memory
/// O(M) a worker. Throws option_error; shape_error, also where rows lie behind the last key;
/// std::bad_alloc.
inline constexpr api::function<detail::estimate_vertical_slash_method,
                               api::form<detail::estimate_vertical_slash_method, 2>>
    estimate_vertical_slash{};

/// The blocks in which lists have a pair, a row of blocks for each batch, head and block of
/// queries; `extents.batch` and `extents.heads` are not looked at. Every block is whole, so that no
/// mask is evaluated: to be combined with `causal()`. Cost O(verticals + slashes + key blocks) a
/// row. Throws shape_error on other extents than a pattern's, std::bad_alloc.
template <executor E>
[[nodiscard]] block_pattern vertical_slash_blocks(E& exec, const vertical_slash_lists& lists,
                                                  pattern_extents extents) {
  extents.batch = lists.batch();
  extents.heads = lists.heads();
  check_pattern_extents(extents);
  std::vector<std::vector<index>> rows(static_cast<std::size_t>(extents.rows()));
  const index workers = detail::worker_count(exec, extents.rows());
  for_each_task(exec, workers, extents.rows(), [&](index, index r) {
    const index head = r / extents.query_blocks();
    const index first = r % extents.query_blocks() * extents.query_block;
    const index last = (std::min)(first + extents.query_block, extents.queries) - 1;
    std::vector<char> any(static_cast<std::size_t>(extents.key_blocks()), 0);
    const auto mark = [&](index begin, index end) {
      const range keys = intersect({0, extents.keys}, {begin, end});
      if (keys.empty()) return;
      for (index n = keys.begin / extents.key_block; n <= (keys.end - 1) / extents.key_block; ++n) {
        any[static_cast<std::size_t>(n)] = 1;
      }
    };
    const auto each = [head](const tensor<index, 3>& t, const auto& f) {
      for (index n = 0; n < t.extent(2); ++n) f(t.data()[head * t.extent(2) + n]);
    };
    each(lists.verticals, [&](index j) {
      if (j <= last) mark(j, j + 1);
    });
    each(lists.slashes, [&](index s) { mark(first - s, last - s + 1); });
    auto& row = rows[static_cast<std::size_t>(r)];
    for (index n = 0; n < extents.key_blocks(); ++n) {
      if (any[static_cast<std::size_t>(n)] != 0) row.push_back(n);
    }
  });
  return {extents, rows};
}

}  // namespace heed::inline HEED_TARGET
