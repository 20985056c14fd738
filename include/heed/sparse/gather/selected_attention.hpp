// SPDX-License-Identifier: MIT
// Exact attention of each query row to blocks of keys selected for it: top-k keys, blocks by their
// means or bounds, keys by an indexer's scores.
//
//   selected_attention([executor,] q, k, v, selection, block, options = {}, modifiers...)
//
// | argument  | axes                                    | meaning                              |
// |-----------|-----------------------------------------|--------------------------------------|
// | q         | [batch, heads, queries, head dim]       |                                      |
// | k, v      | [batch, kv heads, keys, ...]            |                                      |
// | selection | [batch, S heads, queries, indices]      | blocks of `block` keys, any order    |
//
// S heads are 1 (for all heads), the KV heads (shared in a group) or the query heads; a batch of 1
// serves all. A negative index is none; a block selected twice counts once; `block` 1
// selects single keys. The result is that of `attention` under the mask "key / block is among the
// row's indices": scale, modifiers, masks, sinks, dropout and log-sum-exp mean what they mean
// there, `causal()` must be given, and a row without a visible key is 0.
//
// Accumulator and errors as in `attention`; where blocks run one by one, a row's parts merge in the
// order of its blocks, at 2 eps each. Cost 2 (D + Dv) FLOPs for each query head and selected key.
//   Large blocks that many rows select (`by_blocks`, by the shape alone) run as dense tiles: the
//   rows of each block against its keys. Parallel over blocks and their rows; memory beside the
//   result up to 32 MiB, or what one row's parts need, and scratch a worker as in `attention`.
//   Others run row by row: keys and values of a row's indices are read where they lie, once for all
//   heads that share them. Parallel over query blocks; scratch a worker: some 500 rows of keys
//   and values, and up to 4 MiB of a query block's indices, queries and outputs, or what one row
//   needs.
// The same bits for any number of threads. Throws shape_error, option_error, std::bad_alloc before
// anything is written.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "heed/api/attention_overloads.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/block_major.hpp"
#include "heed/sparse/gather/row_major.hpp"
#include "heed/sparse/gather/selection_view.hpp"
#include "heed/sparse/gather/tuning.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Whether to run block by block, by the shape alone.
template <class Call, class I>
[[nodiscard]] bool by_blocks(const Call& call, const view<const I, 4>& selection,
                             index block) noexcept {
  using plan = tuning<selected_blocks, typename Call::A>;
  constexpr index most = (std::numeric_limits<listed_token>::max)();
  const score_extents& e = call.extents;
  const index blocks = ceil_div(e.keys, block);
  if (blocks == 0 || e.queries > most || e.keys > most) return false;
  const index rows = passes_of(call, selection, block).rows * selection.extent(3) / blocks;
  const index heads = sharing_heads(call, selection);
  const index gain =
      (plan::key + plan::key_of_head * heads) * block + plan::visit - plan::visit_of_head * heads;
  return rows >= plan::fewest_rows && gain * rows > plan::start_of_head * heads;
}

template <class E, class Call, class I>
void run_selected(E& exec, const Call& call, const view<const I, 4>& selection, index block) {
  require_rows_in_parts<Call>();
  check_selection(selection, block, call.extents);
  // A block of more keys than there are is one of all.
  block = (std::min)(block, std::max<index>(call.extents.keys, 1));
  if (by_blocks(call, selection, block)) {
    run_selected_blocks(exec, call, selection, block);
  } else {
    run_selected_rows(exec, call, selection, block);
  }
}

struct selected_attention_method : api::attention_method {
  template <class E, class Out, class Q, class K, class V, tensor_like S, class... M>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v, const S& selection,
                    index block, const attention_options& options, const M&... modifiers) {
    run_selected(exec, api::open_call(std::forward<Out>(out), q, k, v, options, modifiers...),
                 selection4(selection), block);
  }
};

}  // namespace detail

/// selected_attention_into([executor,] out | into(out, lse), q, k, v, selection, block, options =
/// {}, modifiers...)
inline constexpr api::writing<detail::selected_attention_method, 4, index>
    selected_attention_into{};
/// selected_attention([executor,] q, k, v, selection, block, options = {}, modifiers...) -> a
/// tensor of q's family
inline constexpr api::returning<detail::selected_attention_method, 4, index> selected_attention{};

}  // namespace heed::inline HEED_TARGET
