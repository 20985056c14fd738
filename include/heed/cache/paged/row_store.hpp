// SPDX-License-Identifier: MIT
// The rows of a pool's pages: numbers as they are, or codes (code_store.hpp) in the same form.
//
// | tensor | axes                                  |
// |--------|---------------------------------------|
// | rows   | [pages, heads, page size, channels]   |
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <type_traits>

#include "heed/cache/quantised/code_store.hpp"
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

/// What a page's rows consist of.
template <class T>
concept page_scalar = attention_scalar<T> || is_code<T>::value;

template <class T>
class row_store {
 public:
  row_store(index pages, index heads, index page_size, index channels, std::optional<index> group)
      : rows_({pages, heads, page_size, channels}) {
    if (group) {
      fail<shape_error>("paged_cache has groups of " + std::to_string(*group) +
                        " channels, only codes have scales");
    }
  }
  [[nodiscard]] index heads() const noexcept { return rows_.extent(1); }
  [[nodiscard]] index channels() const noexcept { return rows_.extent(3); }
  [[nodiscard]] static index row_bytes(index channels, std::optional<index>) noexcept {
    return channels * static_cast<index>(sizeof(T));
  }
  [[nodiscard]] const T* row(index page, index head, index j) const noexcept {
    return rows_.data() + at(page, head, j);
  }
  /// `count` rows from row `first` on become those of `from`.
  template <class S>
  void write(index page, index head, index first, index count,
             kernel::rectangle<const S> from) noexcept {
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
 public:
  using code_store<Bits>::code_store;
};

/// What kernels read of a paged cache of codes (see coded_source); nothing of one of numbers.
template <class Cache, class T>
struct page_codes {};

template <class Cache, int Bits>
struct page_codes<Cache, quantised_code<Bits>> {
  static constexpr int code_bits = Bits;
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

 private:
  [[nodiscard]] const Cache& cache() const noexcept { return static_cast<const Cache&>(*this); }
  template <class Store>
  [[nodiscard]] code_run run(const Store& store, index b, index h, index j) const noexcept {
    return store.run(cache().page_of(b, j), h, j % cache().page_size(), cache().left(b, j));
  }
  template <class Store>
  void widen(const Store& store, index b, index h, range tokens, float* to) const noexcept {
    for (index j = tokens.begin; j < tokens.end;) {
      const index rows = (std::min)(cache().left(b, j), tokens.end - j);
      store.widen(cache().page_of(b, j), h, j % cache().page_size(), rows, to);
      to += rows * store.channels();
      j += rows;
    }
  }
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
