// SPDX-License-Identifier: MIT
// The textbook of LSH attention: naive attention under the mask that buckets and chunks are.
//
// In a round, the keys in a bucket are sorted by (bucket, position); rank(j) is key j's place. Row i
// has the rank of the last key of its bucket at or before its position, or of the bucket's first
// key where there is none. With c = rank / chunk,
//
//   visible(row i, key j)  iff  in some round both have one bucket and c(i) - c(j) is 0 or 1
//
// Arguments and their axes are those of `lsh_attention` without `shared_qk`; lsh_attention is tested
// against this. Accumulator, NaN, empty rows, exceptions as in `naive_attention`. Kitaev, Kaiser,
// Levskaya 2020, arXiv 2001.04451, section 2.
#pragma once

#include "heed/attention/naive.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/gathered_tile.hpp"

namespace heed::inline HEED_TARGET {

/// Which pairs some round of hashing puts together, from the buckets alone. `heads` is the number of
/// query heads of the call. Holds views: the buckets must outlive it.
template <class I, class J>
struct lsh_mask {
  static constexpr stage when = stage::mask;

  view<const I, 4> query_buckets;  ///< [batch or 1, L heads, rounds, queries]
  view<const J, 4> key_buckets;    ///< [batch or 1, L heads, rounds, keys]
  index chunk = 64;
  index heads = 1;

  [[nodiscard]] bool operator()(const position& p) const noexcept {
    for (index round = 0; round < query_buckets.extent(2); ++round) {
      const index bucket = bucket_of(query_buckets, p, round, p.row);
      if (bucket < 0 || bucket != bucket_of(key_buckets, p, round, p.key)) continue;
      index before = 0;     // keys of lower buckets
      index rank_key = 0;   // keys of this bucket before the key
      index rank_row = -1;  // the last key of this bucket at or before the row's position
      for (index j = 0; j < key_buckets.extent(3); ++j) {
        const index other = bucket_of(key_buckets, p, round, j);
        before += other >= 0 && other < bucket;
        rank_key += other == bucket && j < p.key;
        rank_row += other == bucket && j <= p.query;
      }
      const index row_chunk = (before + (rank_row < 0 ? 0 : rank_row)) / chunk;
      const index key_chunk = (before + rank_key) / chunk;
      if (row_chunk == key_chunk || row_chunk == key_chunk + 1) return true;
    }
    return false;
  }

 private:
  template <class T>
  [[nodiscard]] index bucket_of(const view<const T, 4>& buckets, const position& p, index round,
                                index token) const noexcept {
    const index l_heads = buckets.extent(1);
    const index h = l_heads == 1 ? 0 : l_heads == heads ? p.head : p.kv_head;
    return static_cast<index>(buckets(buckets.extent(0) == 1 ? 0 : p.batch, h, round, token));
  }
};

/// naive_lsh_attention(q, k, v, query_buckets, key_buckets, chunk, options = {}, modifiers...)
/// -> a tensor of q's family
template <class Q, class K, class V, tensor_like L, tensor_like M, class... Mods>
[[nodiscard]] auto naive_lsh_attention(const Q& q, const K& k, const V& v, const L& query_buckets,
                                       const M& key_buckets, index chunk,
                                       const attention_options& options = {},
                                       const Mods&... modifiers) {
  api::require_tensors<const Q&, const K&, const V&>();
  using mask =
      lsh_mask<std::remove_const_t<scalar_of<const L&>>, std::remove_const_t<scalar_of<const M&>>>;
  return naive_attention(q, k, v, options, modifiers...,
                         mask{detail::lists4(query_buckets), detail::lists4(key_buckets), chunk,
                              api::input4(q).extent(1)});
}

}  // namespace heed::inline HEED_TARGET
