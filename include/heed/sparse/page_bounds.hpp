// SPDX-License-Identifier: MIT
// Bounds of pages of keys, channel by channel, and the pages whose keys may score highest.
//
//   m_c = min_j k_jc,  M_c = max_j k_jc,   q.k_j <= sum_c max(q_c m_c, q_c M_c)   for j in the page
//
//   page_bounds<float> bounds({.kv_heads = 8, .capacity = 4096, .head_dim = 128}, 16);
//   bounds.update(exec, cache);                             reads the tokens it does not know yet
//   auto chosen = select_pages(exec, q, bounds, {.count = 64});
//   auto out = selected_decode(exec, q, cache, chosen, bounds.page());     (heed/attention.hpp)
//
// A page is `page` keys in a row: what `selected_attention` calls a block. Tang et al. 2024, arXiv
// 2406.10774 (Quest), section 3.3.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "heed/cache/contiguous.hpp"
#include "heed/sparse/selection.hpp"

namespace heed {

/// The least and the largest number of each channel of each page of keys, for caches of these
/// extents. Exact: bounds are keys, in the keys' scalar T. A NaN is passed over; a page with a
/// channel of NaNs alone is never preferred, one with an infinity perhaps not.
/// Holds 2 head dim sizeof(T) bytes a page, batch and KV head, allocated at construction; updates
/// allocate nothing. Reading from many threads is safe while no one updates.
template <attention_scalar T>
class page_bounds {
 public:
  using scalar = T;

  /// Of no tokens yet. `value_dim` is not looked at. Throws shape_error on a negative extent,
  /// option_error on a page below 1, std::bad_alloc.
  page_bounds(const cache_extents& e, index page)
      : page_(checked(e, page)),
        capacity_(e.capacity),
        rows_({e.batch, e.kv_heads, ceil_div(e.capacity, page), 2 * e.head_dim}),
        length_(static_cast<std::size_t>(e.batch), index{0}) {}

  /// Learns keys [batch, kv heads, tokens, head dim] from token `first` on, by default the first
  /// that is not known; those before `first` are as they were. Reads new tokens alone, or, where
  /// `first` is a token known already (a cache was cut, or written over), from its page's first
  /// on. The result is that of learning all at once. Throws shape_error, or capacity_error where
  /// they do not fit, before anything is changed.
  template <executor E, tensor_like K>
  void update(E& exec, const K& keys, std::optional<index> first = std::nullopt) {
    const auto k = detail::selection_input(keys);
    static_assert(std::is_same_v<std::remove_const_t<scalar_of<const K&>>, T>,
                  "heed: page bounds have the scalar of their keys");
    require_equal("keys", "batch", k.extent(0), "the bounds", batch());
    require_equal("keys", "heads", k.extent(1), "the bounds", kv_heads());
    require_equal("keys", "head dim", k.extent(3), "the bounds", head_dim());
    learn(
        exec,
        [&](index b, index h, index j) {
          return row_run<T>{k.data() + b * k.stride(0) + h * k.stride(1) + j * k.stride(2),
                            k.stride(2), k.extent(2) - j};
        },
        k.stride(3), [&](index) { return k.extent(2); }, first);
  }

  /// The same for all that a cache holds, whose sequences may have lengths of their own.
  template <executor E, key_value_source Cache>
  void update(E& exec, const Cache& cache, std::optional<index> first = std::nullopt) {
    static_assert(std::is_same_v<typename Cache::key_scalar, T>,
                  "heed: page bounds have the scalar of their keys");
    require_equal("the cache", "batch", static_cast<index>(cache.batch()), "the bounds", batch());
    require_equal("the cache", "heads", static_cast<index>(cache.kv_heads()), "the bounds",
                  kv_heads());
    require_equal("the cache", "head dim", static_cast<index>(cache.head_dim()), "the bounds",
                  head_dim());
    learn(
        exec, [&](index b, index h, index j) { return cache.keys(b, h, j); },
        static_cast<index>(cache.key_channel_stride()),
        [&](index b) { return static_cast<index>(cache.length(b)); }, first);
  }

  [[nodiscard]] index batch() const noexcept { return rows_.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return rows_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return rows_.extent(3) / 2; }
  [[nodiscard]] index page() const noexcept { return page_; }
  [[nodiscard]] index capacity() const noexcept { return capacity_; }
  /// Tokens learned of a batch, and the pages they fill, the last one perhaps in part.
  [[nodiscard]] index length(index b) const noexcept {
    return length_[static_cast<std::size_t>(b)];
  }
  [[nodiscard]] index pages(index b) const noexcept { return ceil_div(length(b), page_); }

  /// [batch, kv heads, pages of the capacity, head dim]; pages without tokens hold nothing of use.
  [[nodiscard]] view<const T, 4> minimum() const {
    return as_view(rows_).slice(3, head_dim(), 2 * head_dim());
  }
  [[nodiscard]] view<const T, 4> maximum() const { return as_view(rows_).slice(3, 0, head_dim()); }
  /// Both, for the one product that scores are: maxima, then minima, in axis 3.
  [[nodiscard]] view<const T, 4> rows() const { return as_view(rows_); }

 private:
  using A = accumulate_t<T>;

  static index checked(const cache_extents& e, index page) {
    if (e.capacity < 0) {
      fail<shape_error>("the bounds are for " + std::to_string(e.capacity) + " tokens");
    }
    if (page < 1) fail<option_error>("page is " + std::to_string(page) + ", must be at least 1");
    return page;
  }

  template <class E, class Keys, class Length>
  void learn(E& exec, const Keys& keys, index channel_stride, const Length& to,
             std::optional<index> first) {
    index most = 0;   // pages to read of a batch
    index fresh = 0;  // tokens among them
    const auto start = [&](index b) {
      const index from = first.value_or(length(b));
      return from < length(b) ? from / page_ * page_ : from;
    };
    for (index b = 0; b < batch(); ++b) {
      const index known = std::min(length(b), to(b));
      if (to(b) > capacity_) {
        fail<capacity_error>("the bounds are for " + std::to_string(capacity_) +
                             " tokens, the keys have " + std::to_string(to(b)));
      }
      if (first ? *first < 0 || *first > known : to(b) < length(b)) {
        fail<shape_error>("first is " + std::to_string(first.value_or(length(b))) +
                          ", the bounds know " + std::to_string(length(b)) + " tokens of " +
                          std::to_string(to(b)));
      }
      most = std::max(most, ceil_div(to(b), page_) - start(b) / page_);
      fresh = std::max(fresh, to(b) - start(b));
    }
    const index tasks = batch() * kv_heads() * most;
    // Waking a thread costs more than reading the newest token of every head.
    const bool few = batch() * kv_heads() * fresh * head_dim() < 65'536;
    const index workers =
        few ? 1 : std::max(index{1}, std::min(tasks, static_cast<index>(exec.concurrency())));
    for_each_task(exec, workers, tasks, [&](index, index t) noexcept {
      const index b = t / most / kv_heads();
      const index h = t / most % kv_heads();
      const index n = start(b) / page_ + t % most;
      const range j = intersect({start(b), to(b)}, {n * page_, (n + 1) * page_});
      if (j.empty()) return;
      if (j.begin == n * page_) forget(b, h, n);
      for (index at = j.begin; at < j.end;) {
        const row_run<T> run = keys(b, h, at);
        const index count = std::min(j.end - at, run.count);
        widen(&rows_(b, h, n, 0), run, channel_stride, count);
        at += count;
      }
    });
    for (index b = 0; b < batch(); ++b) length_[static_cast<std::size_t>(b)] = to(b);
  }

  void forget(index b, index h, index n) noexcept {
    constexpr A none = std::numeric_limits<A>::infinity();
    std::fill_n(&rows_(b, h, n, 0), head_dim(), static_cast<T>(-none));
    std::fill_n(&rows_(b, h, n, 0) + head_dim(), head_dim(), static_cast<T>(none));
  }

  /// The page's bounds take in `count` keys.
  void widen(T* row, const row_run<T>& keys, index channel_stride, index count) noexcept {
    const index d = head_dim();
    index c = 0;
    if (channel_stride == 1) {
      constexpr index w = simd::lanes<A>;
      for (; c + w <= d; c += w) {
        auto top = simd::load_widened<A>(row + c);
        auto low = simd::load_widened<A>(row + d + c);
        for (index j = 0; j < count; ++j) {
          const auto x = simd::load_widened<A>(keys.data + j * keys.stride + c);
          // Comparisons, which a NaN fails: a packet's own maximum says nothing of it.
          top = simd::select(simd::less(top, x), x, top);
          low = simd::select(simd::less(x, low), x, low);
        }
        A lane[std::size_t{w}];
        simd::store(lane, top);
        simd::narrow_row(lane, row + c, w);
        simd::store(lane, low);
        simd::narrow_row(lane, row + d + c, w);
      }
    }
    for (; c < d; ++c) {
      for (index j = 0; j < count; ++j) {
        const T x = keys.data[j * keys.stride + c * channel_stride];
        if (static_cast<A>(x) > static_cast<A>(row[c])) row[c] = x;
        if (static_cast<A>(x) < static_cast<A>(row[d + c])) row[d + c] = x;
      }
    }
  }

  index page_;
  index capacity_;
  tensor<T, 4> rows_;  // [batch, kv heads, pages, maxima and then minima]
  std::vector<index> length_;
};

/// How the query heads that share a KV head choose: each for itself, or together by the sum or by
/// the largest of their bounds. Together they read each chosen page once.
enum class group_choice { each, sum, largest };

struct page_options {
  index count = 16;  ///< pages a row
  group_choice group = group_choice::each;
  bool newest = true;  ///< the newest page a row sees is chosen, whatever its bound, and first
  bool causal = true;  ///< choose among pages that hold a key up to the row's own position
  /// Position of row 0; where absent the queries are the newest tokens, as in `decode`.
  std::optional<index> offset = std::nullopt;
};

/// select_pages(executor, q, bounds, options): the `count` pages of largest bound on q.k, best
/// first, -1 where there are fewer, for `selected_attention` with block `bounds.page()`. q [batch,
/// heads, queries, head dim]; the result is [batch, heads, queries, count], or [batch, kv heads,
/// ...] where a group chooses together. Not scaled: a scale above 0 changes no choice. Ties to the
/// lower index; a NaN is never preferred; the same choices for any number of threads.
///
/// Bounds are sums of 2 head dim products in the accumulator type. Of a page that a causal row sees
/// in part the bound is of all its keys. Cost 4 head dim FLOPs a query row and page; memory
/// O(pages) a worker beside the result. Throws shape_error, option_error, std::bad_alloc.
template <executor E, tensor_like Q, class T>
[[nodiscard]] tensor<index, 4> select_pages(E& exec, const Q& q, const page_bounds<T>& bounds,
                                            const page_options& o = {}) {
  using A = accumulate_t<T>;
  static_assert(std::is_same_v<A, accumulate_t<scalar_of<const Q&>>>,
                "heed: q and the bounds accumulate in different types");
  const auto q4 = detail::selection_input(q);
  detail::check_selection_call(q4.extents(),
                               {bounds.batch(), bounds.kv_heads(), 0, bounds.head_dim()},
                               {.count = o.count, .block = bounds.page()});
  const index n = q4.extent(2);
  const index d = q4.extent(3);
  const index kv_heads = bounds.kv_heads();
  const index group = kv_heads > 0 ? q4.extent(1) / kv_heads : 1;
  const bool together = o.group != group_choice::each;
  tensor<index, 4> chosen({q4.extent(0), together ? kv_heads : q4.extent(1), n, o.count});
  if (group == 0) {
    std::fill_n(chosen.data(), chosen.size(), index{-1});
    return chosen;
  }
  // Query rows of a task: all heads of the group, and a register tile at least.
  const index queries = std::max<index>(1, split_plan<A>::tile_rows / group);
  const index steps = ceil_div(n, queries);
  const view<const T, 4> rows = bounds.rows();
  for_each_scored<A>(
      exec, q4.extent(0) * kv_heads * steps, queries * group, rows.extent(2), 2 * d,
      [&](row_scores_scratch<A>& s, index t) noexcept {
        const index b = t / steps / kv_heads;
        const index h = t / steps % kv_heads;
        const range i = intersect({0, n}, {t % steps * queries, (t % steps + 1) * queries});
        const index length = bounds.length(b);
        const index offset = o.offset.value_or(length - n);
        const auto pages = [&](index row) {
          const index keys =
              o.causal ? intersect({0, length}, {0, offset + row + 1}).size() : length;
          return ceil_div(keys, bounds.page());
        };
        for (index r = 0; r < i.size() * group; ++r) {
          // What of q meets maxima, and what meets minima.
          A* const to = s.q + r * 2 * d;
          for (index c = 0; c < d; ++c) {
            const A x = static_cast<A>(q4(b, h * group + r % group, i.begin + r / group, c));
            to[c] = x > A(0) ? x : A(0);
            to[d + c] = x > A(0) ? A(0) : x;
          }
        }
        s.score(i.size() * group, rows, b, h, pages(i.end - 1));
        const auto choose = [&](A* score, index count, index* to) {
          const bool newest = o.newest && count > 0 && o.count > 0;
          if (newest) to[0] = --count;
          largest_indices(score, count, o.count - (newest ? 1 : 0), to + (newest ? 1 : 0));
        };
        for (index row = 0; row < i.size(); ++row) {
          const index count = pages(i.begin + row);
          for (index g = 0; g < group; ++g) {
            A* const x = s.row(row * group + g);
            if (!together) {
              choose(x, count, &chosen(b, h * group + g, i.begin + row, 0));
              continue;
            }
            A* const all = s.row(row * group);
            for (index p = 0; g > 0 && p < count; ++p) {
              const bool larger = x[p] > all[p] || !(all[p] == all[p]);
              all[p] = o.group == group_choice::sum ? all[p] + x[p] : larger ? x[p] : all[p];
            }
          }
          if (together) choose(s.row(row * group), count, &chosen(b, h, i.begin + row, 0));
        }
      });
  return chosen;
}

}  // namespace heed
