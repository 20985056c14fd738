// SPDX-License-Identifier: MIT
// The cost of whole decoder-only models: weights, key/value cache, forward pass, decode step.
//
// A layer is attention (projections and softmax attention) and a feed-forward layer, possibly a
// mixture of experts. With W_active the weights that a token meets,
//
//   forward FLOPs = 2 n W_active + attention over the visible pairs of every layer
//   cache bytes   = 2 layers tokens kv_heads D bytes,  or  layers tokens (rank + rope) bytes
//   latent.
//
// Source of the latent cache: DeepSeek-AI, DeepSeek-V2 (2024), arXiv:2405.04434, section 2.1.
#pragma once

#include <optional>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/cost/attention.hpp"
#include "heed/cost/feed_forward.hpp"
#include "heed/cost/work.hpp"

namespace heed::inline HEED_TARGET::cost {

/// Multi-head latent attention: keys and values are projections of one vector of `rank` channels a
/// token, which is what the cache holds, next to a rotary key of `rope_dim` shared by all heads.
struct latent_attention {
  index rank = 0;
  index rope_dim = 0;
  index query_rank = 0;  ///< queries too come from a low-rank vector
};

/// Mixture of experts in all but the first `dense_layers` layers.
struct mixture_of_experts {
  index experts = 0;
  index active = 0;  ///< routed experts a token meets
  index shared = 0;  ///< experts that every token meets
  index hidden_dim = 0;
  index dense_layers = 0;
};

struct model {
  index layers = 0;
  index model_dim = 0;
  index query_heads = 0;
  index kv_heads = 0;
  index head_dim = 0;                ///< of queries and keys, rotary part included
  std::optional<index> value_dim{};  ///< head_dim unless given
  feed_forward_shape feed_forward{};
  index vocabulary = 0;
  bool tied_embeddings = false;
  index learned_positions = 0;
  bool biases = false;  ///< a bias on every projection, and in the norms
  std::optional<latent_attention> latent{};
  std::optional<mixture_of_experts> mixture{};

  [[nodiscard]] constexpr index values() const noexcept { return value_dim.value_or(head_dim); }
};

/// Matrices of one layer's attention: queries, keys, values, output. Biases and norms left out.
[[nodiscard]] constexpr double attention_projection_weights(const model& m) noexcept {
  const index queries = m.query_heads * m.head_dim;
  const index output = m.query_heads * m.values() * m.model_dim;
  if (m.latent) {
    const latent_attention& l = *m.latent;
    const index up = m.query_heads * (m.head_dim - l.rope_dim + m.values());
    return static_cast<double>(m.model_dim * l.query_rank + l.query_rank * queries +
                               m.model_dim * (l.rank + l.rope_dim) + l.rank * up + output);
  }
  const index keys_values = m.kv_heads * (m.head_dim + m.values());
  return static_cast<double>(m.model_dim * (queries + keys_values) + output);
}

/// Matrices that one token meets in the feed-forward layer number `layer`.
[[nodiscard]] constexpr double active_feed_forward_weights(const model& m, index layer) noexcept {
  if (!m.mixture || layer < m.mixture->dense_layers) return m.feed_forward.weights();
  const mixture_of_experts& x = *m.mixture;
  const feed_forward_shape expert{m.model_dim, x.hidden_dim, m.feed_forward.gated};
  return static_cast<double>(x.active + x.shared) * expert.weights() +
         static_cast<double>(m.model_dim * x.experts);  // router
}

namespace detail {
constexpr double embedding_weights(const model& m) noexcept {
  return static_cast<double>((m.vocabulary * (m.tied_embeddings ? 1 : 2) + m.learned_positions) *
                             m.model_dim);
}
/// Vectors of one layer: norms, biases, routing bias.
constexpr double vector_weights(const model& m, index layer) noexcept {
  index count = 2 * m.model_dim;
  if (m.biases) {
    count += 2 * m.model_dim + m.query_heads * m.head_dim + m.kv_heads * (m.head_dim + m.values()) +
             m.model_dim + m.feed_forward.hidden_dim + m.model_dim;
  }
  if (m.latent) count += m.latent->rank + m.latent->query_rank;
  if (m.mixture && layer >= m.mixture->dense_layers) count += m.mixture->experts;
  return static_cast<double>(count);
}
constexpr double output_weights(const model& m) noexcept {
  return static_cast<double>(m.vocabulary * m.model_dim);
}
}  // namespace detail

/// Every weight of the model.
[[nodiscard]] constexpr double weights(const model& m) noexcept {
  double total = detail::embedding_weights(m) +
                 static_cast<double>((m.biases ? 2 : 1) * m.model_dim);  // last norm
  for (index layer = 0; layer < m.layers; ++layer) {
    total += attention_projection_weights(m) + detail::vector_weights(m, layer);
    if (m.mixture && layer >= m.mixture->dense_layers) {
      const mixture_of_experts& x = *m.mixture;
      const feed_forward_shape expert{m.model_dim, x.hidden_dim, m.feed_forward.gated};
      total += static_cast<double>(x.experts + x.shared) * expert.weights() +
               static_cast<double>(m.model_dim * x.experts);
    } else {
      total += m.feed_forward.weights();
    }
  }
  return total;
}

/// Weights of the matrices that one token is multiplied by, the output projection included and the
/// embedding, which is a lookup, left out.
[[nodiscard]] constexpr double active_weights(const model& m) noexcept {
  double total = detail::output_weights(m);
  for (index layer = 0; layer < m.layers; ++layer) {
    total += attention_projection_weights(m) + active_feed_forward_weights(m, layer);
  }
  return total;
}

/// Numbers the cache holds for one token in one layer.
[[nodiscard]] constexpr index kv_cache_width(const model& m) noexcept {
  return m.latent ? m.latent->rank + m.latent->rope_dim : m.kv_heads * (m.head_dim + m.values());
}

/// Keys and values, or latent rows, of every layer.
[[nodiscard]] constexpr double kv_cache_bytes(const model& m, index tokens, index scalar_bytes = 2,
                                              index batch = 1) noexcept {
  return static_cast<double>(m.layers * kv_cache_width(m)) * static_cast<double>(tokens) *
         static_cast<double>(scalar_bytes) * static_cast<double>(batch);
}

/// The softmax attention of one layer for `tokens` new tokens after `cached` ones, causal.
[[nodiscard]] constexpr attention_shape layer_attention(const model& m, index tokens,
                                                        index cached = 0,
                                                        index scalar_bytes = 2) noexcept {
  return {.batch = 1,
          .query_heads = m.query_heads,
          .kv_heads = m.latent ? m.query_heads : m.kv_heads,
          .queries = tokens,
          .keys = cached + tokens,
          .head_dim = m.head_dim,
          .value_dim = m.values(),
          .visible = causal(cached),
          .scalar_bytes = scalar_bytes,
          .accumulator_bytes = 4};
}

/// The same in the form a decode step takes: with a latent cache the up-projections are absorbed
/// into query and output, all heads share one key of rank + rope channels, whose first `rank`
/// channels are the value. Its bytes are then those of the cache alone (see `decode_step`).
[[nodiscard]] constexpr attention_shape layer_decode(const model& m, index cached,
                                                     index scalar_bytes = 2) noexcept {
  attention_shape s = layer_attention(m, 1, cached, scalar_bytes);
  if (m.latent) {
    s.kv_heads = 1;
    s.head_dim = m.latent->rank + m.latent->rope_dim;
    s.value_dim = m.latent->rank;
  }
  return s;
}

/// A prompt of `tokens` tokens through every layer: tiled causal attention, logits of the last
/// token only. Each weight that is met is read once; a mixture's experts are all met by a long
/// prompt, but counted as the active ones, a lower bound. Extra memory is the largest of one
/// layer's needs, next to the residual stream and the projected queries, keys and values; weights
/// and cache are not in it.
[[nodiscard]] constexpr work prefill(const model& m, index tokens, index scalar_bytes = 2,
                                     const tiling& t = {}) noexcept {
  const double n = static_cast<double>(tokens);
  const double bytes = static_cast<double>(scalar_bytes);
  const double residual = n * static_cast<double>(m.model_dim) * bytes;
  const attention_shape a = layer_attention(m, tokens, 0, scalar_bytes);
  const double projected =
      a.query_output_bytes() + static_cast<double>(a.kv_heads) * n * a.key_value_row_bytes();
  const double w = attention_projection_weights(m);
  work total{};
  for (index layer = 0; layer < m.layers; ++layer) {
    work attention = work{2 * n * w, w * bytes + 2 * residual + projected, 0} + tiled(a, t);
    attention.extra_memory += projected + residual;
    feed_forward_shape f = m.feed_forward;
    if (m.mixture && layer >= m.mixture->dense_layers) {
      f.hidden_dim = (m.mixture->active + m.mixture->shared) * m.mixture->hidden_dim;
    }
    work feed = feed_forward(f, tokens, scalar_bytes);
    const double router = active_feed_forward_weights(m, layer) - f.weights();
    feed.flops += 2 * n * router;
    feed.bytes += router * bytes;
    feed.extra_memory += residual;
    total += attention + feed;
  }
  const double head = detail::output_weights(m);
  return total + work{2 * head, head * bytes, static_cast<double>(m.vocabulary) * 4};
}

/// One new token after `cached` ones, batch 1: every active weight and the whole cache are read.
[[nodiscard]] constexpr work decode_step(const model& m, index cached,
                                         index scalar_bytes = 2) noexcept {
  const double bytes = static_cast<double>(scalar_bytes);
  const double active = active_weights(m);
  const work one = decode(layer_decode(m, cached, scalar_bytes));
  const double layers = static_cast<double>(m.layers);
  // The cache is read, and one row of it written; a latent row is key and value in one.
  const double cache =
      kv_cache_bytes(m, cached + 1, scalar_bytes) + kv_cache_bytes(m, 1, scalar_bytes);
  const double logits = static_cast<double>(m.vocabulary) * 4;
  return {2 * active + layers * one.flops, active * bytes + cache,
          one.extra_memory > logits ? one.extra_memory : logits};
}

}  // namespace heed::inline HEED_TARGET::cost
