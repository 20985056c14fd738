// SPDX-License-Identifier: MIT
// Decode of sequences of different lengths with different counts of new tokens each: a prefill
// chunk of one beside the single tokens of others.
//
// | argument | axes                                                          |
// |----------|---------------------------------------------------------------|
// | q, out   | [heads, all new tokens, head dim / value dim]                 |
// | k, v     | [kv heads, all new tokens, head dim / value dim]              |
// | starts   | the cache's batch + 1 cumulative counts, from 0 to all tokens |
//
// Rows starts[s] .. starts[s+1] are the last tokens of the cache's sequence s, none where the two
// are equal: row i of n is at position length(s) - n + i. To modifiers sequence s is batch s.
// No mask is implied: pass `causal()` where a sequence has more than one new token. The cache is
// any whose sequences have lengths of their own (slot_cache, paged_cache). The bits of a sequence
// do not depend on the others. All else is as in `decode`: throws shape_error, option_error,
// capacity_error, std::bad_alloc; the cache then holds what it held before.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "heed/api/cache_arguments.hpp"
#include "heed/attention/decode.hpp"
#include "heed/attention/varlen.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// How many tokens of each sequence come before its new ones.
template <class Cache>
struct tokens_before {
  const Cache* cache;
  std::span<const index> starts;
  [[nodiscard]] index length(index b) const noexcept {
    const auto s = static_cast<std::size_t>(b);
    return cache->length(b) - (starts[s + 1] - starts[s]);
  }
};

/// The checked call of a decode whose rows lie packed; `before` outlives it.
template <class Out, class Q, class Cache, class... M>
[[nodiscard]] auto open_ragged_decode(Out&& out, const Q& q, const Cache& cache,
                                      const tokens_before<Cache>& before,
                                      const attention_options& options, const M&... modifiers) {
  api::check_decode<Q, Cache>();
  static_assert(rank_of<const Q&> == 3 || rank_of<const Q&> == 2,
                "heed: packed sequences are heads x tokens x channels, or tokens x channels");
  const std::span<const index> starts = before.starts;
  const auto q4 = api::input4(q);
  const index batch = cache.batch();
  api::check_decode_heads(q4, cache);
  check_starts("starts", starts, "q", q4.extent(2));
  require_equal("starts", "entries", static_cast<index>(starts.size()), "the cache's batch + 1",
                batch + 1);
  api::check_decode_offset(options);
  index longest_cache = 0;
  for (index b = 0; b < batch; ++b) {
    const auto s = static_cast<std::size_t>(b);
    const index count = starts[s + 1] - starts[s];
    const index length = cache.length(b);
    if (length < count) {
      fail<shape_error>("q has " + std::to_string(count) + " tokens of sequence " +
                        std::to_string(b) + ", the cache holds " + std::to_string(length));
    }
    if (count > 0) longest_cache = (std::max)(longest_cache, length);
  }
  auto call =
      api::open_source_call(std::forward<Out>(out), q, api::kv_source_reference<Cache>(cache),
                            {batch, q4.extent(1), cache.kv_heads(), longest(starts), longest_cache},
                            options.with_offset(offsets::of_newest(before, 0)), modifiers...);
  call.starts = starts;
  return call;
}

struct ragged_decode_method : decode_method {
  template <class E, class Out, class Q, api::a_cache Cache, class... M>
  static void write(E& exec, Out&& out, const Q& q, const Cache& cache,
                    std::span<const index> starts, const attention_options& options,
                    const M&... modifiers) {
    const tokens_before<Cache> before{&cache, starts};
    exact_kernel::run(
        exec, open_ragged_decode(std::forward<Out>(out), q, cache, before, options, modifiers...));
  }

  /// Appends k and v, then attends q to the cache.
  template <class E, class Out, class Q, class K, class V, api::a_cache Cache, class... M>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, Cache& cache,
                    std::span<const index> starts, const attention_options& options,
                    const M&... modifiers) {
    require_equal("k", "tokens", api::input4(k).extent(2), "q", api::input4(q).extent(2));
    cache.append(k, v, starts);
    api::append_guard<Cache> guard(cache, starts);
    write(exec, std::forward<Out>(out), q, std::as_const(cache), starts, options, modifiers...);
    guard.keep();
  }
};

}  // namespace detail

/// ragged_decode_into([executor,] out | into(out, lse), q, cache, starts, options = {},
/// modifiers...): attends q, whose keys and values are the cache's last, to the cache.
/// ragged_decode_into([executor,] out | into(out, lse), q, k, v, cache, starts, options = {},
/// modifiers...): appends k and v first.
inline constexpr api::function<
    detail::ragged_decode_method,
    api::form<api::writing_call<detail::ragged_decode_method>, 3, std::span<const index>>,
    api::form<api::writing_call<detail::ragged_decode_method>, 5, std::span<const index>>>
    ragged_decode_into{};

}  // namespace heed::inline HEED_TARGET
