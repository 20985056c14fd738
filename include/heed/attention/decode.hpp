// SPDX-License-Identifier: MIT
// Attention of the newest tokens to a KV cache: decode one at a time, or prefill in chunks.
//
// | argument | axes                                              |
// |----------|---------------------------------------------------|
// | q, out   | [batch, heads, N, head dim / value dim]           |
// | k, v     | [batch, kv heads, N, head dim / value dim]        |
//
// The N queries are the last N tokens of the cache: row i is at position length - N + i. The
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

namespace detail {

struct decode_method : api::cache_method {
  template <class Q, class Cache>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return api::a_cache<Cache>;
  }
  template <class Q, class K, class V, class Cache>
  [[nodiscard]] static consteval bool accepts() noexcept {
    return tensor_like<const std::remove_cvref_t<K>&> && api::a_cache<Cache>;
  }

  template <class E, class Out, class Q, api::a_cache Cache, class... M>
  static void write(E& exec, Out&& out, const Q& q, const Cache& cache,
                    const attention_options& options, const M&... modifiers) {
    exact_kernel::run(exec,
                      api::open_decode(std::forward<Out>(out), q, cache, options, modifiers...));
  }
  template <class E, class Out, class Q, class K, class V, api::a_cache Cache, class... M>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, Cache& cache,
                    const attention_options& options, const M&... modifiers) {
    const index tokens = api::input4(q).extent(2);
    require_equal("k", "tokens", api::input4(k).extent(2), "q", tokens);
    cache.append(k, v);
    api::append_guard<Cache> guard(cache, tokens);
    write(exec, std::forward<Out>(out), q, std::as_const(cache), options, modifiers...);
    guard.keep();
  }
};

}  // namespace detail

/// decode_into([executor,] out | into(out, lse), q, cache, options = {}, modifiers...): attends q,
/// whose keys and values are the cache's last, to the cache.
/// decode_into([executor,] out | into(out, lse), q, k, v, cache, options = {}, modifiers...):
/// appends k and v first.
inline constexpr api::function<detail::decode_method,
                               api::form<api::writing_call<detail::decode_method>, 3>,
                               api::form<api::writing_call<detail::decode_method>, 5>>
    decode_into{};

/// decode([executor,] q, cache, options = {}, modifiers...) -> a tensor of q's family
/// decode([executor,] q, k, v, cache, options = {}, modifiers...): appends k and v first.
inline constexpr api::function<detail::decode_method,
                               api::form<api::returning_call<detail::decode_method>, 2>,
                               api::form<api::returning_call<detail::decode_method>, 4>>
    decode{};

}  // namespace heed::inline HEED_TARGET
