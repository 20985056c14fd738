// SPDX-License-Identifier: MIT
// A KV cache of codes of 8 or 4 bits whose keys are quantised a channel at a time: an outlier channel,
// which keys have and values have not, costs the others nothing.
//
// | tensor              | axes                                                          |
// |---------------------|---------------------------------------------------------------|
// | codes               | [batch, kv heads, capacity, bytes of a row], 8 bits           |
// | scales, zeros of k  | [batch, kv heads, groups, head dim], float                    |
// | scales, zeros of v  | [batch, kv heads, capacity], float                            |
// | newest              | [batch, kv heads, group, head dim / value dim], float         |
//
// Tokens are taken in groups. The newest, up to a group of them, are kept in full; when a group is
// complete, each of its key channels becomes codes with a scale and a zero point of its own, each of
// its value rows likewise. The error of a key is at most a 510th (8 bits) or a 30th (4 bits) of its
// channel's range within the group; the rest is as in quantised_row.hpp: a channel with a NaN is all
// NaN in its group. A truncation into a group that is quantised makes what is left of it the newest
// again, from its codes.
//
// Holds (head dim + value dim) bits / 8 + 8 + 8 head dim / group bytes per batch, KV head and token
// of capacity, and the newest; allocated at construction, appending allocates nothing. Attention
// of many queries widens a block of rows once for all query rows of a task, that of few reads the
// codes and agrees with it to rounding; scores beyond the largest float are NaN. Every operation either succeeds or
// changes nothing. Reading from many threads is safe while no one writes. Liu et al. 2024, arXiv
// 2402.02750.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "heed/cache/append_input.hpp"
#include "heed/cache/quantised/quantised.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

struct kivi_extents {
  index batch = 1;
  index kv_heads = 1;
  index capacity = 0;  ///< tokens
  index head_dim = 0;
  std::optional<index> value_dim = std::nullopt;  ///< head_dim where absent
  index group = 32;                               ///< tokens whose keys share scales, at most 256
};

template <int Bits>
class kivi_cache {
 public:
  using key_scalar = quantised_code<Bits>;
  using value_scalar = quantised_code<Bits>;

  /// Throws shape_error on a negative extent, without a head_dim, or where a group has not 1 to 256
  /// tokens; std::bad_alloc.
  explicit kivi_cache(const kivi_extents& e)
      : group_(checked_group(e)),
        capacity_(e.capacity),
        value_dim_(e.value_dim.value_or(e.head_dim)),
        key_codes_({e.batch, e.kv_heads, rows(), code_bytes<Bits>(e.head_dim)}),
        key_scales_({e.batch, e.kv_heads, rows() / group_, e.head_dim}),
        key_zeros_(key_scales_.extents()),
        value_codes_({e.batch, e.kv_heads, rows(), code_bytes<Bits>(value_dim_)}),
        value_scales_({e.batch, e.kv_heads, rows()}),
        value_zeros_(value_scales_.extents()),
        new_keys_({e.batch, e.kv_heads, group_, e.head_dim}),
        new_values_({e.batch, e.kv_heads, group_, value_dim_}) {}

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
          for (index i = 0; i < count;) {
            const index at = (length_ + i) % group_;
            const index n = (std::min)(group_ - at, count - i);
            copy(tokens.key_rows(b, h, i), new_keys_, b, h, at, n);
            copy(tokens.value_rows(b, h, i), new_values_, b, h, at, n);
            if (at + n == group_) quantise(b, h, (length_ + i) / group_);
            i += n;
          }
        }
      }
      length_ += count;
    });
  }

  /// Forgets all but the first `length` tokens. Throws shape_error where there are fewer.
  void truncate(index length) {
    detail::require_truncation(length, length_, "the cache");
    const index first = length / group_ * group_;
    if (first < in_codes()) {
      for (index b = 0; b < batch(); ++b) {
        for (index h = 0; h < kv_heads(); ++h) {
          widen_keys(b, h, {first, length}, &new_keys_(b, h, 0, 0));
          widen_values(b, h, {first, length}, &new_values_(b, h, 0, 0));
        }
      }
    }
    length_ = length;
  }
  void clear() noexcept { length_ = 0; }

  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index capacity() const noexcept { return capacity_; }
  [[nodiscard]] index group() const noexcept { return group_; }
  /// Tokens that are codes; those behind them are kept in full.
  [[nodiscard]] index in_codes() const noexcept { return length_ / group_ * group_; }

  // What kernels read: see widening_source.
  [[nodiscard]] index batch() const noexcept { return key_codes_.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return key_codes_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return new_keys_.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return value_dim_; }
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
    if (j >= in_codes()) {
      return {.full = new_keys_.data() + row(b, h, group_, j % group_) * head_dim(),
              .count = length_ - j};
    }
    const index group = (b * kv_heads() + h) * (rows() / group_) + j / group_;
    return {.codes = key_codes_.data() + row(b, h, rows(), j) * key_codes_.extent(3),
            .stride = key_codes_.extent(3),
            .left = in_codes() - j,
            .scale = key_scales_.data() + group * head_dim(),
            .zero = key_zeros_.data() + group * head_dim(),
            .by_channel = true,
            .count = group_ - j % group_};
  }
  [[nodiscard]] code_run value_codes(index b, index h, index j) const noexcept {
    if (j >= in_codes()) {
      return {.full = new_values_.data() + row(b, h, group_, j % group_) * value_dim(),
              .count = length_ - j};
    }
    const index r = row(b, h, rows(), j);
    return {.codes = value_codes_.data() + r * value_codes_.extent(3),
            .stride = value_codes_.extent(3),
            .left = in_codes() - j,
            .scale = value_scales_.data() + r,
            .zero = value_zeros_.data() + r,
            .count = in_codes() - j};
  }
  void widen_keys(index b, index h, range tokens, float* to) const noexcept {
    const index channels = head_dim();
    for (index j = tokens.begin; j < tokens.end; ++j, to += channels) {
      if (j >= in_codes()) {
        std::copy_n(&new_keys_(b, h, j % group_, 0), channels, to);
        continue;
      }
      detail::widen_codes<Bits, true>(&key_codes_(b, h, j, 0), &key_scales_(b, h, j / group_, 0),
                                      &key_zeros_(b, h, j / group_, 0), channels, to);
    }
  }
  void widen_values(index b, index h, range tokens, float* to) const noexcept {
    for (index j = tokens.begin; j < tokens.end; ++j, to += value_dim()) {
      if (j >= in_codes()) {
        std::copy_n(new_values_.data() + row(b, h, group_, j % group_) * value_dim(), value_dim(),
                    to);
      } else {
        const index r = row(b, h, rows(), j);
        widen_codes<Bits>(value_codes_.data() + r * value_codes_.extent(3),
                          {value_scales_.data()[r], value_zeros_.data()[r]}, value_dim(), to);
      }
    }
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<kivi_cache>;

  static constexpr index longest_group = 256;

  [[nodiscard]] static index checked_group(const kivi_extents& e) {
    (void)check_cache_extents({e.batch, e.kv_heads, e.capacity, e.head_dim, e.value_dim});
    if (e.group < 1 || e.group > longest_group) {
      fail<shape_error>("kivi_cache has groups of " + std::to_string(e.group) +
                        " tokens, needs 1 to 256");
    }
    return e.group;
  }
  /// Of codes: whole groups.
  [[nodiscard]] index rows() const noexcept { return round_up(capacity_, group_); }
  [[nodiscard]] index row(index b, index h, index rows_of_head, index j) const noexcept {
    return (b * kv_heads() + h) * rows_of_head + j;
  }

  template <class S>
  void copy(kernel::rectangle<const S> from, tensor<float, 4>& to, index b, index h, index at,
            index count) noexcept {
    const index channels = to.extent(3);
    kernel::copy_tile<S, float>(from, {to.data() + row(b, h, group_, at) * channels, channels, 1},
                                count, channels);
  }
  /// The newest tokens, which are complete, become the codes of group `g`.
  void quantise(index b, index h, index g) noexcept {
    float column[std::size_t{longest_group}];
    for (index c = 0; c < head_dim(); ++c) {
      for (index i = 0; i < group_; ++i) column[i] = new_keys_(b, h, i, c);
      const row_scale s = detail::quantise<Bits>(column, group_, [&](index i, std::uint8_t code) {
        detail::store_code<Bits>(&key_codes_(b, h, g * group_ + i, 0), head_dim(), c, code);
      });
      key_scales_(b, h, g, c) = s.scale;
      key_zeros_(b, h, g, c) = s.zero;
    }
    for (index i = 0; i < group_; ++i) {
      const index r = row(b, h, rows(), g * group_ + i);
      const row_scale s =
          quantise_row<Bits>(new_values_.data() + row(b, h, group_, i) * value_dim(), value_dim(),
                             value_codes_.data() + r * value_codes_.extent(3));
      value_scales_.data()[r] = s.scale;
      value_zeros_.data()[r] = s.zero;
    }
  }

  index group_;
  index capacity_;
  index value_dim_;
  tensor<std::uint8_t, 4> key_codes_;
  tensor<float, 4> key_scales_;
  tensor<float, 4> key_zeros_;
  tensor<std::uint8_t, 4> value_codes_;
  tensor<float, 3> value_scales_;
  tensor<float, 3> value_zeros_;
  tensor<float, 4> new_keys_;  // token j at row j % group
  tensor<float, 4> new_values_;
  index length_ = 0;
};

static_assert(coded_source<kivi_cache<8>>);

}  // namespace heed::inline HEED_TARGET
