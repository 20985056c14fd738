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
// header with a version, and a checksum a page; content.hpp has what each cache writes.
//
// A file's extents are not trusted: before anything is allocated they are compared with the size of
// the file, which must hold their tokens, and with what memory they would take. A capacity may be
// larger than the tokens in it, so that four times the file's size and `most_bytes` more are
// allowed. A stream that cannot tell its size (a pipe) has `most_bytes` alone.
//
// Both throw file_error; loading also std::bad_alloc, and shape_error where the geometry in the
// file is none. A cache that is being saved is not changed. Both allocate a page of 64 KiB; loading,
// the cache. Cost: each byte of the tokens is read and written once.
#pragma once

#include <istream>
#include <ostream>

#include "heed/cache/file/content.hpp"
#include "heed/cache/file/content_stores.hpp"
#include "heed/cache/file/file.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// What a file may ask of memory.
struct load_options {
  index most_bytes = index{1} << 30;  ///< of memory beyond four times the file's size
};

/// Writes the cache. The stream should be binary.
template <class Cache>
void save_cache(std::ostream& to, const Cache& cache) {
  detail::cache_writer w(to, detail::stored_cache<Cache>::kind);
  detail::stored_cache<Cache>::save(w, cache);
  w.finish();
}

/// The cache that save_cache wrote; it reads the stream to the end of the cache and no further.
template <class Cache>
[[nodiscard]] Cache load_cache(std::istream& from, const load_options& options = {}) {
  detail::cache_reader r(from, detail::stored_cache<Cache>::kind, options.most_bytes);
  Cache cache = detail::stored_cache<Cache>::load(r);
  r.finish();
  return cache;
}

}  // namespace heed::inline HEED_TARGET
