// SPDX-License-Identifier: MIT
// A KV cache of fixed capacity: keys and values of each head consecutive, token after token.
//
// | tensor | axes                                                   |
// |--------|--------------------------------------------------------|
// | keys   | [batch, kv heads, capacity, head dim], scalar TK       |
// | values | [batch, kv heads, capacity, value dim], scalar TV      |
//
// Holds (head dim sizeof(TK) + value dim sizeof(TV)) bytes per batch, KV head and token of
// capacity, allocated at construction; appending allocates nothing. Appended numbers are rounded to
// nearest even to the cache's scalars. Every operation either succeeds or changes nothing. Reading
// from many threads is safe while no one appends.
#pragma once

#include <optional>

#include "heed/cache/append_input.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

struct cache_extents {
  index batch = 1;
  index kv_heads = 1;
  index capacity = 0;                             ///< tokens
  index head_dim = 0;                             ///< at least 1
  std::optional<index> value_dim = std::nullopt;  ///< head_dim where absent
};

/// Throws shape_error on a negative extent, and where head dim is missing.
inline const cache_extents& check_cache_extents(const cache_extents& e) {
  const index all[] = {e.batch, e.kv_heads, e.capacity, e.head_dim};
  (void)checked_size("view", all);
  if (e.head_dim == 0) fail<shape_error>("cache has head_dim 0, needs at least 1");
  return e;
}

template <attention_scalar TK, attention_scalar TV = TK>
class contiguous_cache {
 public:
  using key_scalar = TK;
  using value_scalar = TV;

  /// Throws shape_error on a negative extent, without a head_dim and where no memory could hold so
  /// many tokens; std::bad_alloc.
  explicit contiguous_cache(const cache_extents& e)
      : keys_({e.batch, e.kv_heads, e.capacity, check_cache_extents(e).head_dim}),
        values_({e.batch, e.kv_heads, e.capacity, e.value_dim.value_or(e.head_dim)}) {}

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
          copy(tokens.key_rows(b, h, 0), keys_, b, h, count);
          copy(tokens.value_rows(b, h, 0), values_, b, h, count);
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
  [[nodiscard]] index capacity() const noexcept { return keys_.extent(2); }

  /// [batch, kv heads, length, channels]
  [[nodiscard]] view<const TK, 4> keys() const { return as_view(keys_).slice(2, 0, length_); }
  [[nodiscard]] view<const TV, 4> values() const { return as_view(values_).slice(2, 0, length_); }

  // What kernels read: see key_value_source.
  [[nodiscard]] index batch() const noexcept { return keys_.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return keys_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return keys_.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return values_.extent(3); }
  [[nodiscard]] index length(index) const noexcept { return length_; }
  [[nodiscard]] row_run<TK> keys(index b, index h, index j) const noexcept {
    return {keys_.data() + row(b, h, j) * head_dim(), head_dim(), length_ - j};
  }
  [[nodiscard]] row_run<TV> values(index b, index h, index j) const noexcept {
    return {values_.data() + row(b, h, j) * value_dim(), value_dim(), length_ - j};
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<contiguous_cache>;

  [[nodiscard]] index row(index b, index h, index j) const noexcept {
    return (b * kv_heads() + h) * capacity() + j;
  }

  template <class S, class T>
  void copy(kernel::rectangle<const S> from, tensor<T, 4>& to, index b, index h,
            index count) noexcept {
    const index channels = to.extent(3);
    kernel::copy_tile<S, T>(from, {to.data() + row(b, h, length_) * channels, channels, 1}, count,
                            channels);
  }

  tensor<TK, 4> keys_;
  tensor<TV, 4> values_;
  index length_ = 0;
};

static_assert(key_value_source<contiguous_cache<float>>);

}  // namespace heed::inline HEED_TARGET
