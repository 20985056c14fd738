// SPDX-License-Identifier: MIT
// Attention of the newest tokens to a KV cache: decode one at a time, or prefill in chunks.
//
// | argument | axes                                              |
// |----------|---------------------------------------------------|
// | q, out   | [batch, heads, N, head dim / value dim]           |
// | k, v     | [batch, kv heads, N, head dim / value dim]        |
//
// The N queries are the last N tokens of the cache: row i stands at position length - N + i. The
// position is set here; `options.offset` is not read. No mask is implied: for N > 1 pass
// `causal()`. Few queries split along the keys, each row of the cache read once for all heads that
// share it; many run tiled. All else is as in `attention`. Throws shape_error, option_error,
// capacity_error, std::bad_alloc; the cache then is as before.
#pragma once

#include <vector>

#include "heed/attention/exact.hpp"
#include "heed/cache/contiguous.hpp"

namespace heed {

namespace detail {

/// Reads a cache through a pointer: a call is copied, a cache is not.
template <key_value_source Cache>
class source_reference {
 public:
  using key_scalar = typename Cache::key_scalar;
  using value_scalar = typename Cache::value_scalar;
  explicit source_reference(const Cache& c) noexcept : cache_(&c) {}
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
  [[nodiscard]] index key_channel_stride() const noexcept { return cache_->key_channel_stride(); }
  [[nodiscard]] index value_channel_stride() const noexcept {
    return cache_->value_channel_stride();
  }

 private:
  const Cache* cache_;
};

template <class T>
concept a_cache = key_value_source<std::remove_cvref_t<T>>;

/// Takes back what was appended unless told to keep it.
template <class Cache>
class append_guard {
 public:
  explicit append_guard(Cache& c) noexcept : cache_(c), length_(c.length()) {}
  append_guard(const append_guard&) = delete;
  append_guard& operator=(const append_guard&) = delete;
  ~append_guard() {
    if (!kept_) cache_.truncate(length_);
  }
  void keep() noexcept { kept_ = true; }

 private:
  Cache& cache_;
  index length_;
  bool kept_ = false;
};

template <class Target, class Q, class Cache, class... M>
[[nodiscard]] auto open_decode(Target&& target, const Q& q, const Cache& cache,
                               const attention_options& options, std::vector<index>& offset,
                               const M&... modifiers) {
  static_assert(tensor_like<const Q&>,
                "heed: q is not a tensor; specialise heed::tensor_traits for its type");
  using A = accumulate_t<scalar_of<const Q&>>;
  static_assert(
      std::is_same_v<A, accumulate_t<typename Cache::key_scalar>> &&
          std::is_same_v<A, accumulate_t<typename Cache::value_scalar>>,
      "heed: q and the cache accumulate in different types; double goes with double alone");
  const auto q4 = input4(q);
  const index batch = static_cast<index>(cache.batch());
  require_equal("q", "batch", q4.extent(0), "the cache", batch);
  require_equal("q", "head dim", q4.extent(3), "the cache", cache.head_dim());
  const auto kv_heads = static_cast<index>(cache.kv_heads());
  if (kv_heads == 0 ? q4.extent(1) != 0 : q4.extent(1) % kv_heads != 0) {
    fail<shape_error>("q has " + std::to_string(q4.extent(1)) +
                      " heads, not a multiple of the cache's " + std::to_string(kv_heads));
  }
  index longest = 0;
  offset.resize(static_cast<std::size_t>(batch));
  for (index b = 0; b < batch; ++b) {
    const auto length = static_cast<index>(cache.length(b));
    if (length < q4.extent(2)) {
      fail<shape_error>("q has " + std::to_string(q4.extent(2)) + " tokens, the cache holds " +
                        std::to_string(length));
    }
    offset[static_cast<std::size_t>(b)] = length - q4.extent(2);
    longest = std::max(longest, length);
  }
  attention_options o = options;
  o.offset = offsets(offset);
  return open_source_call(std::forward<Target>(target), q, source_reference<Cache>(cache),
                          {batch, q4.extent(1), kv_heads, q4.extent(2), longest}, o, modifiers...);
}

}  // namespace detail

/// Attends q, whose keys and values are the cache's last, to the cache.
template <detail::an_executor E, class Out, class Q, detail::a_cache Cache, class... M>
void decode_into(E&& exec, Out&& out, const Q& q, const Cache& cache,
                 const attention_options& options = {}, const M&... modifiers) {
  std::vector<index> offset;
  detail::exact_kernel::run(
      exec, detail::open_decode(std::forward<Out>(out), q, cache, options, offset, modifiers...));
}

/// Appends k and v, then attends q to the cache.
template <detail::an_executor E, class Out, class Q, class K, class V, detail::a_cache Cache,
          class... M>
requires tensor_like<const K&>
void decode_into(E&& exec, Out&& out, const Q& q, const K& k, const V& v, Cache& cache,
                 const attention_options& options = {}, const M&... modifiers) {
  require_equal("k", "tokens", detail::input4(k).extent(2), "q", detail::input4(q).extent(2));
  detail::append_guard<Cache> guard(cache);
  cache.append(k, v);
  decode_into(exec, std::forward<Out>(out), q, std::as_const(cache), options, modifiers...);
  guard.keep();
}

/// The same without an executor.
template <class Out, class Q, detail::a_cache Cache, class... M>
requires(!detail::an_executor<Out>) void decode_into(Out&& out, const Q& q, const Cache& cache,
                                                     const attention_options& options = {},
                                                     const M&... modifiers) {
  default_executor exec;
  decode_into(exec, std::forward<Out>(out), q, cache, options, modifiers...);
}

template <class Out, class Q, class K, class V, detail::a_cache Cache, class... M>
requires(!detail::an_executor<Out> &&
         tensor_like<const K&>) void decode_into(Out&& out, const Q& q, const K& k, const V& v,
                                                 Cache& cache,
                                                 const attention_options& options = {},
                                                 const M&... modifiers) {
  default_executor exec;
  decode_into(exec, std::forward<Out>(out), q, k, v, cache, options, modifiers...);
}

/// decode([executor,] q, cache, options = {}, modifiers...) -> a tensor of q's family
template <detail::an_executor E, class Q, detail::a_cache Cache, class... M>
[[nodiscard]] auto decode(E&& exec, const Q& q, const Cache& cache,
                          const attention_options& options = {}, const M&... modifiers) {
  auto extents = as_view(q).extents();
  extents.back() = static_cast<index>(cache.value_dim());
  auto out = result_like<const Q&>(extents);
  decode_into(exec, out, q, cache, options, modifiers...);
  return out;
}

/// decode([executor,] q, k, v, cache, options = {}, modifiers...): appends k and v first.
template <detail::an_executor E, class Q, class K, class V, detail::a_cache Cache, class... M>
requires tensor_like<const K&>
[[nodiscard]] auto decode(E&& exec, const Q& q, const K& k, const V& v, Cache& cache,
                          const attention_options& options = {}, const M&... modifiers) {
  auto out = result_like<const Q&>(detail::result_extents(q, v));
  decode_into(exec, out, q, k, v, cache, options, modifiers...);
  return out;
}

template <class Q, detail::a_cache Cache, class... M>
requires(!detail::an_executor<Q>)
    [[nodiscard]] auto decode(const Q& q, const Cache& cache, const attention_options& options = {},
                              const M&... modifiers) {
  default_executor exec;
  return decode(exec, q, cache, options, modifiers...);
}

template <class Q, class K, class V, detail::a_cache Cache, class... M>
requires(!detail::an_executor<Q> && tensor_like<const K&>)
    [[nodiscard]] auto decode(const Q& q, const K& k, const V& v, Cache& cache,
                              const attention_options& options = {}, const M&... modifiers) {
  default_executor exec;
  return decode(exec, q, k, v, cache, options, modifiers...);
}

}  // namespace heed
