// SPDX-License-Identifier: MIT
// What the sparse methods of the comparison compute and read, in closed form.
//
// Both are causal. With n tokens, in one head:
//
//   longformer  query p sees the last w keys and the first g: min(p + 1, w) keys and, of those
//               before its window, min(g, max(0, p + 1 - w))
//   big_bird    block i of queries sees min(i + 1, b) blocks, b = global + window / 2 + 1 + random,
//               for what the global blocks, the window and the draw may still see is all before i;
//               of its own block, the last of them, a query sees up to itself
//
// so that the sums are those of bands, of keys and of blocks.
#pragma once

#include "heed/cost.hpp"
#include "heed/sparse.hpp"

namespace wall {

using heed::index;
namespace cost = heed::cost;

[[nodiscard]] constexpr index longformer_pairs(index n, index window, index global) noexcept {
  const index beyond = n - window;
  return cost::causal_window(window).pairs(n, n) +
         cost::causal_window(global).pairs(beyond, beyond);
}

/// Key rows read when each `block` of queries reads once what any of them sees.
[[nodiscard]] constexpr index longformer_key_rows(index n, index window, index global,
                                                  index block) noexcept {
  index rows = cost::causal_window(window).key_rows_read(n, n, block);
  const index blocks = heed::ceil_div(n, block);
  index t = 0;
  // Up to the first block that has all global keys before its window; the others are like it.
  for (; t < blocks && block * t - window + 1 < global; ++t) {
    const index before = block * t - window + 1;
    rows += before > 0 ? before : 0;
  }
  return rows + (blocks - t) * global;
}

/// BigBird as published, in blocks of 128: 2 global ones, a window of 3, 3 at random.
inline constexpr heed::big_bird_options big_bird_blocks_seen{.causal = true};
inline constexpr index big_bird_block = 128;

/// Blocks that a row sees where there are enough before it.
[[nodiscard]] constexpr index big_bird_width(const heed::big_bird_options& o) noexcept {
  return o.global + o.window / 2 + 1 + o.random;
}

[[nodiscard]] constexpr index big_bird_blocks(index n, index block,
                                              const heed::big_bird_options& o) noexcept {
  const index rows = heed::ceil_div(n, block);
  return cost::causal_window(big_bird_width(o)).pairs(rows, rows);
}

[[nodiscard]] constexpr index big_bird_pairs(index n, index block,
                                             const heed::big_bird_options& o) noexcept {
  const index rows = n / block;
  const index rest = n % block;
  const index before = big_bird_width(o) - 1;  // blocks besides the own one, at most
  const index own = rows * (block * (block + 1) / 2) + rest * (rest + 1) / 2;
  const index others = cost::causal_window(before + 1).pairs(rows, rows) - rows;
  return own + block * block * others + rest * block * (rows < before ? rows : before);
}

/// Key rows read when each block of queries reads its blocks once.
[[nodiscard]] constexpr index big_bird_key_rows(index n, index block,
                                                const heed::big_bird_options& o) noexcept {
  const index rest = n % block;
  return big_bird_blocks(n, block, o) * block - (rest == 0 ? 0 : block - rest);
}

}  // namespace wall
