// SPDX-License-Identifier: MIT
// A KV cache of codes of 8 or 4 bits, with a scale and a zero point for each row of keys and of
// values: a quarter or an eighth of float's memory.
//
// | tensor        | axes                                                    |
// |---------------|---------------------------------------------------------|
// | codes         | [batch, kv heads, capacity, bytes of a row], 8 bits     |
// | scales, zeros | [batch, kv heads, capacity], float                      |
//
// x ~ scale (code - zero); the error, and what constant, tiny and NaN rows become, is in
// quantised_row.hpp. Holds (head dim + value dim) bits / 8 + 16 bytes per batch, KV head and token
// of capacity, allocated at construction; appending allocates nothing. Attention of many queries
// widens a block of rows once for all the query rows of a task, and then computes in float: the bits
// of a contiguous cache of the widened rows. Attention of few reads the codes, and has its results
// to rounding. Every operation either succeeds or changes nothing. Reading from many threads is safe
// while no one appends.
#pragma once

#include <cstdint>
#include <string>

#include "heed/cache/append_input.hpp"
#include "heed/cache/contiguous.hpp"
#include "heed/cache/quantised/quantised_row.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// A code that means nothing without its row's scale.
template <int Bits>
struct quantised_code {
  std::uint8_t bits;
};
template <int Bits>
struct accumulator<quantised_code<Bits>> {
  using type = float;
};

template <int Bits>
class quantised_cache {
 public:
  using key_scalar = quantised_code<Bits>;
  using value_scalar = quantised_code<Bits>;

  /// Throws shape_error on a negative extent, std::bad_alloc.
  explicit quantised_cache(const cache_extents& e)
      : keys_(check_cache_extents(e), e.head_dim), values_(e, e.value_dim.value_or(e.head_dim)) {}

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
    const auto tokens =
        detail::check_new_tokens(k, v, {batch(), kv_heads(), head_dim(), value_dim()}, batch());
    const index count = tokens.count(0);
    if (count > capacity() - length_) return false;
    for (index b = 0; b < batch(); ++b) {
      for (index h = 0; h < kv_heads(); ++h) {
        keys_.write(b, h, length_, count, tokens.key_rows(b, h, 0));
        values_.write(b, h, length_, count, tokens.value_rows(b, h, 0));
      }
    }
    length_ += count;
    return true;
  }

  /// Forgets all but the first `length` tokens. Throws shape_error where there are fewer.
  void truncate(index length) {
    detail::require_truncation(length, length_, "the cache");
    length_ = length;
  }
  void clear() noexcept { length_ = 0; }

  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index capacity() const noexcept { return keys_.scales.extent(2); }
  /// Scale and zero point of a key's row, and of a value's; j < length().
  [[nodiscard]] row_scale key_scale(index b, index h, index j) const noexcept {
    return keys_.scale(b, h, j);
  }
  [[nodiscard]] row_scale value_scale(index b, index h, index j) const noexcept {
    return values_.scale(b, h, j);
  }

  // What kernels read: see widening_source.
  [[nodiscard]] index batch() const noexcept { return keys_.scales.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return keys_.scales.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return keys_.channels; }
  [[nodiscard]] index value_dim() const noexcept { return values_.channels; }
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
    keys_.widen(b, h, tokens, to);
  }
  void widen_values(index b, index h, range tokens, float* to) const noexcept {
    values_.widen(b, h, tokens, to);
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<quantised_cache>;

  struct rows {
    rows(const cache_extents& e, index n)
        : channels(n),
          codes({e.batch, e.kv_heads, e.capacity, code_bytes<Bits>(n)}),
          scales({e.batch, e.kv_heads, e.capacity}),
          zeros({e.batch, e.kv_heads, e.capacity}),
          wide({n}) {}

    [[nodiscard]] index row(index b, index h, index j) const noexcept {
      return (b * scales.extent(1) + h) * scales.extent(2) + j;
    }
    [[nodiscard]] row_scale scale(index b, index h, index j) const noexcept {
      const index r = row(b, h, j);
      return {scales.data()[r], zeros.data()[r]};
    }
    [[nodiscard]] code_run run(index b, index h, index j, index count) const noexcept {
      const index r = row(b, h, j);
      return {.codes = codes.data() + r * codes.extent(3),
              .stride = codes.extent(3),
              .left = count,
              .scale = scales.data() + r,
              .zero = zeros.data() + r,
              .count = count};
    }
    template <class S>
    void write(index b, index h, index first, index count,
               kernel::rectangle<const S> from) noexcept {
      for (index i = 0; i < count; ++i) {
        for (index c = 0; c < channels; ++c) wide.data()[c] = static_cast<float>(*from.at(i, c));
        const index r = row(b, h, first + i);
        const row_scale s =
            quantise_row<Bits>(wide.data(), channels, codes.data() + r * codes.extent(3));
        scales.data()[r] = s.scale;
        zeros.data()[r] = s.zero;
      }
    }
    void widen(index b, index h, range which, float* to) const noexcept {
      for (index j = which.begin; j < which.end; ++j, to += channels) {
        const std::uint8_t* const from = codes.data() + row(b, h, j) * codes.extent(3);
        widen_codes<Bits>(from, scale(b, h, j), channels, to);
      }
    }

    index channels;
    tensor<std::uint8_t, 4> codes;
    tensor<float, 3> scales;
    tensor<float, 3> zeros;
    tensor<float, 1> wide;  // a row on its way in
  };

  rows keys_;
  rows values_;
  index length_ = 0;
};

/// Codes of 8 bits.
using int8_cache = quantised_cache<8>;
/// Codes of 4 bits.
using int4_cache = quantised_cache<4>;

static_assert(coded_source<int8_cache>);

}  // namespace heed::inline HEED_TARGET
