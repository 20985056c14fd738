// SPDX-License-Identifier: MIT
// Bounds of pages of keys, channel by channel: how high the keys of a page may score.
//
//   m_c = min_j k_jc,  M_c = max_j k_jc,   q.k_j <= sum_c max(q_c m_c, q_c M_c)   for j in the page
//
//   page_bounds<float> bounds({.kv_heads = 8, .capacity = 4096, .head_dim = 128}, 16);
//   bounds.update(exec, cache);                             reads the tokens it does not know yet
//   auto selection = select_pages(exec, q, bounds, {.count = 64});         (sparse/select/quest.hpp)
//   auto out = selected_decode(exec, q, cache, selection, bounds.page());     (heed/attention.hpp)
//
// A page is `page` keys in a row: what `selected_attention` calls a block. Tang et al. 2024, arXiv
// 2406.10774 (Quest), section 3.3.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "heed/cache/contiguous.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/tiled/tuning.hpp"
#include "heed/sparse/select/top_k.hpp"
#include "heed/tensor/round_directed.hpp"

namespace heed::inline HEED_TARGET {

/// The least and the largest number of each channel of each page of keys, for caches of these
/// extents. Kept in the keys' scalar T, where they are keys, or in a narrower Bound, bfloat16 say,
/// rounded away from the keys: half the memory to hold and to read for bounds a little further out.
/// A NaN is passed over; of a channel of NaNs alone the least is inf and the largest -inf.
/// Holds 2 head dim sizeof(Bound) bytes a page, batch and KV head, allocated at construction;
/// updates allocate nothing. Reading from many threads is safe while no one updates.
///
/// Pages lie in the lanes, a group of them side by side for each channel: first all maxima of the
/// group, then all minima.
template <attention_scalar T, attention_scalar Bound = T>
class page_bounds {
  static_assert(std::is_same_v<accumulate_t<T>, accumulate_t<Bound>>,
                "heed: bounds of double are double, those of others no double");

 public:
  using scalar = T;
  using bound_scalar = Bound;
  /// Pages side by side.
  static constexpr index group = kernel::tile_plan<accumulate_t<T>>::group;

  /// Of no tokens yet. `value_dim` is not looked at. Throws shape_error on a negative extent,
  /// option_error on a page below 1, std::bad_alloc.
  page_bounds(const cache_extents& e, index page)
      : page_(checked(e, page)),
        capacity_(e.capacity),
        groups_({e.batch, e.kv_heads, ceil_div(ceil_div(e.capacity, page), group),
                 e.head_dim < 0 ? e.head_dim : saturating_product(e.head_dim, 2 * group)}),
        head_dim_(e.head_dim),
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

  [[nodiscard]] index batch() const noexcept { return groups_.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return groups_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return head_dim_; }
  /// Tokens a page; all of the capacity where more are wanted.
  [[nodiscard]] index page() const noexcept { return page_; }
  [[nodiscard]] index capacity() const noexcept { return capacity_; }
  /// Tokens learned of a batch, and the pages they fill, the last one perhaps in part.
  [[nodiscard]] index length(index b) const noexcept {
    return length_[static_cast<std::size_t>(b)];
  }
  [[nodiscard]] index pages(index b) const noexcept { return ceil_div(length(b), page_); }

  /// Of a page that has tokens.
  [[nodiscard]] Bound minimum(index b, index h, index page, index channel) const noexcept {
    return of_group(b, h, page / group)[(head_dim_ + channel) * group + page % group];
  }
  [[nodiscard]] Bound maximum(index b, index h, index page, index channel) const noexcept {
    return of_group(b, h, page / group)[channel * group + page % group];
  }
  /// The bounds of pages g group ... of a head, [maxima and then minima of each channel][group];
  /// pages without tokens hold nothing of use.
  [[nodiscard]] const Bound* of_group(index b, index h, index g) const noexcept {
    return &groups_(b, h, g, 0);
  }

 private:
  using A = accumulate_t<T>;

  static index checked(const cache_extents& e, index page) {
    if (e.capacity < 0) {
      fail<shape_error>("the bounds are for " + std::to_string(e.capacity) + " tokens");
    }
    if (page < 1) fail<option_error>("page is " + std::to_string(page) + ", must be at least 1");
    return (std::min)(page, std::max<index>(e.capacity, 1));
  }

  template <class E, class Keys, class Length>
  void learn(E& exec, const Keys& keys, index channel_stride, const Length& to,
             std::optional<index> first) {
    index most = 0;   // groups of pages to read of a batch
    index fresh = 0;  // tokens among them
    const index tokens_of_group = group * page_;
    const auto start = [&](index b) {
      const index from = first.value_or(length(b));
      return from < length(b) ? from / page_ * page_ : from;
    };
    for (index b = 0; b < batch(); ++b) {
      const index known = (std::min)(length(b), to(b));
      if (to(b) > capacity_) {
        fail<capacity_error>("the bounds are for " + std::to_string(capacity_) +
                             " tokens, the keys have " + std::to_string(to(b)));
      }
      if (first ? *first < 0 || *first > known : to(b) < length(b)) {
        fail<shape_error>("first is " + std::to_string(first.value_or(length(b))) +
                          ", the bounds know " + std::to_string(length(b)) + " tokens of " +
                          std::to_string(to(b)));
      }
      most = (std::max)(most, ceil_div(to(b), tokens_of_group) - start(b) / tokens_of_group);
      fresh = (std::max)(fresh, to(b) - start(b));
    }
    const index tasks = batch() * kv_heads() * most;
    // Waking a thread costs more than reading the newest token of every head.
    const bool few = batch() * kv_heads() * fresh * head_dim() < 65'536;
    const index workers = few ? 1 : detail::worker_count(exec, tasks);
    for_each_task(exec, workers, tasks, [&](index, index t) noexcept {
      const index b = t / most / kv_heads();
      const index h = t / most % kv_heads();
      const index g = start(b) / tokens_of_group + t % most;
      const range mine =
          intersect({start(b), to(b)}, {g * tokens_of_group, (g + 1) * tokens_of_group});
      for (index j = mine.begin; j < mine.end;) {
        Bound* const to_page = &groups_(b, h, g, j / page_ % group);
        const index end = (std::min)(mine.end, (j / page_ + 1) * page_);
        if (j % page_ == 0) forget(to_page);
        while (j < end) {
          const row_run<T> run = keys(b, h, j);
          const index count = (std::min)(end - j, run.count);
          widen(to_page, run, channel_stride, count);
          j += count;
        }
      }
    });
    for (index b = 0; b < batch(); ++b) length_[static_cast<std::size_t>(b)] = to(b);
  }

  /// A page's bounds lie `group` numbers apart.
  void forget(Bound* page) const noexcept {
    constexpr A none = std::numeric_limits<A>::infinity();
    for (index c = 0; c < head_dim_; ++c) {
      page[c * group] = static_cast<Bound>(-none);
      page[(head_dim_ + c) * group] = static_cast<Bound>(none);
    }
  }

  /// The page's bounds take in `count` keys.
  void widen(Bound* page, const row_run<T>& keys, index channel_stride,
             index count) const noexcept {
    Bound* const top_of = page;
    Bound* const low_of = page + head_dim_ * group;
    index c = 0;
    constexpr index w = simd::lanes<A>;
    for (; channel_stride == 1 && count > 1 && c + w <= head_dim_; c += w) {
      A lane[std::size_t{2 * w}];
      for (index i = 0; i < w; ++i) {
        lane[i] = static_cast<A>(top_of[(c + i) * group]);
        lane[w + i] = static_cast<A>(low_of[(c + i) * group]);
      }
      auto top = simd::load(lane);
      auto low = simd::load(lane + w);
      for (index j = 0; j < count; ++j) {
        const auto x = simd::load_widened<A>(keys.data + j * keys.stride + c);
        // Comparisons, which a NaN fails: a packet's own maximum says nothing of it.
        top = simd::select(simd::less(top, x), x, top);
        low = simd::select(simd::less(x, low), x, low);
      }
      simd::store(lane, top);
      simd::store(lane + w, low);
      for (index i = 0; i < w; ++i) {
        top_of[(c + i) * group] = rounded_up<Bound>(lane[i]);
        low_of[(c + i) * group] = rounded_down<Bound>(lane[w + i]);
      }
    }
    for (; c < head_dim_; ++c) {
      Bound& top = top_of[c * group];
      Bound& low = low_of[c * group];
      for (index j = 0; j < count; ++j) {
        const auto x = static_cast<A>(keys.data[j * keys.stride + c * channel_stride]);
        if (x > static_cast<A>(top)) top = rounded_up<Bound>(x);
        if (x < static_cast<A>(low)) low = rounded_down<Bound>(x);
      }
    }
  }

  index page_;
  index capacity_;
  tensor<Bound, 4> groups_;  // [batch, kv heads, groups of pages, bounds of the group]
  index head_dim_;
  std::vector<index> length_;
};

}  // namespace heed::inline HEED_TARGET
