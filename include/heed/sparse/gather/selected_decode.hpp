// SPDX-License-Identifier: MIT
// Attention of the newest tokens to selected blocks of a KV cache, whose other blocks are not read.
//
//   selected_decode([executor,] q, cache, selection, block, options = {}, modifiers...)
//
// | argument  | axes                                | meaning                                     |
// |-----------|-------------------------------------|---------------------------------------------|
// | q         | [batch, heads, N, head dim]         | the last N tokens of the cache              |
// | selection | [batch, S heads, N, indices]        | blocks of `block` keys, any order; see      |
// |           |                                     | `selected_attention`                        |
//
// Positions are those of `decode`, row i at length - N + i, and an `options.offset` is refused; all
// else is as in `selected_attention`. Sequences may have lengths of their own: an index behind the
// end of one is none. No mask is implied. Throws shape_error, option_error, std::bad_alloc before
// anything is written.
#pragma once

#include <utility>

#include "heed/attention/decode.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/selected_attention.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

struct selected_decode_method : api::cache_method {
  template <class E, class Out, class Q, api::a_cache Cache, tensor_like S, class... M>
  static void write(E& exec, Out&& out, const Q& q, const Cache& cache, const S& selection,
                    index block, const attention_options& options, const M&... modifiers) {
    run_selected(exec, api::open_decode(std::forward<Out>(out), q, cache, options, modifiers...),
                 selection4(selection), block);
  }
};

}  // namespace detail

/// selected_decode_into([executor,] out | into(out, lse), q, cache, selection, block, options = {},
/// modifiers...)
inline constexpr api::writing<detail::selected_decode_method, 3, index> selected_decode_into{};
/// selected_decode([executor,] q, cache, selection, block, options = {}, modifiers...) -> a tensor
/// of q's family
inline constexpr api::returning<detail::selected_decode_method, 3, index> selected_decode{};

}  // namespace heed::inline HEED_TARGET
