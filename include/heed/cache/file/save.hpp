// SPDX-License-Identifier: MIT
// Caches to streams and back, exactly: what a restored cache gives has the bits of what the saved
// one gave.
//
//   std::ofstream out("prompt.cache", std::ios::binary);
//   heed::save_cache(out, cache);
//   std::ifstream in("prompt.cache", std::ios::binary);
//   auto again = heed::load_cache<heed::contiguous_cache<float>>(in);
//
// A file holds the geometry, the tokens and, of a rolling cache with an embedding, its rotary
// tables; of a paged cache the pages that sequences have, each once, so that what was shared still
// is. Pages that only holds kept (a prefix tree's) are not saved. The format is in file.hpp: a
// header with a version, and a checksum a page.
//
// Both throw file_error; loading also std::bad_alloc, and shape_error where the geometry in the
// file is none. A cache that is being saved is not changed. Both allocate a page of 64 KiB; loading,
// the cache. Cost: each byte of the tokens is read and written once.
#pragma once

#include <algorithm>
#include <istream>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "heed/cache/contiguous.hpp"
#include "heed/cache/file/file.hpp"
#include "heed/cache/latent.hpp"
#include "heed/cache/paged/paged.hpp"
#include "heed/cache/quantised/quantised.hpp"
#include "heed/cache/rolling.hpp"
#include "heed/cache/slots.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Both scalars, the other extents, and the value dim: what every file begins with.
template <class Cache>
void save_geometry(cache_writer& w, const Cache& c) {
  w.number(scalar_name<typename Cache::key_scalar>());
  w.number(scalar_name<typename Cache::value_scalar>());
  for (const index e : {c.batch(), c.kv_heads(), c.head_dim(), c.value_dim()}) w.number(e);
}
template <class Cache>
[[nodiscard]] cache_extents load_geometry(cache_reader& r) {
  r.require("key scalar", scalar_name<typename Cache::key_scalar>());
  r.require("value scalar", scalar_name<typename Cache::value_scalar>());
  cache_extents e;
  e.batch = r.extent("batch");
  e.kv_heads = r.extent("kv heads");
  e.head_dim = r.extent("head dim");
  e.value_dim = r.extent("value dim");
  return e;
}

/// The first `rows(b)` rows of every head of x [batch, heads, capacity, channels], by way of
/// `each(data, count of numbers)`.
template <class Tensor, class Rows, class Each>
void each_live_row(Tensor& x, const Rows& rows, const Each& each) {
  for (index b = 0; b < x.extent(0); ++b) {
    for (index h = 0; h < x.extent(1); ++h) {
      const index first = (b * x.extent(1) + h) * x.extent(2) * x.extent(3);
      each(x.data() + first, rows(b) * x.extent(3));
    }
  }
}

template <class TK, class TV>
struct stored_cache<contiguous_cache<TK, TV>> {
  using cache = contiguous_cache<TK, TV>;
  static constexpr const char* kind = "contiguous";

  static void save(cache_writer& w, const cache& c) {
    save_geometry(w, c);
    w.number(c.capacity());
    w.number(c.length_);
    const auto rows = [&](index) { return c.length_; };
    const auto put = [&](const auto* data, index n) { w.numbers(data, n); };
    each_live_row(c.keys_, rows, put);
    each_live_row(c.values_, rows, put);
  }
  static cache load(cache_reader& r) {
    cache_extents e = load_geometry<cache>(r);
    e.capacity = r.extent("capacity");
    const index length = r.number("length", 0, e.capacity);
    cache c(e);
    const auto rows = [&](index) { return length; };
    const auto get = [&](auto* data, index n) { r.numbers(data, n); };
    each_live_row(c.keys_, rows, get);
    each_live_row(c.values_, rows, get);
    c.length_ = length;
    return c;
  }
};

template <class TK, class TV>
struct stored_cache<slot_cache<TK, TV>> {
  using cache = slot_cache<TK, TV>;
  static constexpr const char* kind = "slots";

  static void save(cache_writer& w, const cache& c) {
    save_geometry(w, c);
    w.number(c.capacity());
    for (const index n : c.lengths()) w.number(n);
    const auto rows = [&](index b) { return c.length(b); };
    const auto put = [&](const auto* data, index n) { w.numbers(data, n); };
    each_live_row(c.keys_, rows, put);
    each_live_row(c.values_, rows, put);
  }
  static cache load(cache_reader& r) {
    cache_extents e = load_geometry<cache>(r);
    e.capacity = r.extent("capacity");
    cache c(e);
    for (index b = 0; b < e.batch; ++b) c.lengths_(b) = r.number("length", 0, e.capacity);
    const auto rows = [&](index b) { return c.length(b); };
    const auto get = [&](auto* data, index n) { r.numbers(data, n); };
    each_live_row(c.keys_, rows, get);
    each_live_row(c.values_, rows, get);
    return c;
  }
};

template <class TK, class TV>
struct stored_cache<paged_cache<TK, TV>> {
  using cache = paged_cache<TK, TV>;
  static constexpr const char* kind = "paged";

  static void save(cache_writer& w, const cache& c) {
    save_geometry(w, c);
    for (const index e : {c.pages(), c.page_size(), c.max_tokens()}) w.number(e);
    for (index s = 0; s < c.batch(); ++s) w.number(c.length(s));
    for (index s = 0; s < c.batch(); ++s) {
      const auto table = c.page_table(s);
      w.numbers(table.data(), static_cast<index>(table.size()));
    }
    const index keys = c.kv_heads() * c.page_size() * c.head_dim();
    const index values = c.kv_heads() * c.page_size() * c.value_dim();
    each_page(c, [&](index p) {
      w.numbers(c.keys_.data() + p * keys, keys);
      w.numbers(c.values_.data() + p * values, values);
    });
  }
  static cache load(cache_reader& r) {
    const cache_extents e = load_geometry<cache>(r);
    paged_extents p;
    p.sequences = e.batch;
    p.kv_heads = e.kv_heads;
    p.head_dim = e.head_dim;
    p.value_dim = e.value_dim;
    p.pages = r.extent("pages");
    p.page_size = r.number("page size", 1, index{1} << 30);
    p.max_tokens = r.extent("tokens a sequence");
    cache c(p);
    for (index s = 0; s < c.batch(); ++s) {
      c.pool_.set_length(s, r.number("length", 0, c.max_tokens()));
    }
    for (index s = 0; s < c.batch(); ++s) {
      const index used = c.pages_of(c.length(s));
      if (used > 0) r.numbers(&c.pool_.page(s, 0), used);
      for (index i = 0; i < used; ++i) {
        if (static_cast<index>(c.pool_.page(s, i)) >= c.pages()) {
          fail<file_error>("the file has page " + std::to_string(c.pool_.page(s, i)) + " of " +
                           std::to_string(c.pages()));
        }
      }
    }
    c.pool_.count_references(c.page_size());
    const index keys = c.kv_heads() * c.page_size() * c.head_dim();
    const index values = c.kv_heads() * c.page_size() * c.value_dim();
    each_page(c, [&](index page) {
      r.numbers(c.keys_.data() + page * keys, keys);
      r.numbers(c.values_.data() + page * values, values);
    });
    return c;
  }

 private:
  /// Every page that a sequence has, once, in the order in which tables name them.
  template <class Use>
  static void each_page(const cache& c, const Use& use) {
    std::vector<bool> seen(static_cast<std::size_t>(c.pages()));
    for (index s = 0; s < c.batch(); ++s) {
      for (const page_id p : c.page_table(s)) {
        if (!seen[p]) use(static_cast<index>(p));
        seen[p] = true;
      }
    }
  }
};

template <class TK, class TV>
struct stored_cache<rolling_cache<TK, TV>> {
  using cache = rolling_cache<TK, TV>;
  using A = accumulate_t<TK>;
  static constexpr const char* kind = "rolling";

  static void save(cache_writer& w, const cache& c) {
    save_geometry(w, c);
    w.number(c.sinks_);
    w.number(c.window_);
    w.number(c.seen_);
    w.number(c.tables_ ? c.tables_->cos.extent(1) : -1);
    if (c.tables_) {
      w.number(static_cast<index>(*c.layout_));
      w.numbers(c.tables_->cos.data(), c.tables_->cos.size());
      w.numbers(c.tables_->sin.data(), c.tables_->sin.size());
    }
    // All rows up to length() hold tokens, the ring's in its own order.
    const auto rows = [&](index) { return c.length_; };
    const auto put = [&](const auto* data, index n) { w.numbers(data, n); };
    each_live_row(c.keys_, rows, put);
    each_live_row(c.values_, rows, put);
  }
  static cache load(cache_reader& r) {
    const cache_extents g = load_geometry<cache>(r);
    rolling_extents e;
    e.batch = g.batch;
    e.kv_heads = g.kv_heads;
    e.head_dim = g.head_dim;
    e.value_dim = g.value_dim;
    e.sinks = r.extent("sinks");
    e.window = r.number("window", 1, index{1} << 30);
    cache c(e);
    c.seen_ = r.number("tokens seen", 0, (std::numeric_limits<index>::max)());
    c.length_ = (std::min)(c.seen_, c.capacity());
    const index pairs = r.number("pairs of the embedding", -1, e.head_dim / 2);
    if (pairs >= 0) {
      c.layout_ = static_cast<rotary_layout>(r.number("rotary layout", 0, 1));
      c.tables_ = rotary_tables<A>{tensor<A, 2>({c.capacity(), pairs}),
                                   tensor<A, 2>({c.capacity(), pairs})};
      c.rotated_ = tensor<TK, 4>(c.keys_.extents());
      r.numbers(c.tables_->cos.data(), c.tables_->cos.size());
      r.numbers(c.tables_->sin.data(), c.tables_->sin.size());
    }
    const auto rows = [&](index) { return c.length_; };
    const auto get = [&](auto* data, index n) { r.numbers(data, n); };
    each_live_row(c.keys_, rows, get);
    each_live_row(c.values_, rows, get);
    if (c.tables_) c.rotate(0);
    return c;
  }
};

template <int Bits>
struct stored_cache<quantised_cache<Bits>> {
  using cache = quantised_cache<Bits>;
  static constexpr const char* kind = Bits == 8 ? "int8" : "int4";

  static void save(cache_writer& w, const cache& c) {
    save_geometry(w, c);
    w.number(c.capacity());
    w.number(c.length_);
    for (const auto* x : {&c.keys_, &c.values_}) {
      each_head(*x, c.length_, [&](const auto* data, index n) { w.numbers(data, n); });
    }
  }
  static cache load(cache_reader& r) {
    cache_extents e = load_geometry<cache>(r);
    e.capacity = r.extent("capacity");
    const index length = r.number("length", 0, e.capacity);
    cache c(e);
    for (auto* x : {&c.keys_, &c.values_}) {
      each_head(*x, length, [&](auto* data, index n) { r.numbers(data, n); });
    }
    c.length_ = length;
    return c;
  }

 private:
  template <class Rows, class Each>
  static void each_head(Rows& x, index length, const Each& each) {
    for (index head = 0; head < x.scales.extent(0) * x.scales.extent(1); ++head) {
      const index row = head * x.scales.extent(2);
      each(x.codes.data() + row * x.codes.extent(3), length * x.codes.extent(3));
      each(x.scales.data() + row, length);
      each(x.zeros.data() + row, length);
    }
  }
};

template <class T>
struct stored_cache<latent_cache<T>> {
  using cache = latent_cache<T>;
  static constexpr const char* kind = "latent";

  static void save(cache_writer& w, const cache& c) {
    save_geometry(w, c);
    w.number(c.capacity());
    w.number(c.length_);
    each_live_row(
        c.rows_, [&](index) { return c.length_; },
        [&](const auto* data, index n) { w.numbers(data, n); });
  }
  static cache load(cache_reader& r) {
    const cache_extents e = load_geometry<cache>(r);
    latent_extents l;
    l.batch = e.batch;
    l.latent_dim = *e.value_dim;
    if (e.head_dim < l.latent_dim) {
      fail<file_error>("the file has head dim " + std::to_string(e.head_dim) + ", latent dim " +
                       std::to_string(l.latent_dim));
    }
    l.rope_dim = e.head_dim - l.latent_dim;
    l.capacity = r.extent("capacity");
    const index length = r.number("length", 0, l.capacity);
    cache c(l);
    each_live_row(
        c.rows_, [&](index) { return length; }, [&](auto* data, index n) { r.numbers(data, n); });
    c.length_ = length;
    return c;
  }
};

}  // namespace detail

/// Writes the cache. The stream should be binary.
template <class Cache>
void save_cache(std::ostream& to, const Cache& cache) {
  using stored = detail::stored_cache<Cache>;
  detail::cache_writer w(to, stored::kind);
  stored::save(w, cache);
  w.finish();
}

/// The cache that save_cache wrote; it reads the stream to the end of the cache and no further.
template <class Cache>
[[nodiscard]] Cache load_cache(std::istream& from) {
  using stored = detail::stored_cache<Cache>;
  detail::cache_reader r(from, stored::kind);
  Cache cache = stored::load(r);
  r.finish();
  return cache;
}

}  // namespace heed::inline HEED_TARGET
