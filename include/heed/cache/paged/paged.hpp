// SPDX-License-Identifier: MIT
// A KV cache in pages: sequences of any length out of one pool, sharing pages where their tokens
// are the same.
//
// | tensor | axes                                                        |
// |--------|-------------------------------------------------------------|
// | keys   | [pages, kv heads, page size, head dim], scalar TK           |
// | values | [pages, kv heads, page size, value dim], scalar TV          |
//
// TK and TV are types of numbers, or both quantised_code<8> or <4>: rows of codes with a scale and a
// zero point each, or each `group` of channels, with the errors of a quantised_cache. Or both are
// kivi_code<8> or <4>: the rows, bit for bit, of a kivi_cache whose groups are the pages, of at most
// 256 tokens. A sequence keeps the rows of its incomplete last page in full, forks copy those and a
// truncation widens them. Few queries read codes in registers, to rounding of the widened rows;
// many have a block widened once.
//
// Token j of a sequence is row j % page size of page table[j / page size]. Sequences are numbered
// 0 .. sequences - 1 and empty at first. A fork shares all pages; the first write to a shared page
// copies the rows that are kept (copy on write). Memory: page_bytes() + 12 bytes a page, 8 bytes a
// sequence and 4 per page of its table, and of kivi_code 4 page size (head dim + value dim) bytes
// per sequence and KV head; all of it allocated at construction, nothing later. Appended numbers are
// rounded to nearest even to the cache's scalars. Every operation either succeeds or changes
// nothing. Reading from many threads is safe while no one writes. Decode reads pages in place;
// numbers have the bits of a contiguous cache of the same tokens. Kwon et al. 2023, arXiv 2309.06180.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>
#include <type_traits>

#include "heed/cache/append_input.hpp"
#include "heed/cache/paged/page_pool.hpp"
#include "heed/cache/paged/paged_extents.hpp"
#include "heed/cache/paged/row_store.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"

namespace heed::inline HEED_TARGET {

template <detail::page_scalar TK, detail::page_scalar TV = TK>
class paged_cache : public detail::page_rows<paged_cache<TK, TV>, TK, TV> {
  static_assert(!(detail::is_code<TK>::value || detail::is_code<TV>::value) ||
                    std::is_same_v<TK, TV>,
                "heed: keys and values are both numbers, or codes of as many bits");

 public:
  using key_scalar = TK;
  using value_scalar = TV;

  /// Throws shape_error on a negative extent, a page size below 1 or, of kivi_code, above 256,
  /// without a head_dim and where no memory could hold so many pages; std::bad_alloc.
  explicit paged_cache(const paged_extents& e)
      : page_size_(detail::check_paged_extents<TK, TV>(e).page_size),
        pool_(e.sequences, e.pages, e.max_tokens ? ceil_div(*e.max_tokens, page_size_) : e.pages),
        max_tokens_(e.max_tokens.value_or(e.pages * page_size_)),
        keys_(e, e.head_dim),
        values_(e, e.value_dim.value_or(e.head_dim)),
        group_(e.group) {}

  /// Appends the same number of tokens to every sequence: k [sequences, kv heads, tokens, head
  /// dim], v likewise with value dim. Throws capacity_error where there are too few pages,
  /// shape_error.
  template <tensor_like K, tensor_like V>
  void append(const K& k, const V& v) {
    if (!try_append(k, v)) full(as_rank4(as_view(k)).extent(2) * batch());
  }
  /// The same, but false where the tokens do not fit.
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(const K& k, const V& v) {
    const auto tokens = detail::check_new_tokens(k, v, geometry(), batch());
    return write(tokens, {0, batch()}, 0);
  }

  /// Appends to one sequence: k [kv heads, tokens, head dim], v likewise with value dim.
  template <tensor_like K, tensor_like V>
  void append(index sequence, const K& k, const V& v) {
    if (!try_append(sequence, k, v)) full(as_rank4(as_view(k)).extent(2));
  }
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(index sequence, const K& k, const V& v) {
    detail::require_sequence(sequence, batch());
    const auto tokens = detail::check_new_tokens(k, v, geometry(), 1);
    return write(tokens, {sequence, sequence + 1}, sequence);
  }

  /// Appends tokens starts[s] .. starts[s+1] to sequence s: k [kv heads, all tokens, head dim], v
  /// likewise, starts of sequences + 1 entries.
  template <tensor_like K, tensor_like V>
  void append(const K& k, const V& v, std::span<const index> starts) {
    if (!try_append(k, v, starts)) full(as_rank4(as_view(k)).extent(2));
  }
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(const K& k, const V& v, std::span<const index> starts) {
    const auto tokens = detail::check_new_tokens(k, v, starts, geometry());
    return write(tokens, {0, batch()}, 0);
  }

  /// `to`, which must be empty, shares the first `tokens` tokens of `from`, or all of them. Copies
  /// nothing but, of kivi_code, the rows of an incomplete page. Throws shape_error.
  void fork(index from, index to) { fork(from, to, checked_length(from)); }
  void fork(index from, index to, index tokens) {
    detail::require_truncation(tokens, checked_length(from));
    require_empty(to);
    const index used = pages_of(tokens);
    for (index i = 0; i < used; ++i) {
      const page_id p = pool_.page(from, i);
      pool_.retain(p);
      pool_.page(to, i) = p;
    }
    this->keep_newest(from, to, tokens);
    pool_.set_length(to, tokens);
  }

  /// `to`, which must end with a page or be empty, goes on with complete pages that are in use.
  /// Throws shape_error, capacity_error where a sequence may not have so many.
  void adopt(index to, std::span<const page_id> pages) {
    const index length = checked_length(to);
    const auto count = static_cast<index>(pages.size());
    if (length % page_size_ != 0) {
      fail<shape_error>("sequence " + std::to_string(to) + " has " + std::to_string(length) +
                        " tokens, whole pages hold " + std::to_string(page_size_));
    }
    for (const page_id p : pages) require_used(p);
    if (count * page_size_ > max_tokens_ - length) {
      fail<capacity_error>("sequence " + std::to_string(to) + " holds " + std::to_string(length) +
                           " of " + std::to_string(max_tokens_) + " tokens, cannot adopt " +
                           std::to_string(count * page_size_));
    }
    for (index i = 0; i < count; ++i) {
      const page_id p = pages[static_cast<std::size_t>(i)];
      pool_.page(to, length / page_size_ + i) = p;
      pool_.retain(p);
    }
    pool_.set_length(to, length + count * page_size_);
  }

  /// Forgets all but a sequence's first `length` tokens, and frees the pages that no one else
  /// refers to. Throws shape_error where there are fewer.
  void truncate(index sequence, index length) {
    detail::require_truncation(length, checked_length(sequence));
    for (index i = pages_of(length); i < pages_of(pool_.length(sequence)); ++i) {
      pool_.release(pool_.page(sequence, i));
    }
    this->keep_newest(sequence, sequence, length);
    pool_.set_length(sequence, length);
  }
  /// Throws shape_error where there is no such sequence.
  void clear(index sequence) { truncate(sequence, 0); }
  void clear() {
    for (index s = 0; s < batch(); ++s) truncate(s, 0);
  }

  /// A reference to a page that keeps it, its rows and its place until it is dropped; how a prefix
  /// tree keeps pages that no sequence has. Of kivi_code only complete pages have rows. Throws
  /// shape_error where the page is free.
  void hold(page_id page) {
    require_used(page);
    pool_.hold(page);
  }
  /// Throws shape_error where the page is not held.
  void drop(page_id page) {
    require_used(page);
    if (pool_.holds(page) == 0) {
      fail<shape_error>("page " + std::to_string(page) + " is dropped, it has 0 holds");
    }
    pool_.drop(page);
  }

  /// Throws shape_error unless a sequence has no tokens.
  void require_empty(index sequence) const {
    if (const index n = checked_length(sequence); n != 0) {
      fail<shape_error>("sequence " + std::to_string(sequence) + " has " + std::to_string(n) +
                        " tokens, needs 0 to share others'");
    }
  }

  // Accounting. Pages in use = pages() - free_pages().
  [[nodiscard]] index pages() const noexcept { return pool_.pages(); }
  [[nodiscard]] index free_pages() const noexcept { return pool_.free_pages(); }
  [[nodiscard]] index page_size() const noexcept { return page_size_; }
  [[nodiscard]] index max_tokens() const noexcept { return max_tokens_; }
  /// Bytes of the keys and values of one page, with their scales.
  [[nodiscard]] index page_bytes() const noexcept {
    return kv_heads() * (key_store::page_bytes(page_size_, head_dim(), group_) +
                         value_store::page_bytes(page_size_, value_dim(), group_));
  }
  /// How many sequences and holds refer to a page; 0 for a free one.
  [[nodiscard]] index references(page_id page) const {
    if (static_cast<index>(page) >= pages()) {
      fail<shape_error>("page is " + std::to_string(page) + ", the cache has " +
                        std::to_string(pages()));
    }
    return pool_.references(page);
  }
  /// How often a page is held.
  [[nodiscard]] index holds(page_id page) const {
    (void)references(page);
    return pool_.holds(page);
  }
  /// The pages of a sequence in order. Throws shape_error where there is no such sequence.
  [[nodiscard]] std::span<const page_id> page_table(index sequence) const {
    return {pool_.table(sequence), static_cast<std::size_t>(pages_of(checked_length(sequence)))};
  }
  /// Throws corruption_error unless every reference is counted and every page free or in use.
  void validate() const { pool_.validate(page_size_); }

  // What kernels read: see key_value_source.
  [[nodiscard]] index batch() const noexcept { return pool_.sequences(); }
  [[nodiscard]] index kv_heads() const noexcept { return keys_.heads(); }
  [[nodiscard]] index head_dim() const noexcept { return keys_.channels(); }
  [[nodiscard]] index value_dim() const noexcept { return values_.channels(); }
  [[nodiscard]] index length(index sequence) const noexcept { return pool_.length(sequence); }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<paged_cache>;
  friend struct detail::page_rows<paged_cache, TK, TV>;
  using key_store = typename detail::page_stores<TK>::keys;
  using value_store = typename detail::page_stores<TV>::values;

  [[nodiscard]] detail::row_geometry geometry() const noexcept {
    return {batch(), kv_heads(), head_dim(), value_dim()};
  }
  [[nodiscard]] index pages_of(index tokens) const noexcept { return ceil_div(tokens, page_size_); }
  [[nodiscard]] index page_of(index s, index j) const noexcept {
    return static_cast<index>(pool_.page(s, j / page_size_));
  }
  /// Rows from token j to the end of its page or of the sequence.
  [[nodiscard]] index left(index s, index j) const noexcept {
    return (std::min)(page_size_ - j % page_size_, length(s) - j);
  }

  [[nodiscard]] index checked_length(index sequence) const {
    detail::require_sequence(sequence, batch());
    return pool_.length(sequence);
  }
  void require_used(page_id page) const {
    if (references(page) == 0) {
      fail<shape_error>("page " + std::to_string(page) + " is free, has 0 references");
    }
  }
  [[noreturn]] void full(index tokens) const {
    fail<capacity_error>("cache has " + std::to_string(free_pages()) + " of " +
                         std::to_string(pages()) + " pages of " + std::to_string(page_size_) +
                         " tokens free and at most " + std::to_string(max_tokens_) +
                         " tokens a sequence, cannot append " + std::to_string(tokens));
  }

  /// The page that sequence s would write to first, where it is begun already.
  [[nodiscard]] bool ends_in_page(index s) const noexcept {
    return pool_.length(s) % page_size_ != 0;
  }
  [[nodiscard]] page_id last_page(index s) const noexcept {
    return pool_.page(s, pool_.length(s) / page_size_);
  }

  /// Free pages that appending takes; -1 where a sequence would grow too long.
  template <class Tokens>
  [[nodiscard]] index pages_needed(const Tokens& tokens, range sequences,
                                   index first) const noexcept {
    index need = 0;
    for (index s = sequences.begin; s < sequences.end; ++s) {
      const index count = tokens.count(s - first);
      const index length = pool_.length(s);
      if (count > max_tokens_ - length) return -1;
      if (count == 0) continue;
      need += pages_of(length + count) - pages_of(length);
      if (!ends_in_page(s)) continue;
      // Of those that share the page, each but the last to write leaves it for a copy.
      index others = pool_.references(last_page(s)) - 1;
      for (index t = sequences.begin; others > 0 && t < s; ++t) {
        if (tokens.count(t - first) > 0 && ends_in_page(t) && last_page(t) == last_page(s)) {
          --others;
        }
      }
      if (others > 0) ++need;
    }
    return need;
  }

  template <class Tokens>
  [[nodiscard]] bool write(const Tokens& tokens, range sequences, index first) noexcept {
    const index need = pages_needed(tokens, sequences, first);
    if (need < 0 || need > free_pages()) return false;
    for (index s = sequences.begin; s < sequences.end; ++s) {
      write_sequence(tokens, s - first, s, tokens.count(s - first));
    }
    return true;
  }

  template <class SK, class SV>
  void write_sequence(const detail::new_tokens<SK, SV>& tokens, index from, index s,
                      index count) noexcept {
    if (count == 0) return;
    if (ends_in_page(s)) own_last_page(s);
    const index length = pool_.length(s);
    for (index i = pages_of(length); i < pages_of(length + count); ++i) {
      pool_.page(s, i) = pool_.take();
    }
    for (index j = 0; j < count;) {
      const index rows = (std::min)(page_size_ - (length + j) % page_size_, count - j);
      for (index h = 0; h < kv_heads(); ++h) {
        const index at = (length + j) % page_size_;
        keys_.write(page_of(s, length + j), h, at, rows, tokens.key_rows(from, h, j), s);
        values_.write(page_of(s, length + j), h, at, rows, tokens.value_rows(from, h, j), s);
      }
      j += rows;
    }
    pool_.set_length(s, length + count);
  }

  /// Copies the rows of the last page where others refer to it too.
  void own_last_page(index s) noexcept {
    const page_id shared = last_page(s);
    if (pool_.references(shared) == 1) return;
    const page_id own = pool_.take();
    const index rows = pool_.length(s) % page_size_;
    keys_.copy_rows(shared, own, rows);
    values_.copy_rows(shared, own, rows);
    pool_.page(s, pool_.length(s) / page_size_) = own;
    pool_.release(shared);
  }

  index page_size_;
  detail::page_pool pool_;
  index max_tokens_;
  key_store keys_;
  value_store values_;
  std::optional<index> group_;
};

/// Pages of codes of 8 bits.
using paged_int8_cache = paged_cache<quantised_code<8>>;
/// Pages of codes of 4 bits.
using paged_int4_cache = paged_cache<quantised_code<4>>;
/// Pages of codes of 8 bits, keys with scales a channel.
using paged_kivi8_cache = paged_cache<kivi_code<8>>;
/// Pages of codes of 4 bits, keys with scales a channel.
using paged_kivi4_cache = paged_cache<kivi_code<4>>;

static_assert(key_value_source<paged_cache<float>>);
static_assert(coded_source<paged_int4_cache>);
static_assert(coded_source<paged_kivi4_cache>);

}  // namespace heed::inline HEED_TARGET
