// SPDX-License-Identifier: MIT
// The cost of kernelised linear attention: recurrent, chunked and non-causal forms.
//
// With F features of queries and keys (F = D for elu + 1) and Dv value channels, one head holds a
// state of F Dv numbers and a normaliser of F. FLOPs of one head over n tokens:
//
//   recurrent    4 n F Dv                                   write k v', read q'S
//   chunked      4 n F Dv + 2 P (F + Dv)                    the same by chunks of C tokens, plus
//   the
//                                                           P visible pairs inside the chunks
//   non-causal   2 (n + m) F Dv                             one write of all keys, one read of all
//
// All are linear in n. The recurrent form is bound by the traffic of its state, 4 F Dv operations
// against two passes over F Dv numbers a token when the state does not stay in registers; the
// chunked form trades a few more operations for matrix products.
// Sources: Katharopoulos et al., Transformers are RNNs (2020), arXiv:2006.16236, section 3.4;
// Hua et al., Transformer Quality in Linear Time (2022), arXiv:2202.10447, section 3.2.
#pragma once

#include <optional>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/cost/attention.hpp"
#include "heed/cost/band.hpp"
#include "heed/cost/work.hpp"

namespace heed::inline HEED_TARGET::cost {

/// `features` is what the feature map makes of head_dim channels; the same number unless given.
struct chunking {
  std::optional<index> features{};
  index chunk = 64;
  index workers = 1;  ///< each works on one head, with a state and scratch of its own
};

/// Numbers in the state of one head, normaliser included.
[[nodiscard]] constexpr double linear_state_size(const attention_shape& s,
                                                 const chunking& form = {}) noexcept {
  return static_cast<double>(form.features.value_or(s.head_dim)) *
         static_cast<double>(s.values() + 1);
}

namespace detail {
constexpr double linear_io_bytes(const attention_shape& s) noexcept {
  return s.query_output_bytes() +
         static_cast<double>(s.batch * s.kv_heads * s.keys) * s.key_value_row_bytes();
}
constexpr double state_products(const attention_shape& s, const chunking& form) noexcept {
  return 2 * s.heads() * static_cast<double>(form.features.value_or(s.head_dim)) *
         static_cast<double>(s.values());
}
}  // namespace detail

/// Causal, token by token. `s.queries` tokens; `s.visible` is not used.
[[nodiscard]] constexpr work linear_recurrent(const attention_shape& s,
                                              const chunking& form = {}) noexcept {
  return {2 * static_cast<double>(s.queries) * detail::state_products(s, form),
          detail::linear_io_bytes(s),
          static_cast<double>(form.workers * s.accumulator_bytes) * linear_state_size(s, form)};
}

/// Causal, `form.chunk` tokens at a time. Exactly linear in n for whole chunks.
[[nodiscard]] constexpr work linear_chunked(const attention_shape& s,
                                            const chunking& form = {}) noexcept {
  const index f = form.features.value_or(s.head_dim);
  const index whole = s.queries / form.chunk;
  const index rest = s.queries % form.chunk;
  const index pairs = whole * causal().pairs(form.chunk, form.chunk) + causal().pairs(rest, rest);
  const double inside =
      2 * s.heads() * static_cast<double>(pairs) * static_cast<double>(f + s.values());
  const index rows = form.chunk < s.queries ? form.chunk : s.queries;
  // Scores of a chunk; features of its queries, and of its keys in both orders; its values and
  // output; row factors and one token's channels.
  const double scratch =
      static_cast<double>(rows * (rows + 3 * f + 2 * s.values() + 1) + s.head_dim);
  work w = linear_recurrent(s, form);
  w.flops += inside;
  w.extra_memory += scratch * static_cast<double>(form.workers * s.accumulator_bytes);
  return w;
}

/// Every query sees every key: S = phi(K)'V once, then phi(Q) S.
[[nodiscard]] constexpr work linear_non_causal(const attention_shape& s,
                                               const chunking& form = {}) noexcept {
  work w = linear_recurrent(s, form);
  w.flops = static_cast<double>(s.queries + s.keys) * detail::state_products(s, form);
  return w;
}

}  // namespace heed::inline HEED_TARGET::cost
