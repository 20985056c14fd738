// SPDX-License-Identifier: MIT
// The rows of a pool's pages: numbers as they are, codes with scales a row (code_store.hpp), or a
// page's keys with scales a channel (group_store.hpp), all in the same form.
//
// | tensor | axes                                  |
// |--------|---------------------------------------|
// | rows   | [pages, heads, page size, channels]   |
//
// The last kind keeps the rows of an incomplete page with the sequence, not in the page.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>

#include "heed/cache/paged/paged_extents.hpp"
#include "heed/cache/quantised/code_store.hpp"
#include "heed/cache/quantised/group_store.hpp"
#include "heed/core/checked.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

template <class T>
struct is_code : std::false_type {
  static constexpr int bits = 0;
};
template <int Bits>
struct is_code<quantised_code<Bits>> : std::true_type {
  static constexpr int bits = Bits;
};
template <int Bits>
struct is_code<kivi_code<Bits>> : is_code<quantised_code<Bits>> {};

/// Whether pages hold rows only once they are complete; until then the sequences hold them.
template <class T>
inline constexpr bool in_whole_pages = false;
template <int Bits>
inline constexpr bool in_whole_pages<kivi_code<Bits>> = true;

/// What a page's rows consist of.
template <class T>
concept page_scalar = attention_scalar<T> || is_code<T>::value;

template <class T>
class row_store {
 public:
  row_store(const paged_extents& e, index channels)
      : rows_({e.pages, e.kv_heads, e.page_size, channels}) {
    if (e.group) {
      fail<shape_error>("paged_cache has groups of " + std::to_string(*e.group) +
                        " channels, only codes have scales");
    }
  }
  [[nodiscard]] index heads() const noexcept { return rows_.extent(1); }
  [[nodiscard]] index channels() const noexcept { return rows_.extent(3); }
  /// Bytes of a head's rows of a page.
  [[nodiscard]] static index page_bytes(index rows, index channels, std::optional<index>) noexcept {
    return saturating_product(rows, channels, static_cast<index>(sizeof(T)));
  }
  [[nodiscard]] const T* row(index page, index head, index j) const noexcept {
    return rows_.data() + at(page, head, j);
  }
  /// `count` rows of a sequence from row `first` of a page on become those of `from`.
  template <class S>
  void write(index page, index head, index first, index count, kernel::rectangle<const S> from,
             index /*sequence*/) noexcept {
    kernel::copy_tile<S, T>(from, {rows_.data() + at(page, head, first), channels(), 1}, count,
                            channels());
  }
  /// The first `count` rows of page `from` in place of those of page `to`.
  void copy_rows(index from, index to, index count) noexcept {
    for (index h = 0; h < heads(); ++h) {
      std::copy_n(rows_.data() + at(from, h, 0), count * channels(), rows_.data() + at(to, h, 0));
    }
  }
  /// use(data, count of numbers) for all that the first `count` rows of a head consist of.
  template <class Store, class Use>
  static void each_number(Store& store, index page, index head, index count, const Use& use) {
    use(store.rows_.data() + store.at(page, head, 0), count * store.channels());
  }

 private:
  [[nodiscard]] index at(index page, index head, index j) const noexcept {
    return ((page * heads() + head) * rows_.extent(2) + j) * channels();
  }
  tensor<T, 4> rows_;
};

template <int Bits>
class row_store<quantised_code<Bits>> : public code_store<Bits> {
  using base = code_store<Bits>;

 public:
  row_store(const paged_extents& e, index channels)
      : base(e.pages, e.kv_heads, e.page_size, channels, e.group) {}
  [[nodiscard]] static index page_bytes(index rows, index channels,
                                        std::optional<index> group) noexcept {
    return saturating_product(rows, base::row_bytes(channels, group));
  }
  template <class S>
  void write(index page, index head, index first, index count, kernel::rectangle<const S> from,
             index /*sequence*/) noexcept {
    base::write(page, head, first, count, from);
  }
};

/// A page is a group of tokens.
template <int Bits, bool ByChannel>
class whole_page_store : public group_store<Bits, ByChannel> {
  using base = group_store<Bits, ByChannel>;

 public:
  whole_page_store(const paged_extents& e, index channels)
      : base(e.pages, e.kv_heads, checked_token_group(e.page_size, "paged_cache has pages"),
             channels, e.page_size, e.sequences) {
    if (e.group) {
      fail<shape_error>("paged_cache has groups of " + std::to_string(*e.group) +
                        " channels, the scales of keys are a channel's own");
    }
  }
  [[nodiscard]] static index page_bytes(index rows, index channels, std::optional<index>) noexcept {
    return base::group_bytes(rows, channels);
  }
  /// An incomplete page has no rows.
  static void copy_rows(index, index, index) noexcept {}
};

/// What a page's keys, and its values, of such scalars are stored in.
template <class T>
struct page_stores {
  using keys = row_store<T>;
  using values = row_store<T>;
};
template <int Bits>
struct page_stores<kivi_code<Bits>> {
  using keys = whole_page_store<Bits, true>;
  using values = whole_page_store<Bits, false>;
};

/// What kernels read of a paged cache of numbers (see key_value_source).
template <class Cache, class TK, class TV, bool Codes = is_code<TK>::value>
struct page_rows {
  [[nodiscard]] row_run<TK> keys(index b, index h, index j) const noexcept {
    return run(cache().keys_, b, h, j);
  }
  [[nodiscard]] row_run<TV> values(index b, index h, index j) const noexcept {
    return run(cache().values_, b, h, j);
  }

 protected:
  static void keep_newest(index, index, index) noexcept {}

 private:
  [[nodiscard]] const Cache& cache() const noexcept { return static_cast<const Cache&>(*this); }
  template <class T>
  [[nodiscard]] row_run<T> run(const row_store<T>& store, index b, index h,
                               index j) const noexcept {
    return {store.row(cache().page_of(b, j), h, j % cache().page_size()), store.channels(),
            cache().left(b, j)};
  }
};

/// What kernels read of one of codes (see coded_source).
template <class Cache, class T>
struct page_rows<Cache, T, T, true> {
  /// No one reads codes as rows: kernels widen them.
  [[nodiscard]] row_run<T> keys(index b, index, index j) const noexcept {
    return {nullptr, 0, cache().length(b) - j};
  }
  [[nodiscard]] row_run<T> values(index b, index, index j) const noexcept {
    return {nullptr, 0, cache().length(b) - j};
  }
  // And what few queries read.
  static constexpr int code_bits = is_code<T>::bits;
  static constexpr bool codes_in_pages = true;
  [[nodiscard]] code_run key_codes(index b, index h, index j) const noexcept {
    return run(cache().keys_, b, h, j);
  }
  [[nodiscard]] code_run value_codes(index b, index h, index j) const noexcept {
    return run(cache().values_, b, h, j);
  }
  void widen_keys(index b, index h, range tokens, float* to) const noexcept {
    widen(cache().keys_, b, h, tokens, to);
  }
  void widen_values(index b, index h, range tokens, float* to) const noexcept {
    widen(cache().values_, b, h, tokens, to);
  }

 protected:
  /// Sequence `to` is to have the first `tokens` tokens of `from`: those that complete no page
  /// become its newest rows.
  void keep_newest(index from, index to, index tokens) noexcept {
    if constexpr (in_whole_pages<T>) {
      auto& c = static_cast<Cache&>(*this);
      const index first = tokens - tokens % c.page_size();
      if (from == to && first >= in_pages(from)) return;
      for (index h = 0; h < c.kv_heads(); ++h) {
        widen_keys(from, h, {first, tokens}, c.keys_.newest(to, h));
        widen_values(from, h, {first, tokens}, c.values_.newest(to, h));
      }
    }
  }

 private:
  [[nodiscard]] const Cache& cache() const noexcept { return static_cast<const Cache&>(*this); }
  /// Tokens of a sequence whose rows are in pages.
  [[nodiscard]] index in_pages(index b) const noexcept {
    const index n = cache().length(b);
    return in_whole_pages<T> ? n - n % cache().page_size() : n;
  }
  template <class Store>
  [[nodiscard]] code_run run(const Store& store, index b, index h, index j) const noexcept {
    const index at = j % cache().page_size();
    if constexpr (in_whole_pages<T>) {
      if (j >= in_pages(b)) return store.newest_run(b, h, at, cache().left(b, j));
    }
    return store.run(cache().page_of(b, j), h, at, cache().left(b, j));
  }
  template <class Store>
  void widen(const Store& store, index b, index h, range tokens, float* to) const noexcept {
    for (index j = tokens.begin; j < tokens.end;) {
      const index rows = (std::min)(cache().left(b, j), tokens.end - j);
      const index at = j % cache().page_size();
      if (j < in_pages(b)) {
        store.widen(cache().page_of(b, j), h, at, rows, to);
      } else if constexpr (in_whole_pages<T>) {
        store.copy_newest(b, h, at, rows, to);
      }
      to += rows * store.channels();
      j += rows;
    }
  }
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
