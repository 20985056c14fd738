// SPDX-License-Identifier: MIT
// What caches of codes and of pages write into their files; see content.hpp.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "heed/cache/file/content.hpp"
#include "heed/cache/paged/paged.hpp"
#include "heed/cache/quantised/kivi.hpp"
#include "heed/cache/quantised/quantised.hpp"
#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The first `rows` rows of every head of a part of a store (code_store.hpp, row_store.hpp).
template <class File, class Store>
void stored_part(File& f, Store& x, index part, index rows) {
  for (index h = 0; h < x.heads(); ++h) {
    std::remove_const_t<Store>::each_number(x, part, h, rows,
                                            [&](auto* data, index n) { f.numbers(data, n); });
  }
}

/// The first rows(b) of a store's newest rows of each sequence b (group_store.hpp).
template <class File, class Store, class Rows>
void stored_newest(File& f, Store& x, const Rows& rows) {
  for (index b = 0; b < x.sequences(); ++b) {
    for (index h = 0; h < x.heads(); ++h) f.numbers(x.newest(b, h), rows(b) * x.channels());
  }
}

template <class TK, class TV>
struct stored_cache<paged_cache<TK, TV>> : stored_rows<paged_cache<TK, TV>> {
  using cache = paged_cache<TK, TV>;
  using base = stored_rows<cache>;
  using keys = typename page_stores<TK>::keys;
  using values = typename page_stores<TV>::values;
  static constexpr bool whole_pages = in_whole_pages<TK>;
  static constexpr const char* kind =
      whole_pages              ? (is_code<TK>::bits == 8 ? "paged kivi int8" : "paged kivi int4")
      : is_code<TK>::bits == 8 ? "paged int8"
      : is_code<TK>::bits == 4 ? "paged int4"
                               : "paged";

  [[nodiscard]] static stored_shape shape_of(const cache& c) {
    stored_shape s = base::shape_of(c);
    s.capacity = c.pages();
    s.page_size = c.page_size();
    s.max_tokens = c.max_tokens();
    s.group = c.group_.value_or(0);
    return s;
  }
  template <class File, class Shape>
  static void each_extent(File& f, Shape& s) {
    base::each_extent(f, s);
    f.number("page size", s.page_size, 1, whole_pages ? longest_group : index{1} << 30);
    f.extent("tokens a sequence", s.max_tokens);
    if constexpr (whole_pages) {
      f.number("group", s.group, 0, 0);
    } else {
      f.extent("group", s.group);
    }
  }
  [[nodiscard]] static index memory(const stored_shape& s) noexcept {
    const index page =
        saturating_sum(keys::page_bytes(s.page_size, s.head_dim, s.channel_group()),
                       values::page_bytes(s.page_size, s.value_dim, s.channel_group()));
    const index pages =
        saturating_sum(bytes_of(s.capacity, s.kv_heads, page), saturating_product(s.capacity, 12));
    index sequence = 8 + 4 * ceil_div(s.max_tokens, s.page_size);
    if constexpr (whole_pages) {
      const index newest = keys::newest_bytes(s.page_size, s.head_dim) +
                           values::newest_bytes(s.page_size, s.value_dim);
      sequence = saturating_sum(sequence, saturating_product(s.kv_heads, newest));
    }
    return saturating_sum(pages, bytes_of(s.batch, sequence));
  }
  [[nodiscard]] static index content(const stored_shape& s) noexcept {
    return saturating_product(s.batch, 8);
  }
  [[nodiscard]] static cache make(const stored_shape& s) {
    return cache({s.batch, s.kv_heads, s.capacity, s.page_size, s.head_dim, s.value_dim,
                  s.max_tokens, s.channel_group()});
  }
  template <class File, class C>
  static void each_row(File& f, C& c, const stored_shape& s) {
    for (index b = 0; b < s.batch; ++b) {
      index length = c.length(b);
      f.number("length", length, 0, s.max_tokens);
      if constexpr (File::reads) c.pool_.set_length(b, length);
    }
    for (index b = 0; b < s.batch; ++b) {
      const index used = c.pages_of(c.length(b));
      if (used == 0) continue;
      if constexpr (File::reads) {
        f.numbers(&c.pool_.page(b, 0), used);
        for (index i = 0; i < used; ++i) {
          if (static_cast<index>(c.pool_.page(b, i)) < c.pages()) continue;
          fail<file_error>("the file has page " + std::to_string(c.pool_.page(b, i)) + " of " +
                           std::to_string(c.pages()));
        }
      } else {
        f.numbers(c.page_table(b).data(), used);
      }
    }
    if constexpr (File::reads) c.pool_.count_references(s.page_size);
    // Every page that a sequence has, once, in the order in which tables name them.
    std::vector<bool> seen(static_cast<std::size_t>(c.pages()));
    for (index b = 0; b < s.batch; ++b) {
      const index held = whole_pages ? c.length(b) / s.page_size : c.pages_of(c.length(b));
      for (const page_id p : c.page_table(b).first(static_cast<std::size_t>(held))) {
        if (!seen[p]) {
          stored_part(f, c.keys_, static_cast<index>(p), s.page_size);
          stored_part(f, c.values_, static_cast<index>(p), s.page_size);
        }
        seen[p] = true;
      }
    }
    if constexpr (whole_pages) {
      const auto newest = [&](index b) { return c.length(b) % s.page_size; };
      stored_newest(f, c.keys_, newest);
      stored_newest(f, c.values_, newest);
    }
  }
};

template <int Bits>
struct stored_cache<quantised_cache<Bits>> : stored_rows<quantised_cache<Bits>> {
  using cache = quantised_cache<Bits>;
  using base = stored_rows<cache>;
  static constexpr const char* kind = Bits == 8 ? "int8" : "int4";

  [[nodiscard]] static stored_shape shape_of(const cache& c) {
    stored_shape s = base::shape_of(c);
    s.group = c.group_.value_or(0);
    return s;
  }
  template <class File, class Shape>
  static void each_extent(File& f, Shape& s) {
    base::each_extent(f, s);
    f.extent("group", s.group);
  }
  [[nodiscard]] static index memory(const stored_shape& s) noexcept {
    return bytes_of(s.batch, s.kv_heads, s.capacity, row_bytes(s));
  }
  [[nodiscard]] static index content(const stored_shape& s) noexcept {
    return saturating_product(s.batch, s.kv_heads, s.length, row_bytes(s));
  }
  [[nodiscard]] static cache make(const stored_shape& s) {
    return cache(s.extents(), s.channel_group());
  }
  template <class File, class C>
  static void each_row(File& f, C& c, const stored_shape& s) {
    for (index b = 0; b < s.batch; ++b) {
      stored_part(f, c.keys_, b, s.length);
      stored_part(f, c.values_, b, s.length);
    }
    if constexpr (File::reads) c.length_ = s.length;
  }

 private:
  [[nodiscard]] static index row_bytes(const stored_shape& s) noexcept {
    return code_store<Bits>::row_bytes(s.head_dim, s.channel_group()) +
           code_store<Bits>::row_bytes(s.value_dim, s.channel_group());
  }
};

template <int Bits>
struct stored_cache<kivi_cache<Bits>> : stored_rows<kivi_cache<Bits>> {
  using cache = kivi_cache<Bits>;
  using base = stored_rows<cache>;
  static constexpr const char* kind = Bits == 8 ? "kivi int8" : "kivi int4";

  [[nodiscard]] static stored_shape shape_of(const cache& c) {
    stored_shape s = base::shape_of(c);
    s.group = c.group();
    return s;
  }
  template <class File, class Shape>
  static void each_extent(File& f, Shape& s) {
    base::each_extent(f, s);
    f.number("group", s.group, 1, longest_group);
  }
  [[nodiscard]] static index memory(const stored_shape& s) noexcept {
    const index groups = ceil_div(s.capacity, s.group);
    return bytes_of(s.batch, s.kv_heads,
                    saturating_sum(saturating_product(groups, group_bytes(s)), full_bytes(s)));
  }
  [[nodiscard]] static index content(const stored_shape& s) noexcept {
    return saturating_product(s.batch, s.kv_heads,
                              saturating_product(s.length / s.group, group_bytes(s)));
  }
  [[nodiscard]] static cache make(const stored_shape& s) {
    return cache({s.batch, s.kv_heads, s.capacity, s.head_dim, s.value_dim, s.group});
  }
  /// Codes and scales of whole groups, then the newest tokens in full.
  template <class File, class C>
  static void each_row(File& f, C& c, const stored_shape& s) {
    const index coded = s.length / s.group * s.group;
    const auto codes = [&](auto& x, index rows_of_one) {
      base::live_rows(f, x, [&](index) { return coded / rows_of_one; });
    };
    const auto newest = [&](index) { return s.length - coded; };
    std::remove_const_t<decltype(c.keys_)>::each_coded(c.keys_, codes);
    std::remove_const_t<decltype(c.values_)>::each_coded(c.values_, codes);
    stored_newest(f, c.keys_, newest);
    stored_newest(f, c.values_, newest);
    if constexpr (File::reads) c.length_ = s.length;
  }

 private:
  /// Of a whole group in codes, and of the newest in full.
  [[nodiscard]] static index group_bytes(const stored_shape& s) noexcept {
    return group_store<Bits, true>::group_bytes(s.group, s.head_dim) +
           group_store<Bits, false>::group_bytes(s.group, s.value_dim);
  }
  [[nodiscard]] static index full_bytes(const stored_shape& s) noexcept {
    return group_store<Bits, true>::newest_bytes(s.group, s.head_dim) +
           group_store<Bits, false>::newest_bytes(s.group, s.value_dim);
  }
};

}  // namespace heed::inline HEED_TARGET::detail
