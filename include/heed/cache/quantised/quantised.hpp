// SPDX-License-Identifier: MIT
// A KV cache of codes of 8 or 4 bits, with a scale and a zero point for each row of keys and of
// values, or for each group of its channels: a quarter or an eighth of float's memory.
//
// | tensor        | axes                                                    |
// |---------------|---------------------------------------------------------|
// | codes         | [batch, kv heads, capacity, bytes of a row], 8 bits     |
// | scales, zeros | [batch, kv heads, groups, capacity], float              |
//
// x ~ scale (code - zero); the error, and what constant, tiny and NaN rows become, is in
// quantised_row.hpp: of a group where there are groups, at most a 510th (8 bits) or a 30th (4 bits)
// of the group's range. Holds (head dim + value dim) bits / 8 + 8 (groups of a key + of a value) bytes
// per batch, KV head and token of capacity, allocated at construction; appending allocates nothing.
// Attention of many queries widens a block of rows once for all the query rows of a task, and then
// computes in float: the bits of a contiguous cache of the widened rows. With HEED_TILES defined and a
// matrix unit, codes of 8 bits without groups are multiplied as bytes, and weights are rounded to
// bfloat16 (kernel/tiled/kv_block_int8.hpp). Attention of few reads the codes, and has its results to
// rounding. Every operation either succeeds or changes nothing. Reading from many threads is safe
// while no one appends.
#pragma once

#include <optional>
#include <string>

#include "heed/cache/append_input.hpp"
#include "heed/cache/contiguous.hpp"
#include "heed/cache/quantised/code_store.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"

namespace heed::inline HEED_TARGET {

template <int Bits>
class quantised_cache {
 public:
  using key_scalar = quantised_code<Bits>;
  using value_scalar = quantised_code<Bits>;

  /// `group` channels, commonly 32 or 64, share a scale and a zero point; all of a row where it is
  /// absent. Throws shape_error on a negative extent or a group below 1, std::bad_alloc.
  explicit quantised_cache(const cache_extents& e, std::optional<index> group = std::nullopt)
      : keys_(check_cache_extents(e).batch, e.kv_heads, e.capacity, e.head_dim, group),
        values_(e.batch, e.kv_heads, e.capacity, e.value_dim.value_or(e.head_dim), group),
        group_(group) {}

  /// Appends the same number of tokens to every batch: k [batch, kv heads, tokens, head dim], v
  /// likewise with value dim; leading axes of extent 1 may be left out. Throws capacity_error where
  /// they do not fit, shape_error where they do not match.
  template <tensor_like K, tensor_like V>
  void append(const K& k, const V& v) {
    if (!try_append(k, v)) detail::fail_full(length_, capacity(), as_rank4(as_view(k)).extent(2));
  }
  /// The same, but false where the tokens do not fit.
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(const K& k, const V& v) {
    return detail::append_in_step(*this, k, v, [&](const auto& tokens, index count) {
      for (index b = 0; b < batch(); ++b) {
        for (index h = 0; h < kv_heads(); ++h) {
          keys_.write(b, h, length_, count, tokens.key_rows(b, h, 0));
          values_.write(b, h, length_, count, tokens.value_rows(b, h, 0));
        }
      }
      length_ += count;
    });
  }

  /// Forgets all but the first `length` tokens. Throws shape_error where there are fewer.
  void truncate(index length) {
    detail::require_truncation(length, length_, "the cache");
    length_ = length;
  }
  void clear() noexcept { length_ = 0; }

  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index capacity() const noexcept { return keys_.rows(); }
  /// Channels that share a scale; absent: all of a row.
  [[nodiscard]] std::optional<index> group() const noexcept { return group_; }
  /// Scale and zero point of a group of a key's channels, and of a value's; j < length().
  [[nodiscard]] row_scale key_scale(index b, index h, index j, index group = 0) const noexcept {
    return keys_.scale(b, h, j, group);
  }
  [[nodiscard]] row_scale value_scale(index b, index h, index j, index group = 0) const noexcept {
    return values_.scale(b, h, j, group);
  }

  // What kernels read: see widening_source.
  [[nodiscard]] index batch() const noexcept { return keys_.parts(); }
  [[nodiscard]] index kv_heads() const noexcept { return keys_.heads(); }
  [[nodiscard]] index head_dim() const noexcept { return keys_.channels(); }
  [[nodiscard]] index value_dim() const noexcept { return values_.channels(); }
  [[nodiscard]] index length(index) const noexcept { return length_; }
  /// No one reads codes as rows: kernels widen them.
  [[nodiscard]] row_run<key_scalar> keys(index, index, index j) const noexcept {
    return {nullptr, 0, length_ - j};
  }
  [[nodiscard]] row_run<value_scalar> values(index, index, index j) const noexcept {
    return {nullptr, 0, length_ - j};
  }
  // And what few queries read: see coded_source.
  static constexpr int code_bits = Bits;
  [[nodiscard]] code_run key_codes(index b, index h, index j) const noexcept {
    return keys_.run(b, h, j, length_ - j);
  }
  [[nodiscard]] code_run value_codes(index b, index h, index j) const noexcept {
    return values_.run(b, h, j, length_ - j);
  }
  void widen_keys(index b, index h, range tokens, float* to) const noexcept {
    keys_.widen(b, h, tokens.begin, tokens.size(), to);
  }
  void widen_values(index b, index h, range tokens, float* to) const noexcept {
    values_.widen(b, h, tokens.begin, tokens.size(), to);
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<quantised_cache>;

  detail::code_store<Bits> keys_;
  detail::code_store<Bits> values_;
  std::optional<index> group_;
  index length_ = 0;
};

/// Codes of 8 bits.
using int8_cache = quantised_cache<8>;
/// Codes of 4 bits.
using int4_cache = quantised_cache<4>;

static_assert(coded_source<int8_cache>);

}  // namespace heed::inline HEED_TARGET
