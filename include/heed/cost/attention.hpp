// SPDX-License-Identifier: MIT
// The cost of exact softmax attention: naive, tiled (causal and windowed included) and decode.
//
// With B batches, Hq query heads, Hkv key/value heads, N queries, M keys, head dims D and Dv, and P
// the visible pairs of one head (N M without a mask):
//
//   | method | FLOPs               | bytes moved                         | extra memory    |
//   |--------|---------------------|-------------------------------------|-----------------|
//   | naive  | 2 B Hq N M (D + Dv) | Q, K, V, O once; scores four times  | B Hq N M scores |
//   | tiled  | 2 B Hq P (D + Dv)   | Q, O once; K, V per query block     | a task's tiles  |
//   | decode | 2 B Hq P (D + Dv)   | K, V once for a group's heads; Q, O | partial results |
//
// The naive method writes the scores, reads and rewrites them in the softmax and reads them for the
// second product. With D = Dv and no mask all three do the usual 4 N M D a head.
// Source for the tiled traffic: Dao et al., FlashAttention (2022), arXiv:2205.14135, theorem 2.
#pragma once

#include <array>
#include <optional>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/cost/band.hpp"
#include "heed/cost/work.hpp"

namespace heed::inline HEED_TARGET::cost {

struct attention_shape {
  index batch = 1;
  index query_heads = 1;
  index kv_heads = 1;
  index queries = 0;
  index keys = 0;
  index head_dim = 0;
  std::optional<index> value_dim{};  ///< head_dim unless given
  band visible{};
  index scalar_bytes = 4;       ///< of queries, keys, values and output
  index accumulator_bytes = 4;  ///< of scores and sums

  [[nodiscard]] constexpr index values() const noexcept { return value_dim.value_or(head_dim); }
  [[nodiscard]] constexpr double heads() const noexcept {
    return static_cast<double>(batch) * static_cast<double>(query_heads);
  }
  /// Visible pairs of all batches and query heads.
  [[nodiscard]] constexpr double visible_pairs() const noexcept {
    return heads() * static_cast<double>(visible.pairs(queries, keys));
  }
  /// Bytes of Q and O.
  [[nodiscard]] constexpr double query_output_bytes() const noexcept {
    return heads() * static_cast<double>(queries) * static_cast<double>(head_dim + values()) *
           static_cast<double>(scalar_bytes);
  }
  /// Bytes of one row of K and one of V, in one key/value head.
  [[nodiscard]] constexpr double key_value_row_bytes() const noexcept {
    return static_cast<double>(head_dim + values()) * static_cast<double>(scalar_bytes);
  }
};

/// One head, n tokens attending to themselves.
[[nodiscard]] constexpr attention_shape self_attention(index n, index head_dim,
                                                       band visible = {}) noexcept {
  return {.queries = n, .keys = n, .head_dim = head_dim, .value_dim = {}, .visible = visible};
}

/// n x m scores of `heads` heads.
[[nodiscard]] constexpr double score_count(index n, index m, index heads = 1) noexcept {
  return static_cast<double>(n) * static_cast<double>(m) * static_cast<double>(heads);
}
/// Bytes of a score matrix, n x m for each head.
[[nodiscard]] constexpr double score_bytes(index n, index m, index scalar_bytes,
                                           index heads = 1) noexcept {
  return score_count(n, m, heads) * static_cast<double>(scalar_bytes);
}

/// FLOPs on the visible pairs: the two products Q K' and P V. What a rate in GFLOP/s is quoted on.
[[nodiscard]] constexpr double attention_flops(const attention_shape& s) noexcept {
  return 2 * s.visible_pairs() * static_cast<double>(s.head_dim + s.values());
}

/// The three stages of the naive method, each of which needs the whole of the one before: scores,
/// softmax, values. Masked pairs are computed and then thrown away.
/// `heads_at_once`: how many heads' scores exist together; all of them unless given.
[[nodiscard]] constexpr std::array<work, 3> naive_stages(
    const attention_shape& s, std::optional<index> heads_at_once = {}) noexcept {
  const double pairs = s.heads() * score_count(s.queries, s.keys);
  const double matrix = pairs * static_cast<double>(s.accumulator_bytes);
  const double held =
      heads_at_once ? score_bytes(s.queries, s.keys, s.accumulator_bytes, *heads_at_once) : matrix;
  const double scalar = static_cast<double>(s.scalar_bytes);
  const double d = static_cast<double>(s.head_dim);
  const double dv = static_cast<double>(s.values());
  const double query_rows = s.heads() * static_cast<double>(s.queries) * scalar;
  const double key_rows = static_cast<double>(s.batch * s.kv_heads * s.keys) * scalar;
  return {work{2 * pairs * d, query_rows * d + key_rows * d + matrix, held},
          work{0, 2 * matrix, held},
          work{2 * pairs * dv, matrix + key_rows * dv + query_rows * dv, held}};
}

[[nodiscard]] constexpr work naive(const attention_shape& s,
                                   std::optional<index> heads_at_once = {}) noexcept {
  const auto stages = naive_stages(s, heads_at_once);
  return stages[0] + stages[1] + stages[2];
}

/// How a tiled kernel cuts the score matrix. The defaults are those of `heed::attention` in float
/// with 32 vector registers.
struct tiling {
  index query_block = 192;  ///< queries of one task: a block of keys is read once for all of them
  index key_block = 128;
  index score_rows = 48;   ///< queries whose scores against a key block exist together
  index workers = 1;       ///< each has scratch of its own
  double cache_bytes = 0;  ///< K and V of one KV head that fit in it are read from memory once
};

/// Exact attention that never holds more than one tile of scores a worker: memory that depends on
/// neither N nor M. Masks are used: tiles
/// with no visible pair cost nothing. FLOPs are those of visible pairs; `band::computed_pairs`
/// gives those of the tiles.
[[nodiscard]] constexpr work tiled(const attention_shape& s, const tiling& t = {}) noexcept {
  const range all = s.visible.keys({0, s.queries}, s.keys);
  const double kv_head_bytes = static_cast<double>(all.size()) * s.key_value_row_bytes();
  double kv_bytes = 0;
  if (kv_head_bytes <= t.cache_bytes) {
    kv_bytes = static_cast<double>(s.batch * s.kv_heads) * kv_head_bytes;
  } else {
    const index rows = s.visible.key_rows_read(s.queries, s.keys, t.query_block);
    kv_bytes = s.heads() * static_cast<double>(rows) * s.key_value_row_bytes();
  }
  // Of a task: scaled queries, the output and the sum with what rounding has taken from either, the
  // maximum; a tile of scores; a block of keys and values brought to the accumulator type.
  const index scratch = t.query_block * (s.head_dim + 2 * s.values() + 3) +
                        t.score_rows * t.key_block + t.key_block * (s.head_dim + s.values());
  return {attention_flops(s), s.query_output_bytes() + kv_bytes,
          static_cast<double>(t.workers * scratch * s.accumulator_bytes)};
}

/// A few new queries against a cache. Each visible row of K and V is read once for all query heads
/// that share it, so the bytes are those of the cache. `splits` parts of the key axis are worked on
/// apart and merged: each leaves an output and a log-sum-exp a query and head.
[[nodiscard]] constexpr work decode(const attention_shape& s, index splits = 1) noexcept {
  const double rows = static_cast<double>(s.batch * s.kv_heads) *
                      static_cast<double>(s.visible.keys({0, s.queries}, s.keys).size());
  const double partials =
      s.heads() * static_cast<double>(s.queries * splits) * static_cast<double>(s.values() + 1);
  return {attention_flops(s), rows * s.key_value_row_bytes() + s.query_output_bytes(),
          partials * static_cast<double>(s.accumulator_bytes)};
}

/// 2 layers tokens kv_heads head_dim scalar_bytes: keys and values of every layer.
[[nodiscard]] constexpr double kv_cache_bytes(index layers, index tokens, index kv_heads,
                                              index head_dim, index scalar_bytes,
                                              index batch = 1) noexcept {
  return 2.0 * static_cast<double>(layers) * static_cast<double>(tokens) *
         static_cast<double>(kv_heads) * static_cast<double>(head_dim) *
         static_cast<double>(scalar_bytes) * static_cast<double>(batch);
}

}  // namespace heed::inline HEED_TARGET::cost
