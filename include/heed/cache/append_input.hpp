// SPDX-License-Identifier: MIT
// New tokens on their way into a cache: packed along the token axis, checked, copied row by row.
//
// | argument | axes                                                         |
// |----------|--------------------------------------------------------------|
// | k        | [kv heads, all new tokens, head dim]                         |
// | v        | [kv heads, all new tokens, value dim]                        |
// | starts   | sequences + 1 cumulative counts, from 0 to all new tokens    |
//
// Sequence s receives tokens starts[s] .. starts[s+1]. A tensor [batch, kv heads, tokens, channels]
// gives every sequence the same number.
#pragma once

#include <span>
#include <string>
#include <type_traits>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET::detail {

/// How a cache is written to a file: see save.hpp.
template <class Cache>
struct stored_cache;

/// Keys and values of new tokens of one type each, as rank 4: equal counts a sequence where
/// `starts` is empty, else batch 1 and packed.
template <class SK, class SV>
struct new_tokens {
  view<const SK, 4> k;
  view<const SV, 4> v;
  std::span<const index> starts;

  [[nodiscard]] index count(index b) const noexcept {
    if (starts.empty()) return k.extent(2);
    const auto s = static_cast<std::size_t>(b);
    return starts[s + 1] - starts[s];
  }
  /// Row `i` of sequence b's new keys of head h, as a rectangle of rows.
  [[nodiscard]] kernel::rectangle<const SK> key_rows(index b, index h, index i) const noexcept {
    return rows(k, b, h, i);
  }
  [[nodiscard]] kernel::rectangle<const SV> value_rows(index b, index h, index i) const noexcept {
    return rows(v, b, h, i);
  }

 private:
  template <class T>
  [[nodiscard]] kernel::rectangle<const T> rows(const view<const T, 4>& x, index b, index h,
                                                index i) const noexcept {
    const index row = starts.empty() ? i : starts[static_cast<std::size_t>(b)] + i;
    const index batch = starts.empty() ? b : 0;
    return {x.data() + batch * x.stride(0) + h * x.stride(1) + row * x.stride(2), x.stride(2),
            x.stride(3)};
  }
};

/// Extents of a cache that its input must have.
struct row_geometry {
  index batch = 0;
  index kv_heads = 0;
  index head_dim = 0;
  index value_dim = 0;
};

/// Throws shape_error unless k and v fit the cache; `batch` sequences are meant.
template <class K, class V>
[[nodiscard]] auto check_new_tokens(const K& k, const V& v, const row_geometry& g, index batch) {
  static_assert(attention_scalar<scalar_of<const K&>> && attention_scalar<scalar_of<const V&>>,
                "heed: keys and values are float, double, half or bfloat16");
  using SK = scalar_of<const K&>;
  using SV = scalar_of<const V&>;
  const view<const SK, 4> k4 = as_rank4(view<const SK, rank_of<const K&>>(as_view(k)));
  const view<const SV, 4> v4 = as_rank4(view<const SV, rank_of<const V&>>(as_view(v)));
  require_equal("k", "batch", k4.extent(0), "the cache", batch);
  require_equal("k", "heads", k4.extent(1), "the cache", g.kv_heads);
  require_equal("k", "head dim", k4.extent(3), "the cache", g.head_dim);
  require_equal("v", "batch", v4.extent(0), "the cache", batch);
  require_equal("v", "heads", v4.extent(1), "the cache", g.kv_heads);
  require_equal("v", "tokens", v4.extent(2), "k", k4.extent(2));
  require_equal("v", "value dim", v4.extent(3), "the cache", g.value_dim);
  return new_tokens<SK, SV>{k4, v4, {}};
}

/// The same for packed tokens.
template <class K, class V>
[[nodiscard]] auto check_new_tokens(const K& k, const V& v, std::span<const index> starts,
                                    const row_geometry& g) {
  auto tokens = check_new_tokens(k, v, g, 1);
  require_equal("starts", "entries", static_cast<index>(starts.size()), "the cache's batch + 1",
                g.batch + 1);
  if (starts.front() != 0 || starts.back() != tokens.k.extent(2)) {
    fail<shape_error>("starts runs from " + std::to_string(starts.front()) + " to " +
                      std::to_string(starts.back()) + ", k has tokens 0 to " +
                      std::to_string(tokens.k.extent(2)));
  }
  for (std::size_t i = 1; i < starts.size(); ++i) {
    if (starts[i] < starts[i - 1]) {
      fail<shape_error>("starts decreases from " + std::to_string(starts[i - 1]) + " to " +
                        std::to_string(starts[i]));
    }
  }
  tokens.starts = starts;
  return tokens;
}

/// Throws shape_error unless `sequence` is one of the cache's.
inline void require_sequence(index sequence, index batch) {
  if (sequence < 0 || sequence >= batch) {
    fail<shape_error>("sequence is " + std::to_string(sequence) + ", the cache has " +
                      std::to_string(batch));
  }
}

/// Throws shape_error unless `holder` ("the sequence", "the cache") of `length` tokens can be cut to
/// `kept`.
inline void require_truncation(index kept, index length, const char* holder = "the sequence") {
  if (kept < 0 || kept > length) {
    fail<shape_error>("truncate to " + std::to_string(kept) + " tokens, " + holder + " holds " +
                      std::to_string(length));
  }
}

/// For a cache with one length for all: write(tokens, count) where count >= 1 new tokens a batch entry
/// fit. False where they do not. Throws shape_error, and what `write` throws.
template <class Cache, class K, class V, class Write>
[[nodiscard]] bool append_in_step(const Cache& cache, const K& k, const V& v, const Write& write) {
  const auto tokens = check_new_tokens(
      k, v, {cache.batch(), cache.kv_heads(), cache.head_dim(), cache.value_dim()}, cache.batch());
  const index count = tokens.count(0);
  if (count > cache.capacity() - cache.length()) return false;
  if (count > 0) write(tokens, count);
  return true;
}

/// Throws the capacity_error of a cache whose sequences all have `length` tokens.
[[noreturn]] inline void fail_full(index length, index capacity, index tokens) {
  fail<capacity_error>("cache holds " + std::to_string(length) + " of " + std::to_string(capacity) +
                       " tokens, cannot append " + std::to_string(tokens));
}

}  // namespace heed::inline HEED_TARGET::detail
