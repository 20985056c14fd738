// SPDX-License-Identifier: MIT
// Attention of the newest tokens to selected blocks of a KV cache, whose other blocks are not read.
//
//   selected_decode([executor,] q, cache, selection, block, options = {}, modifiers...)
//
// | argument  | axes                                | meaning                                     |
// |-----------|-------------------------------------|---------------------------------------------|
// | q         | [batch, heads, N, head dim]         | the last N tokens of the cache              |
// | selection | [batch, S heads, N, choices]        | blocks of `block` keys, any order; see      |
// |           |                                     | `selected_attention`                        |
//
// Positions are those of `decode`, row i at length - N + i, and an `options.offset` is refused; all
// else is as in `selected_attention`. Sequences may have lengths of their own: a choice behind the
// end of one is none. No mask is implied. Throws shape_error, option_error, std::bad_alloc before
// anything is written.
#pragma once

#include <utility>

#include "heed/attention/decode.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/selected_attention.hpp"

namespace heed::inline HEED_TARGET {

/// selected_decode_into([executor,] out | into(out, lse), q, cache, selection, block, ...)
template <api::an_executor E, class Out, class Q, api::a_cache Cache, tensor_like S, class... M>
void selected_decode_into(E&& exec, Out&& out, const Q& q, const Cache& cache, const S& selection,
                          index block, const attention_options& options = {},
                          const M&... modifiers) {
  detail::run_selected(exec,
                       api::open_decode(std::forward<Out>(out), q, cache, options, modifiers...),
                       detail::selection4(selection), block);
}
template <class Out, class Q, api::a_cache Cache, tensor_like S, class... M>
  requires(!api::an_executor<Out>)
void selected_decode_into(Out&& out, const Q& q, const Cache& cache, const S& selection,
                          index block, const attention_options& options = {},
                          const M&... modifiers) {
  default_executor exec;
  selected_decode_into(exec, std::forward<Out>(out), q, cache, selection, block, options,
                       modifiers...);
}

/// selected_decode([executor,] q, cache, selection, block, ...) -> a tensor of q's family
template <api::an_executor E, class Q, api::a_cache Cache, tensor_like S, class... M>
[[nodiscard]] auto selected_decode(E&& exec, const Q& q, const Cache& cache, const S& selection,
                                   index block, const attention_options& options = {},
                                   const M&... modifiers) {
  auto extents = as_view(q).extents();
  extents.back() = static_cast<index>(cache.value_dim());
  auto out = result_like<const Q&>(extents);
  selected_decode_into(exec, out, q, cache, selection, block, options, modifiers...);
  return out;
}
template <class Q, api::a_cache Cache, tensor_like S, class... M>
  requires(!api::an_executor<Q>)
[[nodiscard]] auto selected_decode(const Q& q, const Cache& cache, const S& selection, index block,
                                   const attention_options& options = {}, const M&... modifiers) {
  default_executor exec;
  return selected_decode(exec, q, cache, selection, block, options, modifiers...);
}

}  // namespace heed::inline HEED_TARGET
