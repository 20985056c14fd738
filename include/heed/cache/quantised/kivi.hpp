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
// codes and agrees with it to rounding; scores beyond the largest float are NaN. Every operation
// either succeeds or changes nothing. Reading from many threads is safe while no one writes. Liu et
// al. 2024, arXiv 2402.02750.
#pragma once

#include <algorithm>
#include <optional>

#include "heed/cache/append_input.hpp"
#include "heed/cache/quantised/group_store.hpp"
#include "heed/cache/quantised/quantised.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"

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
      : capacity_(checked(e).capacity),
        keys_(e.batch, e.kv_heads, round_up(e.capacity, e.group), e.head_dim, e.group, e.batch),
        values_(e.batch, e.kv_heads, round_up(e.capacity, e.group),
                e.value_dim.value_or(e.head_dim), e.group, e.batch) {}

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
          keys_.write(b, h, length_, count, tokens.key_rows(b, h, 0), b);
          values_.write(b, h, length_, count, tokens.value_rows(b, h, 0), b);
        }
      }
      length_ += count;
    });
  }

  /// Forgets all but the first `length` tokens. Throws shape_error where there are fewer.
  void truncate(index length) {
    detail::require_truncation(length, length_, "the cache");
    const index first = length / group() * group();
    if (first < in_codes()) {
      for (index b = 0; b < batch(); ++b) {
        for (index h = 0; h < kv_heads(); ++h) {
          keys_.widen(b, h, first, length - first, keys_.newest(b, h));
          values_.widen(b, h, first, length - first, values_.newest(b, h));
        }
      }
    }
    length_ = length;
  }
  void clear() noexcept { length_ = 0; }

  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index capacity() const noexcept { return capacity_; }
  [[nodiscard]] index group() const noexcept { return keys_.group(); }
  /// Tokens that are codes; those behind them are kept in full.
  [[nodiscard]] index in_codes() const noexcept { return length_ / group() * group(); }

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
    return run(keys_, b, h, j);
  }
  [[nodiscard]] code_run value_codes(index b, index h, index j) const noexcept {
    return run(values_, b, h, j);
  }
  void widen_keys(index b, index h, range tokens, float* to) const noexcept {
    widen(keys_, b, h, tokens, to);
  }
  void widen_values(index b, index h, range tokens, float* to) const noexcept {
    widen(values_, b, h, tokens, to);
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<kivi_cache>;

  [[nodiscard]] static const kivi_extents& checked(const kivi_extents& e) {
    (void)check_cache_extents({e.batch, e.kv_heads, e.capacity, e.head_dim, e.value_dim});
    (void)detail::checked_token_group(e.group, "kivi_cache has groups");
    return e;
  }
  template <class Store>
  [[nodiscard]] code_run run(const Store& store, index b, index h, index j) const noexcept {
    if (j < in_codes()) return store.run(b, h, j, in_codes() - j);
    return store.newest_run(b, h, j % group(), length_ - j);
  }
  template <class Store>
  void widen(const Store& store, index b, index h, range tokens, float* to) const noexcept {
    const index codes = std::clamp(in_codes(), tokens.begin, tokens.end) - tokens.begin;
    store.widen(b, h, tokens.begin, codes, to);
    store.copy_newest(b, h, (tokens.begin + codes) % group(), tokens.size() - codes,
                      to + codes * store.channels());
  }

  index capacity_;
  detail::group_store<Bits, true> keys_;
  detail::group_store<Bits, false> values_;
  index length_ = 0;
};

static_assert(coded_source<kivi_cache<8>>);

}  // namespace heed::inline HEED_TARGET
