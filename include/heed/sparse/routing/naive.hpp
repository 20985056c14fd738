// SPDX-License-Identifier: MIT
// The textbook of routing attention: naive attention under the mask that clusters are.
//
//   visible(row i, key j)  iff  some cluster lists i among its queries and j among its keys
//
// Arguments and their axes are those of `routing_attention`, which is tested against this.
// Accumulator, NaN, empty rows, exceptions as in `naive_attention`. Roy, Saffar, Vaswani, Grangier
// 2021, arXiv 2003.05997, section 4.
#pragma once

#include "heed/attention/naive.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"

namespace heed::inline HEED_TARGET {

/// Clusters as a mask. `heads` is the number of query heads of the call. Holds views: the lists must
/// outlive it.
template <class I, class J>
struct cluster_mask {
  static constexpr stage when = stage::mask;

  view<const I, 4> queries;  ///< [batch or 1, L heads, clusters, window]
  view<const J, 4> keys;     ///< [batch or 1, L heads, clusters, other window]
  index heads = 1;

  [[nodiscard]] bool operator()(const position& p) const noexcept {
    for (index c = 0; c < queries.extent(2); ++c) {
      if (lists(queries, p, c, p.row) && lists(keys, p, c, p.key)) return true;
    }
    return false;
  }

 private:
  template <class T>
  [[nodiscard]] bool lists(const view<const T, 4>& members, const position& p, index cluster,
                           index token) const noexcept {
    const index b = members.extent(0) == 1 ? 0 : p.batch;
    const index l_heads = members.extent(1);
    const index h = l_heads == 1 ? 0 : l_heads == heads ? p.head : p.kv_head;
    for (index i = 0; i < members.extent(3); ++i) {
      if (static_cast<index>(members(b, h, cluster, i)) == token) return true;
    }
    return false;
  }
};

/// naive_routing_attention(q, k, v, queries, keys, options = {}, modifiers...) -> a tensor of q's
/// family
template <class Q, class K, class V, tensor_like L, tensor_like M, class... Mods>
[[nodiscard]] auto naive_routing_attention(const Q& q, const K& k, const V& v, const L& queries,
                                           const M& keys, const attention_options& options = {},
                                           const Mods&... modifiers) {
  api::require_tensors<const Q&, const K&, const V&>();
  using mask = cluster_mask<std::remove_const_t<scalar_of<const L&>>,
                            std::remove_const_t<scalar_of<const M&>>>;
  return naive_attention(
      q, k, v, options, modifiers...,
      mask{detail::lists4(queries), detail::lists4(keys), api::input4(q).extent(1)});
}

}  // namespace heed::inline HEED_TARGET
