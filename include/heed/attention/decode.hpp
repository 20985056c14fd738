// SPDX-License-Identifier: MIT
// Attention of the newest tokens to a KV cache: decode one at a time, or prefill in chunks.
//
// | argument | axes                                              |
// |----------|---------------------------------------------------|
// | q, out   | [batch, heads, N, head dim / value dim]           |
// | k, v     | [batch, kv heads, N, head dim / value dim]        |
//
// The N queries are the last N tokens of the cache: row i stands at position length - N + i. The
// position is set here; an `options.offset` is refused. No mask is implied: for N > 1 pass
// `causal()`. Few queries split along the keys, each row of the cache read once for all heads that
// share it; many run tiled. All else is as in `attention`. Throws shape_error, option_error,
// capacity_error, std::bad_alloc; the cache then is as before.
#pragma once

#include <utility>

#include "heed/api/cache_arguments.hpp"
#include "heed/attention/exact.hpp"
#include "heed/cache/contiguous.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// Attends q, whose keys and values are the cache's last, to the cache.
template <api::an_executor E, class Out, class Q, api::a_cache Cache, class... M>
void decode_into(E&& exec, Out&& out, const Q& q, const Cache& cache,
                 const attention_options& options = {}, const M&... modifiers) {
  detail::exact_kernel::run(
      exec, api::open_decode(std::forward<Out>(out), q, cache, options, modifiers...));
}

/// Appends k and v, then attends q to the cache.
template <api::an_executor E, class Out, class Q, class K, class V, api::a_cache Cache, class... M>
  requires tensor_like<const K&>
void decode_into(E&& exec, Out&& out, const Q& q, const K& k, const V& v, Cache& cache,
                 const attention_options& options = {}, const M&... modifiers) {
  const index tokens = api::input4(q).extent(2);
  require_equal("k", "tokens", api::input4(k).extent(2), "q", tokens);
  cache.append(k, v);
  api::append_guard<Cache> guard(cache, tokens);
  decode_into(exec, std::forward<Out>(out), q, std::as_const(cache), options, modifiers...);
  guard.keep();
}

/// The same without an executor.
template <class Out, class Q, api::a_cache Cache, class... M>
  requires(!api::an_executor<Out>)
void decode_into(Out&& out, const Q& q, const Cache& cache, const attention_options& options = {},
                 const M&... modifiers) {
  default_executor exec;
  decode_into(exec, std::forward<Out>(out), q, cache, options, modifiers...);
}

template <class Out, class Q, class K, class V, api::a_cache Cache, class... M>
  requires(!api::an_executor<Out> && tensor_like<const K&>)
void decode_into(Out&& out, const Q& q, const K& k, const V& v, Cache& cache,
                 const attention_options& options = {}, const M&... modifiers) {
  default_executor exec;
  decode_into(exec, std::forward<Out>(out), q, k, v, cache, options, modifiers...);
}

/// decode([executor,] q, cache, options = {}, modifiers...) -> a tensor of q's family
template <api::an_executor E, class Q, api::a_cache Cache, class... M>
[[nodiscard]] auto decode(E&& exec, const Q& q, const Cache& cache,
                          const attention_options& options = {}, const M&... modifiers) {
  auto extents = as_view(q).extents();
  extents.back() = static_cast<index>(cache.value_dim());
  auto out = result_like<const Q&>(extents);
  decode_into(exec, out, q, cache, options, modifiers...);
  return out;
}

/// decode([executor,] q, k, v, cache, options = {}, modifiers...): appends k and v first.
template <api::an_executor E, class Q, class K, class V, api::a_cache Cache, class... M>
  requires tensor_like<const K&>
[[nodiscard]] auto decode(E&& exec, const Q& q, const K& k, const V& v, Cache& cache,
                          const attention_options& options = {}, const M&... modifiers) {
  auto out = result_like<const Q&>(api::result_extents(q, v));
  decode_into(exec, out, q, k, v, cache, options, modifiers...);
  return out;
}

template <class Q, api::a_cache Cache, class... M>
  requires(!api::an_executor<Q>)
[[nodiscard]] auto decode(const Q& q, const Cache& cache, const attention_options& options = {},
                          const M&... modifiers) {
  default_executor exec;
  return decode(exec, q, cache, options, modifiers...);
}

template <class Q, class K, class V, api::a_cache Cache, class... M>
  requires(!api::an_executor<Q> && tensor_like<const K&>)
[[nodiscard]] auto decode(const Q& q, const K& k, const V& v, Cache& cache,
                          const attention_options& options = {}, const M&... modifiers) {
  default_executor exec;
  return decode(exec, q, k, v, cache, options, modifiers...);
}

/// What is no cache is told what it lacks.
template <class Q, api::no_cache Cache, class... M>
  requires tensor_like<const Q&>
void decode(const Q&, const Cache&, const M&...) {
  api::explain_source<Cache>();
}
template <api::an_executor E, class Q, api::no_cache Cache, class... M>
  requires tensor_like<const Q&>
void decode(E&&, const Q&, const Cache&, const M&...) {
  api::explain_source<Cache>();
}
template <class Out, class Q, api::no_cache Cache, class... M>
  requires(!api::an_executor<Out> && tensor_like<const Q&>)
void decode_into(Out&&, const Q&, const Cache&, const M&...) {
  api::explain_source<Cache>();
}
template <api::an_executor E, class Out, class Q, api::no_cache Cache, class... M>
  requires tensor_like<const Q&>
void decode_into(E&&, Out&&, const Q&, const Cache&, const M&...) {
  api::explain_source<Cache>();
}

}  // namespace heed::inline HEED_TARGET
