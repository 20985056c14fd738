// SPDX-License-Identifier: MIT
// Of a tree of newest tokens in a cache, one path stays.
//
//   heed::decode_into(out, q, k, v, cache, {}, heed::tree_mask(parents));    // n tokens
//   heed::accept_path(cache, n, path);                 // rows of the tree, from its root downwards
//
// The last n tokens become those of `path`, in its order; what the cache holds before them stays.
// Rows are moved in place, at the cost of an append of as many tokens. Nothing is allocated. Caches
// whose rows are codes have no rows to move.
//
// Throws shape_error where the path does not ascend within 0 .. n - 1 or the cache holds fewer
// tokens, option_error where a page that a row moves to is shared; the cache is then as it was.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <type_traits>

#include "heed/cache/append_input.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

inline void check_path(index tokens, std::span<const index> path, index length) {
  if (tokens < 0 || tokens > length) {
    fail<shape_error>("a tree has " + std::to_string(tokens) + " tokens, the cache holds " +
                      std::to_string(length));
  }
  index before = -1;
  for (const index i : path) {
    if (i <= before || i >= tokens) {
      fail<shape_error>("a path goes from token " + std::to_string(before) + " to " +
                        std::to_string(i) + " of a tree of " + std::to_string(tokens));
    }
    before = i;
  }
}

/// Row base + path[i] of sequence b moves to base + i. Never to one that is still to be read: a
/// path ascends.
template <class Cache>
void move_path(Cache& cache, index b, index base, std::span<const index> path) noexcept {
  const auto move = [](const auto* from, const auto* to, index n) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(to)>>;
    // The cache is not const, nor are its rows.
    std::copy_n(from, n, const_cast<T*>(to));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
  };
  for (index h = 0; h < cache.kv_heads(); ++h) {
    for (index i = 0; i < static_cast<index>(path.size()); ++i) {
      const index from = base + path[static_cast<std::size_t>(i)];
      const index to = base + i;
      if (from == to) continue;
      const auto* const key = cache.keys(b, h, to).data;
      const auto* const value = cache.values(b, h, to).data;
      move(cache.keys(b, h, from).data, key, cache.head_dim());
      // A latent's values are its keys.
      if (static_cast<const void*>(key) != static_cast<const void*>(value)) {
        move(cache.values(b, h, from).data, value, cache.value_dim());
      }
    }
  }
}

template <class Cache>
inline constexpr bool has_movable_rows =
    key_value_source<Cache> && !widening_source<Cache> && !requires(const Cache& c) { c.seen(); };

}  // namespace detail

/// For a cache with one length: the same path in every batch entry.
template <class Cache>
  requires requires(Cache& c) { c.truncate(index{}); }
void accept_path(Cache& cache, index tokens, std::span<const index> path) {
  static_assert(detail::has_movable_rows<Cache>, "heed: this cache has no rows that can be moved");
  detail::check_path(tokens, path, cache.length());
  const index base = cache.length() - tokens;
  for (index b = 0; b < cache.batch(); ++b) detail::move_path(cache, b, base, path);
  cache.truncate(base + static_cast<index>(path.size()));
}

/// For one sequence of a cache of several.
template <class Cache>
  requires requires(Cache& c) { c.truncate(index{}, index{}); }
void accept_path(Cache& cache, index sequence, index tokens, std::span<const index> path) {
  static_assert(detail::has_movable_rows<Cache>, "heed: this cache has no rows that can be moved");
  detail::require_sequence(sequence, cache.batch());
  detail::check_path(tokens, path, cache.length(sequence));
  const index base = cache.length(sequence) - tokens;
  if constexpr (requires { cache.page_table(sequence); }) {
    for (index i = 0; i < static_cast<index>(path.size()); ++i) {
      if (path[static_cast<std::size_t>(i)] == i) continue;
      const auto page =
          cache.page_table(sequence)[static_cast<std::size_t>((base + i) / cache.page_size())];
      if (cache.references(page) > 1) {
        fail<option_error>("page " + std::to_string(page) + " of the tree has " +
                           std::to_string(cache.references(page)) +
                           " references: accept the path before the sequence is forked");
      }
    }
  }
  detail::move_path(cache, sequence, base, path);
  cache.truncate(sequence, base + static_cast<index>(path.size()));
}

}  // namespace heed::inline HEED_TARGET
