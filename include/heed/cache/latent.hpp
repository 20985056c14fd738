// SPDX-License-Identifier: MIT
// The cache of latent attention: one latent and one rotary key a token, for all heads.
//
// | tensor | axes                                                     |
// |--------|----------------------------------------------------------|
// | rows   | [batch, capacity, latent dim + rope dim], scalar T       |
//
// As a source of keys and values it has one KV head: keys are whole rows, values the latent alone,
// read from the same memory. Holds (latent dim + rope dim) sizeof(T) bytes per batch and token of
// capacity, allocated at construction. Every operation either succeeds or changes nothing. Reading
// from many threads is safe while no one appends. DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.
#pragma once

#include <string>

#include "heed/cache/append_input.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

struct latent_extents {
  index batch = 1;
  index capacity = 0;  ///< tokens
  index latent_dim = 0;
  index rope_dim = 0;
};

template <attention_scalar T>
class latent_cache {
 public:
  using key_scalar = T;
  using value_scalar = T;

  /// Throws shape_error on a negative extent, std::bad_alloc.
  explicit latent_cache(const latent_extents& e)
      : latent_dim_(view<T, 1>(nullptr, {e.latent_dim}).extent(0)),
        rows_({e.batch, 1, e.capacity,
               saturating_sum(e.latent_dim, view<T, 1>(nullptr, {e.rope_dim}).extent(0))}) {}

  /// Appends the same number of tokens to every batch: latent [batch, tokens, latent dim], k_rope
  /// [batch, tokens, rope dim], rotated already. Throws capacity_error where they do not fit,
  /// shape_error where they do not match.
  template <tensor_like L, tensor_like R>
  void append(const L& latent, const R& k_rope) {
    if (!try_append(latent, k_rope)) {
      detail::fail_full(length_, capacity(), as_view(latent).extent(1));
    }
  }
  /// The same, but false where the tokens do not fit.
  template <tensor_like L, tensor_like R>
  [[nodiscard]] bool try_append(const L& latent, const R& k_rope) {
    static_assert(rank_of<const L&> == 3 && rank_of<const R&> == 3,
                  "heed: latents and rotary keys are batch x tokens x channels");
    const auto l = as_view(latent);
    const auto r = as_view(k_rope);
    require_equal("latent", "batch", l.extent(0), "the cache", batch());
    require_equal("latent", "channels", l.extent(2), "the cache", latent_dim());
    require_equal("k_rope", "batch", r.extent(0), "the cache", batch());
    require_equal("k_rope", "tokens", r.extent(1), "latent", l.extent(1));
    require_equal("k_rope", "channels", r.extent(2), "the cache", rope_dim());
    if (l.extent(1) > capacity() - length_) return false;
    for (index b = 0; b < batch(); ++b) {
      T* const to = rows_.data() + (b * capacity() + length_) * head_dim();
      copy(l[b], to);
      copy(r[b], to + latent_dim());
    }
    length_ += l.extent(1);
    return true;
  }

  /// Forgets all but the first `length` tokens. Throws shape_error where there are fewer.
  void truncate(index length) {
    detail::require_truncation(length, length_, "the cache");
    length_ = length;
  }
  void clear() noexcept { length_ = 0; }

  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index capacity() const noexcept { return rows_.extent(2); }
  [[nodiscard]] index latent_dim() const noexcept { return latent_dim_; }
  [[nodiscard]] index rope_dim() const noexcept { return head_dim() - latent_dim_; }

  // What kernels read: see key_value_source.
  [[nodiscard]] index batch() const noexcept { return rows_.extent(0); }
  [[nodiscard]] static constexpr index kv_heads() noexcept { return 1; }
  [[nodiscard]] index head_dim() const noexcept { return rows_.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return latent_dim_; }
  [[nodiscard]] index length(index) const noexcept { return length_; }
  [[nodiscard]] row_run<T> keys(index b, index, index j) const noexcept {
    return {rows_.data() + (b * capacity() + j) * head_dim(), head_dim(), length_ - j};
  }
  [[nodiscard]] row_run<T> values(index b, index h, index j) const noexcept {
    return keys(b, h, j);
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<latent_cache>;

  template <class S>
  void copy(const view<S, 2>& from, T* to) noexcept {
    kernel::copy_tile<std::remove_const_t<S>, T>({from.data(), from.stride(0), from.stride(1)},
                                                 {to, head_dim(), 1}, from.extent(0),
                                                 from.extent(1));
  }

  index latent_dim_;
  tensor<T, 4> rows_;
  index length_ = 0;
};

static_assert(key_value_source<latent_cache<float>>);

}  // namespace heed::inline HEED_TARGET
