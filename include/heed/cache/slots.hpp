// SPDX-License-Identifier: MIT
// A KV cache of slots: sequences of different lengths side by side, each appended, cut and refilled
// alone.
//
// | tensor | axes                                                   |
// |--------|--------------------------------------------------------|
// | keys   | [slots, kv heads, capacity, head dim], scalar TK       |
// | values | [slots, kv heads, capacity, value dim], scalar TV      |
//
// Holds (head dim sizeof(TK) + value dim sizeof(TV)) bytes per slot, KV head and token of
// capacity, allocated at construction; nothing later allocates. Appended numbers are rounded to
// nearest even to the cache's scalars. Every operation either succeeds or changes nothing. Reading
// from many threads is safe while no one writes.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <string>

#include "heed/cache/append_input.hpp"
#include "heed/cache/contiguous.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

template <attention_scalar TK, attention_scalar TV = TK>
class slot_cache {
 public:
  using key_scalar = TK;
  using value_scalar = TV;

  /// `batch` slots of `capacity` tokens each. Throws shape_error on a negative extent, without a
  /// head_dim and where no memory could hold so many tokens; std::bad_alloc.
  explicit slot_cache(const cache_extents& e)
      : keys_({e.batch, e.kv_heads, e.capacity, check_cache_extents(e).head_dim}),
        values_({e.batch, e.kv_heads, e.capacity, e.value_dim.value_or(e.head_dim)}),
        lengths_({e.batch}) {}

  /// Appends the same number of tokens to every slot: k [slots, kv heads, tokens, head dim], v
  /// likewise with value dim. Throws capacity_error where one of them is too full, shape_error.
  template <tensor_like K, tensor_like V>
  void append(const K& k, const V& v) {
    append_all(detail::check_new_tokens(k, v, geometry(), batch()));
  }
  /// The same, but false where the tokens do not fit.
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(const K& k, const V& v) {
    return try_append_all(detail::check_new_tokens(k, v, geometry(), batch()));
  }

  /// Appends to one slot: k [kv heads, tokens, head dim], v likewise with value dim.
  template <tensor_like K, tensor_like V>
  void append(index slot, const K& k, const V& v) {
    if (!try_append(slot, k, v)) full(slot, as_rank4(as_view(k)).extent(2));
  }
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(index slot, const K& k, const V& v) {
    detail::require_sequence(slot, batch());
    const auto tokens = detail::check_new_tokens(k, v, geometry(), 1);
    if (tokens.count(0) > capacity() - length(slot)) return false;
    write(tokens, 0, slot);
    return true;
  }

  /// Appends tokens starts[s] .. starts[s+1] to slot s: k [kv heads, all tokens, head dim], v
  /// likewise, starts of slots + 1 entries.
  template <tensor_like K, tensor_like V>
  void append(const K& k, const V& v, std::span<const index> starts) {
    append_all(detail::check_new_tokens(k, v, starts, geometry()));
  }
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(const K& k, const V& v, std::span<const index> starts) {
    return try_append_all(detail::check_new_tokens(k, v, starts, geometry()));
  }

  /// Forgets all but a slot's first `length` tokens. Throws shape_error where there are fewer.
  void truncate(index slot, index length) {
    detail::require_sequence(slot, batch());
    detail::require_truncation(length, lengths_(slot));
    lengths_(slot) = length;
  }
  /// Throws shape_error where there is no such slot.
  void clear(index slot) { truncate(slot, 0); }
  void clear() noexcept { std::fill_n(lengths_.data(), batch(), index{0}); }

  [[nodiscard]] index capacity() const noexcept { return keys_.extent(2); }
  /// Tokens of every slot.
  [[nodiscard]] std::span<const index> lengths() const noexcept {
    return {lengths_.data(), static_cast<std::size_t>(batch())};
  }
  /// [kv heads, length of the slot, channels]. Throws shape_error where there is no such slot.
  [[nodiscard]] view<const TK, 3> slot_keys(index slot) const {
    detail::require_sequence(slot, batch());
    return as_view(keys_)[slot].slice(1, 0, length(slot));
  }
  [[nodiscard]] view<const TV, 3> slot_values(index slot) const {
    detail::require_sequence(slot, batch());
    return as_view(values_)[slot].slice(1, 0, length(slot));
  }

  // What kernels read: see key_value_source.
  [[nodiscard]] index batch() const noexcept { return keys_.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return keys_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return keys_.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return values_.extent(3); }
  [[nodiscard]] index length(index slot) const noexcept { return lengths_.data()[slot]; }
  [[nodiscard]] row_run<TK> keys(index b, index h, index j) const noexcept {
    return {keys_.data() + row(b, h, j) * head_dim(), head_dim(), length(b) - j};
  }
  [[nodiscard]] row_run<TV> values(index b, index h, index j) const noexcept {
    return {values_.data() + row(b, h, j) * value_dim(), value_dim(), length(b) - j};
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<slot_cache>;

  [[nodiscard]] index row(index b, index h, index j) const noexcept {
    return (b * kv_heads() + h) * capacity() + j;
  }
  [[nodiscard]] detail::row_geometry geometry() const noexcept {
    return {batch(), kv_heads(), head_dim(), value_dim()};
  }

  [[noreturn]] void full(index slot, index tokens) const {
    fail<capacity_error>("slot " + std::to_string(slot) + " holds " + std::to_string(length(slot)) +
                         " of " + std::to_string(capacity()) + " tokens, cannot append " +
                         std::to_string(tokens));
  }
  template <class Tokens>
  [[nodiscard]] index first_full(const Tokens& tokens) const noexcept {
    index b = 0;
    while (b < batch() && tokens.count(b) <= capacity() - length(b)) ++b;
    return b;
  }
  template <class Tokens>
  void append_all(const Tokens& tokens) {
    if (const index b = first_full(tokens); b < batch()) full(b, tokens.count(b));
    for (index b = 0; b < batch(); ++b) write(tokens, b, b);
  }
  template <class Tokens>
  [[nodiscard]] bool try_append_all(const Tokens& tokens) noexcept {
    if (first_full(tokens) < batch()) return false;
    for (index b = 0; b < batch(); ++b) write(tokens, b, b);
    return true;
  }

  template <class SK, class SV>
  void write(const detail::new_tokens<SK, SV>& tokens, index from, index slot) noexcept {
    const index count = tokens.count(from);
    for (index h = 0; h < kv_heads(); ++h) {
      const index at = row(slot, h, length(slot));
      kernel::copy_tile<SK, TK>(tokens.key_rows(from, h, 0),
                                {keys_.data() + at * head_dim(), head_dim(), 1}, count, head_dim());
      kernel::copy_tile<SV, TV>(tokens.value_rows(from, h, 0),
                                {values_.data() + at * value_dim(), value_dim(), 1}, count,
                                value_dim());
    }
    lengths_(slot) += count;
  }

  tensor<TK, 4> keys_;
  tensor<TV, 4> values_;
  tensor<index, 1> lengths_;
};

static_assert(key_value_source<slot_cache<float>>);

}  // namespace heed::inline HEED_TARGET
