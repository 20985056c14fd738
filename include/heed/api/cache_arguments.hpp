// SPDX-License-Identifier: MIT
// The arguments of attention to a cache: queries that are its newest tokens, checked.
//
// | argument | axes                                              |
// |----------|---------------------------------------------------|
// | q, out   | [batch, heads, N, head dim / value dim]           |
// | cache    | batch, kv heads, at least N tokens a batch entry  |
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/api/attention_arguments.hpp"
#include "heed/api/overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/parallel/executor.hpp"

namespace heed::inline HEED_TARGET::api {

/// Reads a cache through a pointer: a call is copied, a cache is not.
template <key_value_source Cache>
class kv_source_reference {
 public:
  using key_scalar = typename Cache::key_scalar;
  using value_scalar = typename Cache::value_scalar;
  explicit kv_source_reference(const Cache& c) noexcept : cache_(&c) {}
  [[nodiscard]] index batch() const noexcept { return cache_->batch(); }
  [[nodiscard]] index kv_heads() const noexcept { return cache_->kv_heads(); }
  [[nodiscard]] index head_dim() const noexcept { return cache_->head_dim(); }
  [[nodiscard]] index value_dim() const noexcept { return cache_->value_dim(); }
  [[nodiscard]] index length(index b) const noexcept { return cache_->length(b); }
  [[nodiscard]] auto keys(index b, index h, index j) const noexcept {
    return cache_->keys(b, h, j);
  }
  [[nodiscard]] auto values(index b, index h, index j) const noexcept {
    return cache_->values(b, h, j);
  }
  void widen_keys(index b, index h, range rows, float* to) const noexcept
    requires widening_source<Cache>
  {
    cache_->widen_keys(b, h, rows, to);
  }
  void widen_values(index b, index h, range rows, float* to) const noexcept
    requires widening_source<Cache>
  {
    cache_->widen_values(b, h, rows, to);
  }
  static constexpr int code_bits = [] {
    if constexpr (coded_source<Cache>) return Cache::code_bits;
    return 0;
  }();
  static constexpr bool codes_in_pages = has_coded_pages<Cache>;
  [[nodiscard]] code_run key_codes(index b, index h, index j) const noexcept
    requires coded_source<Cache>
  {
    return cache_->key_codes(b, h, j);
  }
  [[nodiscard]] code_run value_codes(index b, index h, index j) const noexcept
    requires coded_source<Cache>
  {
    return cache_->value_codes(b, h, j);
  }
  [[nodiscard]] index key_channel_stride() const noexcept { return cache_->key_channel_stride(); }
  [[nodiscard]] index value_channel_stride() const noexcept {
    return cache_->value_channel_stride();
  }

 private:
  const Cache* cache_;
};

template <class T>
concept a_cache = key_value_source<std::remove_cvref_t<T>>;

/// Compile errors that name the member it lacks.
template <class C>
constexpr void explain_source() {
  static_assert(
      requires {
        typename C::key_scalar;
        typename C::value_scalar;
      }, "heed: the cache has no types key_scalar and value_scalar");
  static_assert(
      requires(const C& c) {
        { c.batch() } -> std::convertible_to<index>;
      }, "heed: the cache has no batch() const -> index");
  static_assert(
      requires(const C& c) {
        { c.kv_heads() } -> std::convertible_to<index>;
      }, "heed: the cache has no kv_heads() const -> index");
  static_assert(
      requires(const C& c) {
        { c.head_dim() } -> std::convertible_to<index>;
        { c.value_dim() } -> std::convertible_to<index>;
      }, "heed: the cache has no head_dim() and value_dim() const -> index");
  static_assert(
      requires(const C& c) {
        { c.length(index{}) } -> std::convertible_to<index>;
      }, "heed: the cache has no length(batch) const -> index");
  static_assert(
      requires(const C& c) {
        c.keys(index{}, index{}, index{});
        c.values(index{}, index{}, index{});
      }, "heed: the cache has no keys(batch, kv_head, token) and values(...) const");
  static_assert(
      requires(const C& c) {
        { c.key_channel_stride() } -> std::convertible_to<index>;
        { c.value_channel_stride() } -> std::convertible_to<index>;
      }, "heed: the cache has no key_channel_stride() and value_channel_stride() const");
  static_assert(key_value_source<C>,
                "heed: the cache is no key_value_source: keys and values return "
                "heed::row_run<key_scalar> and heed::row_run<value_scalar>");
}

/// A method whose queries are the newest tokens of a cache.
struct cache_method : method<attention_options> {
  template <class Q, a_cache Cache, class... Rest>
  [[nodiscard]] static auto result(const Q& q, const Cache& cache, const Rest&...) {
    auto extents = as_view(q).extents();
    extents.back() = static_cast<index>(cache.value_dim());
    return result_like<const Q&>(extents);
  }
  template <class Q, class K, class V, a_cache Cache, class... Rest>
    requires tensor_like<const K&>
  [[nodiscard]] static auto result(const Q& q, const K&, const V& v, const Cache&, const Rest&...) {
    return result_like<const Q&>(result_extents(q, v));
  }
  /// The first argument that may be meant as a cache is told what it lacks.
  template <class First, class... More>
  static constexpr void explain() {
    using F = std::remove_cvref_t<First>;
    if constexpr (!executor<F> && !tensor_like<const F&> && !is_target<F>) {
      explain_source<F>();
    } else if constexpr (sizeof...(More) > 0) {
      explain<More...>();
    } else {
      static_assert(
          executor<F> && !executor<F>,
          "heed: the arguments are [executor,] [out,] q, [k, v,] cache, options, "
          "modifiers...: one is missing, or what is given in place of the options is none");
    }
  }
};

/// Takes back the tokens that were appended last, unless told to keep them: as many of every
/// sequence, or starts[s + 1] - starts[s] of sequence s.
template <class Cache>
class append_guard {
 public:
  append_guard(Cache& c, index tokens) noexcept : cache_(c), tokens_(tokens) {}
  append_guard(Cache& c, std::span<const index> starts) noexcept : cache_(c), starts_(starts) {}
  append_guard(const append_guard&) = delete;
  append_guard& operator=(const append_guard&) = delete;
  ~append_guard() {
    if (kept_) return;
    if constexpr (requires { cache_.truncate(index{}, index{}); }) {
      for (index b = 0; b < cache_.batch(); ++b) cache_.truncate(b, cache_.length(b) - count(b));
    } else {
      static_assert(
          requires { cache_.truncate(index{}); },
          "heed: this cache cannot take tokens back: append them, then decode");
      cache_.truncate(cache_.length() - tokens_);
    }
  }
  void keep() noexcept { kept_ = true; }

 private:
  [[nodiscard]] index count(index b) const noexcept {
    const auto s = static_cast<std::size_t>(b);
    return starts_.empty() ? tokens_ : starts_[s + 1] - starts_[s];
  }
  Cache& cache_;
  index tokens_ = 0;
  std::span<const index> starts_;
  bool kept_ = false;
};

template <class Q, class Cache>
constexpr void check_decode() {
  static_assert(tensor_like<const Q&>,
                "heed: q is not a tensor; specialise heed::tensor_traits for its type");
  using A = accumulate_t<scalar_of<const Q&>>;
  static_assert(
      std::is_same_v<A, accumulate_t<typename Cache::key_scalar>> &&
          std::is_same_v<A, accumulate_t<typename Cache::value_scalar>>,
      "heed: q and the cache accumulate in different types; double goes with double alone");
}

/// Throws shape_error unless q's head dim and heads fit the cache's.
template <class Q4, class Cache>
void check_decode_heads(const Q4& q4, const Cache& cache) {
  require_equal("q", "head dim", q4.extent(3), "the cache", cache.head_dim());
  const auto kv_heads = static_cast<index>(cache.kv_heads());
  if (kv_heads == 0 ? q4.extent(1) != 0 : q4.extent(1) % kv_heads != 0) {
    fail<shape_error>("q has " + std::to_string(q4.extent(1)) +
                      " heads, not a multiple of the cache's " + std::to_string(kv_heads));
  }
}

/// Positions come from the cache: one that is given would be ignored.
inline void check_decode_offset(const attention_options& options) {
  if (!options.offset.is_default()) {
    fail<option_error>(
        "options.offset is given; the queries of a decode are the cache's last tokens, their "
        "positions are set by it");
  }
}

/// The call of a decode that reads `source`, which reads `cache`.
template <class Source, class Target, class Q, class Cache, class... M>
[[nodiscard]] auto open_decode_from(const Source& source, Target&& target, const Q& q,
                                    const Cache& cache, const attention_options& options,
                                    const M&... modifiers) {
  check_decode<Q, Cache>();
  const auto q4 = input4(q);
  const index batch = static_cast<index>(cache.batch());
  require_equal("q", "batch", q4.extent(0), "the cache", batch);
  check_decode_heads(q4, cache);
  check_decode_offset(options);
  const auto kv_heads = static_cast<index>(cache.kv_heads());
  index longest = 0;
  for (index b = 0; b < batch; ++b) {
    const auto length = static_cast<index>(cache.length(b));
    if (length < q4.extent(2)) {
      fail<shape_error>("q has " + std::to_string(q4.extent(2)) + " tokens, the cache holds " +
                        std::to_string(length));
    }
    longest = (std::max)(longest, length);
  }
  return open_source_call(std::forward<Target>(target), q, source,
                          {batch, q4.extent(1), kv_heads, q4.extent(2), longest},
                          options.with_offset(offsets::of_newest(cache, q4.extent(2))),
                          modifiers...);
}

template <class Target, class Q, class Cache, class... M>
[[nodiscard]] auto open_decode(Target&& target, const Q& q, const Cache& cache,
                               const attention_options& options, const M&... modifiers) {
  return open_decode_from(kv_source_reference<Cache>(cache), std::forward<Target>(target), q, cache,
                          options, modifiers...);
}

}  // namespace heed::inline HEED_TARGET::api
