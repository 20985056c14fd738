// SPDX-License-Identifier: MIT
// The textbook of attention to selected blocks: naive attention under the mask that a selection is.
//
//   visible(row i, key j)  iff  j / block is among selection[batch, S head, i, :]
//
// Arguments and their axes are those of `selected_attention`, which is tested against this. Plain
// loops over every pair and every selected index: O(N M indices) beside the naive attention.
// Accumulator, NaN, empty rows, exceptions as in `naive_attention`.
#pragma once

#include "heed/attention/naive.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/selection_view.hpp"

namespace heed::inline HEED_TARGET {

/// A selection as a mask. `heads` is the number of query heads of the call.
template <class I>
struct selection_mask {
  static constexpr stage when = stage::mask;

  view<const I, 4> selection;  ///< [batch or 1, S heads, queries, indices]
  index block = 1;             ///< keys a selected block
  index heads = 1;

  [[nodiscard]] bool operator()(const position& p) const noexcept {
    const index b = selection.extent(0) == 1 ? 0 : p.batch;
    const index s_heads = selection.extent(1);
    const index h = s_heads == 1 ? 0 : s_heads == heads ? p.head : p.kv_head;
    for (index c = 0; c < selection.extent(3); ++c) {
      if (static_cast<index>(selection(b, h, p.row, c)) == p.key / block) return true;
    }
    return false;
  }
};

/// naive_selected_attention(q, k, v, selection, block, options = {}, modifiers...) -> a tensor of
/// q's family
template <class Q, class K, class V, tensor_like S, class... M>
[[nodiscard]] auto naive_selected_attention(const Q& q, const K& k, const V& v, const S& selection,
                                            index block, const attention_options& options = {},
                                            const M&... modifiers) {
  api::require_tensors<const Q&, const K&, const V&>();
  const auto q4 = api::input4(q);
  const auto k4 = api::input4(k);
  const auto s4 = detail::selection4(selection);
  detail::check_selection(s4, block,
                          {q4.extent(0), q4.extent(1), k4.extent(1), q4.extent(2), k4.extent(2)});
  using I = std::remove_const_t<scalar_of<const S&>>;
  return naive_attention(q, k, v, options, modifiers...,
                         selection_mask<I>{s4, block, q4.extent(1)});
}

}  // namespace heed::inline HEED_TARGET
