// SPDX-License-Identifier: MIT
// The rows of an offloaded cache to a stream and back. Optional, as offloaded.hpp is.
//
//   heed::save_cache(out, cache);                             // an offloaded cache
//   auto again = heed::load_cache<heed::offloaded_cache<float>>(in, "chat.kv");
//
// The file is that of a contiguous cache: tokens may be saved from memory and restored to a file, or
// saved from a file and restored to memory. Which pages the rows had is the new cache's to say.
#pragma once

#include "heed/cache/file/offloaded.hpp"

#if __has_include(<sys/mman.h>)
#include <algorithm>
#include <istream>
#include <string>
#include <vector>

#include "heed/cache/file/content.hpp"
#include "heed/cache/file/save.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class TK, class TV, offload Mode>
struct stored_cache<offloaded_cache<TK, TV, Mode>> {
  using cache = offloaded_cache<TK, TV, Mode>;
  using in_memory = stored_cache<contiguous_cache<TK, TV>>;
  static constexpr const char* kind = in_memory::kind;

  static void save(cache_writer& w, const cache& c) {
    stored_shape s;
    s.batch = c.batch();
    s.kv_heads = c.kv_heads();
    s.head_dim = c.head_dim();
    s.value_dim = c.value_dim();
    s.capacity = c.capacity();
    s.length = c.length();
    in_memory::each_extent(w, s);
    each_piece<TK>(c, s.length, s.head_dim, true, [&](index at, TK* rows, index n) {
      c.book_.file().read(at, rows, n * static_cast<index>(sizeof(TK)));
      w.numbers(rows, n);
    });
    each_piece<TV>(c, s.length, s.value_dim, false, [&](index at, TV* rows, index n) {
      c.book_.file().read(at, rows, n * static_cast<index>(sizeof(TV)));
      w.numbers(rows, n);
    });
  }
  static cache load(cache_reader& r, const std::string& path, index page_size,
                    index resident_pages) {
    stored_shape s;
    in_memory::each_extent(r, s);
    // Memory is a page of rows, and a few bytes a page and head.
    const index pages = ceil_div(s.capacity, (std::max)(index{1}, page_size));
    r.believe(saturating_sum(bytes_of(page_size, in_memory::row_bytes(s)),
                             bytes_of(pages, s.batch, s.kv_heads, 9)),
              in_memory::content(s));
    cache c =
        cache::create(path, {s.batch, s.kv_heads, s.capacity, s.head_dim, s.value_dim, page_size},
                      resident_pages);
    each_piece<TK>(c, s.length, s.head_dim, true, [&](index at, TK* rows, index n) {
      r.numbers(rows, n);
      c.book_.file().write(at, rows, n * static_cast<index>(sizeof(TK)));
    });
    each_piece<TV>(c, s.length, s.value_dim, false, [&](index at, TV* rows, index n) {
      r.numbers(rows, n);
      c.book_.file().write(at, rows, n * static_cast<index>(sizeof(TV)));
    });
    r.finish();
    c.book_.record(0, s.length);
    c.length_ = s.length;
    c.sync();
    return c;
  }

 private:
  /// use(place in the file, buffer, count of numbers) for each head's rows, page by page.
  template <class T, class Use>
  static void each_piece(const cache& c, index length, index channels, bool keys, const Use& use) {
    std::vector<T> rows(static_cast<std::size_t>(c.page_size() * channels));
    for (index head = 0; head < c.batch() * c.kv_heads(); ++head) {
      for (index j = 0; j < length; j += c.page_size()) {
        const index n = (std::min)(c.page_size(), length - j);
        const index at = keys ? c.layout().key_at(head, j) : c.layout().value_at(head, j);
        use(at, rows.data(), n * channels);
      }
    }
  }
};

}  // namespace detail

/// An offloaded cache of the tokens that save_cache wrote, in a new file, or a file begun anew, at
/// `path`; synced. A file that is refused later than by its extents leaves an empty cache there.
/// Throws file_error, shape_error, option_error, std::bad_alloc.
template <class Cache>
[[nodiscard]] Cache load_cache(std::istream& from, const std::string& path, index page_size = 256,
                               index resident_pages = 16, const load_options& options = {}) {
  using stored = detail::stored_cache<Cache>;
  detail::cache_reader r(from, stored::kind, options.most_bytes);
  return stored::load(r, path, page_size, resident_pages);
}

}  // namespace heed::inline HEED_TARGET
#endif
