// SPDX-License-Identifier: MIT
// What each cache writes into its file. The same functions save and load: a cache_writer takes the
// numbers, a cache_reader gives them.
//
// | member                        | what                                                        |
// |-------------------------------|-------------------------------------------------------------|
// | kind                          | the cache's name in the header                              |
// | shape_of(cache), make(shape)  | its extents, and a cache of them                            |
// | each_extent(file, shape)      | the extents to or from a file                               |
// | memory(shape), content(shape) | bytes that it takes, and at least how many follow of it     |
// | each_row(file, cache, shape)  | the tokens                                                  |
//
// save(writer, cache) and load(reader) are made of these. Pages and codes: content_stores.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>

#include "heed/cache/contiguous.hpp"
#include "heed/cache/file/file.hpp"
#include "heed/cache/latent.hpp"
#include "heed/cache/rolling.hpp"
#include "heed/cache/slots.hpp"
#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Extents of any cache; 0 where it has no such.
struct stored_shape {
  index batch = 0, kv_heads = 0, head_dim = 0, value_dim = 0, capacity = 0, length = 0;
  index group = 0;                       // channels or tokens that share a scale
  index page_size = 0, max_tokens = 0;   // of pages
  index sinks = 0, seen = 0, pairs = 0;  // of a ring; pairs of its embedding, and 1
  index layout = 0;                      // of the embedding

  [[nodiscard]] cache_extents extents() const noexcept {
    return {batch, kv_heads, capacity, head_dim, value_dim};
  }
  [[nodiscard]] std::optional<index> channel_group() const noexcept {
    return group > 0 ? std::optional<index>(group) : std::nullopt;
  }
};

/// A product of extents as memory: none of them counts as less than 1, so that no loop over one goes
/// on for ever because another is 0.
template <class... Index>
[[nodiscard]] index bytes_of(Index... extents) noexcept {
  return saturating_product(index{1}, (std::max)(index{1}, static_cast<index>(extents))...);
}

/// What all have in common.
template <class Cache>
struct stored_rows {
  using TK = typename Cache::key_scalar;
  using TV = typename Cache::value_scalar;

  static void save(cache_writer& w, const Cache& cache) {
    const stored_shape shape = stored_cache<Cache>::shape_of(cache);
    stored_cache<Cache>::each_extent(w, shape);
    stored_cache<Cache>::each_row(w, cache, shape);
  }
  [[nodiscard]] static Cache load(cache_reader& r) {
    stored_shape shape;
    stored_cache<Cache>::each_extent(r, shape);
    r.believe(stored_cache<Cache>::memory(shape), stored_cache<Cache>::content(shape));
    Cache cache = stored_cache<Cache>::make(shape);
    stored_cache<Cache>::each_row(r, cache, shape);
    return cache;
  }

  [[nodiscard]] static stored_shape shape_of(const Cache& c) {
    stored_shape s;
    s.batch = c.batch();
    s.kv_heads = c.kv_heads();
    s.head_dim = c.head_dim();
    s.value_dim = c.value_dim();
    if constexpr (requires { c.capacity(); }) s.capacity = c.capacity();
    if constexpr (requires { c.length(); }) s.length = c.length();
    return s;
  }
  template <class File, class Shape>
  static void each_extent(File& f, Shape& s) {
    f.require("key scalar", scalar_name<TK>());
    f.require("value scalar", scalar_name<TV>());
    f.extent("batch", s.batch);
    f.extent("kv heads", s.kv_heads);
    f.extent("head dim", s.head_dim);
    f.extent("value dim", s.value_dim);
    constexpr bool pages = requires(const Cache& c) { c.pages(); };
    f.extent(pages ? "pages" : "capacity", s.capacity);
    f.number("length", s.length, 0, s.capacity);
  }
  [[nodiscard]] static index row_bytes(const stored_shape& s) noexcept {
    return saturating_sum(saturating_product(s.head_dim, static_cast<index>(sizeof(TK))),
                          saturating_product(s.value_dim, static_cast<index>(sizeof(TV))));
  }
  [[nodiscard]] static index memory(const stored_shape& s) noexcept {
    return bytes_of(s.batch, s.kv_heads, s.capacity, row_bytes(s));
  }
  [[nodiscard]] static index content(const stored_shape& s) noexcept {
    return saturating_product(s.batch, s.kv_heads, s.length, row_bytes(s));
  }
  [[nodiscard]] static Cache make(const stored_shape& s) { return Cache(s.extents()); }
  /// The first rows(b) rows of every head of x [batch, heads, capacity] or [..., channels].
  template <class File, class Tensor, class Rows>
  static void live_rows(File& f, Tensor& x, const Rows& rows) {
    index channels = 1;
    if constexpr (std::tuple_size_v<std::remove_cvref_t<decltype(x.extents())>> == 4) {
      channels = x.extent(3);
    }
    for (index b = 0; b < x.extent(0); ++b) {
      for (index h = 0; h < x.extent(1); ++h) {
        const index first = (b * x.extent(1) + h) * x.extent(2) * channels;
        f.numbers(x.data() + first, rows(b) * channels);
      }
    }
  }
};

template <class TK, class TV>
struct stored_cache<contiguous_cache<TK, TV>> : stored_rows<contiguous_cache<TK, TV>> {
  static constexpr const char* kind = "contiguous";
  template <class File, class C>
  static void each_row(File& f, C& c, const stored_shape& s) {
    const auto rows = [&](index) { return s.length; };
    stored_cache::live_rows(f, c.keys_, rows);
    stored_cache::live_rows(f, c.values_, rows);
    if constexpr (File::reads) c.length_ = s.length;
  }
};

template <class TK, class TV>
struct stored_cache<slot_cache<TK, TV>> : stored_rows<slot_cache<TK, TV>> {
  using base = stored_rows<slot_cache<TK, TV>>;
  static constexpr const char* kind = "slots";
  [[nodiscard]] static index memory(const stored_shape& s) noexcept {
    return saturating_sum(base::memory(s), bytes_of(s.batch, 8));
  }
  [[nodiscard]] static index content(const stored_shape& s) noexcept {
    return saturating_product(s.batch, 8);
  }
  template <class File, class C>
  static void each_row(File& f, C& c, const stored_shape& s) {
    for (index b = 0; b < s.batch; ++b) f.number("length", c.lengths_(b), 0, s.capacity);
    const auto rows = [&](index b) { return c.length(b); };
    base::live_rows(f, c.keys_, rows);
    base::live_rows(f, c.values_, rows);
  }
};

template <class TK, class TV>
struct stored_cache<rolling_cache<TK, TV>> : stored_rows<rolling_cache<TK, TV>> {
  using cache = rolling_cache<TK, TV>;
  using base = stored_rows<cache>;
  using A = accumulate_t<TK>;
  static constexpr const char* kind = "rolling";

  [[nodiscard]] static stored_shape shape_of(const cache& c) {
    stored_shape s = base::shape_of(c);
    s.sinks = c.sinks_;
    s.seen = c.seen_;
    s.pairs = c.tables_ ? c.tables_->cos.extent(1) + 1 : 0;
    s.layout = c.layout_ ? static_cast<index>(*c.layout_) : 0;
    return s;
  }
  template <class File, class Shape>
  static void each_extent(File& f, Shape& s) {
    base::each_extent(f, s);
    f.number("sinks", s.sinks, 0, s.capacity - 1);
    f.number("tokens seen", s.seen, s.length, largest_index / 2);
    f.number("pairs of the embedding and 1", s.pairs, 0, s.head_dim / 2 + 1);
    f.number("rotary layout", s.layout, 0, 1);
  }
  [[nodiscard]] static index memory(const stored_shape& s) noexcept {
    const index keys = saturating_product(s.head_dim, static_cast<index>(sizeof(TK)));
    return saturating_sum(
        bytes_of(s.batch, s.kv_heads, s.capacity, saturating_sum(base::row_bytes(s), keys)),
        saturating_product(2 * static_cast<index>(sizeof(A)), s.capacity, s.pairs));
  }
  [[nodiscard]] static cache make(const stored_shape& s) {
    return cache({s.batch, s.kv_heads, s.sinks, s.capacity - s.sinks, s.head_dim, s.value_dim});
  }
  template <class File, class C>
  static void each_row(File& f, C& c, const stored_shape& s) {
    if constexpr (File::reads) {
      if (s.length != (std::min)(s.seen, s.capacity)) {
        fail<file_error>("the file has length " + std::to_string(s.length) + " of " +
                         std::to_string(s.seen) + " tokens seen");
      }
      c.seen_ = s.seen;
      c.length_ = s.length;
      if (s.pairs > 0) {
        c.layout_ = static_cast<rotary_layout>(s.layout);
        c.tables_ = rotary_tables<A>{tensor<A, 2>({s.capacity, s.pairs - 1}),
                                     tensor<A, 2>({s.capacity, s.pairs - 1})};
        c.rotated_ = tensor<TK, 4>(c.keys_.extents());
      }
    }
    if (c.tables_) {
      f.numbers(c.tables_->cos.data(), c.tables_->cos.size());
      f.numbers(c.tables_->sin.data(), c.tables_->sin.size());
    }
    // All rows up to length() hold tokens, the ring's in its own order.
    const auto rows = [&](index) { return s.length; };
    base::live_rows(f, c.keys_, rows);
    base::live_rows(f, c.values_, rows);
    if constexpr (File::reads) {
      if (c.tables_) c.rotate(0);
    }
  }
};

template <class T>
struct stored_cache<latent_cache<T>> : stored_rows<latent_cache<T>> {
  using base = stored_rows<latent_cache<T>>;
  static constexpr const char* kind = "latent";

  template <class File, class Shape>
  static void each_extent(File& f, Shape& s) {
    base::each_extent(f, s);
    f.number("heads of latents", s.kv_heads, 1, 1);
    f.number("latent dim", s.value_dim, 0, s.head_dim);
  }
  [[nodiscard]] static index content(const stored_shape& s) noexcept {
    return saturating_product(s.batch, s.length, s.head_dim, static_cast<index>(sizeof(T)));
  }
  [[nodiscard]] static latent_cache<T> make(const stored_shape& s) {
    return latent_cache<T>({s.batch, s.capacity, s.value_dim, s.head_dim - s.value_dim});
  }
  template <class File, class C>
  static void each_row(File& f, C& c, const stored_shape& s) {
    base::live_rows(f, c.rows_, [&](index) { return s.length; });
    if constexpr (File::reads) c.length_ = s.length;
  }
};

}  // namespace heed::inline HEED_TARGET::detail
