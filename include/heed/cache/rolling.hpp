// SPDX-License-Identifier: MIT
// A KV cache of bounded memory for endless streams: the first tokens, kept as sinks, and a ring of
// the newest.
//
// | tensor       | axes                                                      |
// |--------------|-----------------------------------------------------------|
// | keys         | [batch, kv heads, sinks + window, head dim], scalar TK    |
// | rotated keys | the same, where a rotary embedding is given               |
// | values       | [batch, kv heads, sinks + window, value dim], scalar TV   |
//
// Token j of the cache is the j-th of those it still holds, oldest first: a place, not the position
// in the stream. Keys are kept without rotation; with an embedding the cache also keeps them
// rotated by their places, and rotates the ring anew as places move, so that no angle ever goes
// beyond the window. Rotate queries likewise: n newest ones from place length() - n on. All memory
// is allocated at construction. Appending cannot fail for want of room: the oldest tokens after the
// sinks go. Costs, once full, 6 FLOPs a pair and token of the window for each append with an
// embedding, copies of the new rows without. Reading from many threads is safe while no one
// appends. Xiao et al. 2023, arXiv 2309.17453, section 3.2.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>

#include "heed/cache/append_input.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/rotary/apply.hpp"
#include "heed/rotary/tables.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

struct rolling_extents {
  index batch = 1;
  index kv_heads = 1;
  index sinks = 4;   ///< first tokens, kept for ever
  index window = 0;  ///< newest tokens
  index head_dim = 0;
  std::optional<index> value_dim = std::nullopt;  ///< head_dim where absent
};

template <attention_scalar TK, attention_scalar TV = TK>
class rolling_cache {
 public:
  using key_scalar = TK;
  using value_scalar = TV;

  /// Keys are attended to as they are appended. Throws shape_error on a negative extent or a window
  /// below 1, std::bad_alloc.
  explicit rolling_cache(const rolling_extents& e)
      : sinks_(e.sinks),
        window_(checked_window(e)),
        keys_({e.batch, e.kv_heads, saturating_sum(e.sinks, e.window), e.head_dim}),
        values_({e.batch, e.kv_heads, saturating_sum(e.sinks, e.window),
                 e.value_dim.value_or(e.head_dim)}) {}

  /// Keys are attended to rotated by their places. Throws shape_error also where the embedding
  /// rotates more than head dim.
  rolling_cache(const rolling_extents& e, const rotary_embedding& rope) : rolling_cache(e) {
    if (rope.rotated_dims() > e.head_dim) {
      fail<shape_error>("rotary_embedding has " + std::to_string(rope.rotated_dims()) +
                        " rotated dims, the cache has head dim " + std::to_string(e.head_dim));
    }
    layout_ = rope.layout();
    tables_ = make_rotary_tables<A>(rope, capacity());
    rotated_ = tensor<TK, 4>(keys_.extents());
  }

  /// Appends the same number of tokens to every batch: k [batch, kv heads, tokens, head dim], v
  /// likewise with value dim; leading axes of extent 1 may be left out. Throws shape_error.
  template <tensor_like K, tensor_like V>
  void append(const K& k, const V& v) {
    const auto tokens =
        detail::check_new_tokens(k, v, {batch(), kv_heads(), head_dim(), value_dim()}, batch());
    const index count = tokens.count(0);
    if (count == 0) return;
    const index first = length_;
    const index before = seen_;
    for (index i = 0; i < count;) {
      const index place = row_of(before + i);
      // As far as rows and tokens go on together; of what the ring would overwrite, nothing.
      const index left = count - i;
      if (before + i >= sinks_ && left > window_) {
        i += left - window_;
        continue;
      }
      const index end = before + i < sinks_ ? sinks_ : capacity();
      const index rows = (std::min)(end - place, left);
      write(tokens, i, place, rows);
      i += rows;
    }
    seen_ += count;
    length_ = (std::min)(seen_, capacity());
    if (tables_) rotate(seen_ > capacity() ? (std::min)(first, sinks_) : first);
  }

  void clear() noexcept { seen_ = length_ = 0; }

  /// Tokens held, and tokens appended since the last clear.
  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index seen() const noexcept { return seen_; }
  [[nodiscard]] index capacity() const noexcept { return sinks_ + window_; }
  [[nodiscard]] index sinks() const noexcept { return sinks_; }

  /// The key of token j as it was appended; j < length().
  [[nodiscard]] const TK* plain_key(index b, index h, index j) const noexcept {
    return keys_.data() + row(b, h, j) * head_dim();
  }

  // What kernels read: see key_value_source.
  [[nodiscard]] index batch() const noexcept { return keys_.extent(0); }
  [[nodiscard]] index kv_heads() const noexcept { return keys_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return keys_.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return values_.extent(3); }
  [[nodiscard]] index length(index) const noexcept { return length_; }
  [[nodiscard]] row_run<TK> keys(index b, index h, index j) const noexcept {
    const tensor<TK, 4>& from = tables_ ? rotated_ : keys_;
    return {from.data() + row(b, h, j) * head_dim(), head_dim(), run(j)};
  }
  [[nodiscard]] row_run<TV> values(index b, index h, index j) const noexcept {
    return {values_.data() + row(b, h, j) * value_dim(), value_dim(), run(j)};
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<rolling_cache>;

  using A = accumulate_t<TK>;

  [[nodiscard]] static index checked_window(const rolling_extents& e) {
    if (e.window < 1 || e.sinks < 0) {
      fail<shape_error>("rolling_cache has window " + std::to_string(e.window) + " and sinks " +
                        std::to_string(e.sinks) + ", needs at least 1 and 0");
    }
    if (e.head_dim == 0) fail<shape_error>("rolling_cache has head_dim 0, needs at least 1");
    return e.window;
  }
  /// Row of token t of the stream.
  [[nodiscard]] index row_of(index t) const noexcept {
    return t < sinks_ ? t : sinks_ + (t - sinks_) % window_;
  }
  /// Row of the token at place j.
  [[nodiscard]] index row_at(index j) const noexcept {
    return j < sinks_ ? j : row_of(j + seen_ - length_);
  }
  [[nodiscard]] index row(index b, index h, index j) const noexcept {
    return (b * kv_heads() + h) * capacity() + row_at(j);
  }
  /// Tokens from place j on whose rows follow one another.
  [[nodiscard]] index run(index j) const noexcept {
    // Before the ring is full, rows are places.
    const index end = seen_ <= capacity() ? length_ : j < sinks_ ? sinks_ : capacity();
    return (std::min)(end - row_at(j), length_ - j);
  }

  template <class Tokens>
  void write(const Tokens& tokens, index i, index place, index rows) noexcept {
    for (index b = 0; b < batch(); ++b) {
      for (index h = 0; h < kv_heads(); ++h) {
        const index to = (b * kv_heads() + h) * capacity() + place;
        copy(tokens.key_rows(b, h, i), keys_.data() + to * head_dim(), rows, head_dim());
        copy(tokens.value_rows(b, h, i), values_.data() + to * value_dim(), rows, value_dim());
      }
    }
  }
  template <class S, class T>
  static void copy(kernel::rectangle<const S> from, T* to, index rows, index channels) noexcept {
    kernel::copy_tile<S, T>(from, {to, channels, 1}, rows, channels);
  }

  /// Rotates the keys from place j on by their places.
  void rotate(index j) {
    while (j < length_) {
      const index rows = run(j);
      const index at = row_at(j);
      apply_rotary_into(as_view(rotated_).slice(2, at, at + rows),
                        as_view(std::as_const(keys_)).slice(2, at, at + rows), *layout_,
                        tables_->cos, tables_->sin, j);
      j += rows;
    }
  }

  index sinks_;
  index window_;
  tensor<TK, 4> keys_;
  tensor<TV, 4> values_;
  std::optional<rotary_layout> layout_;
  std::optional<rotary_tables<A>> tables_;
  tensor<TK, 4> rotated_;
  index seen_ = 0;
  index length_ = 0;
};

static_assert(key_value_source<rolling_cache<float>>);

}  // namespace heed::inline HEED_TARGET
