// SPDX-License-Identifier: MIT
// BigBird: a window of blocks, global blocks in front, and random blocks drawn from a seed.
//
// Block of queries i sees the blocks |i - k| <= window / 2, the first `global` blocks, and `random`
// others; the first `global` blocks of queries see all. Zaheer et al. 2020, arXiv 2007.14062,
// section 2 and appendix D.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/sparse/pattern/block_pattern.hpp"

namespace heed::inline HEED_TARGET {

struct big_bird_options {
  index window = 3;     ///< blocks around the query's own, odd
  index global = 2;     ///< blocks in front
  index random = 3;     ///< blocks a row beside those
  bool causal = false;  ///< draw from earlier blocks alone; combine with causal() for the diagonal
  std::uint64_t seed = 0;
};

namespace detail {

/// Adds `count` different blocks of `all` outside `seen`, each as likely as another.
inline void draw_others(std::mt19937_64& draw, range all, range seen, index count,
                        std::vector<index>& row) {
  const index others = all.size() - intersect(all, seen).size();
  count = (std::min)(count, others);
  const auto first = static_cast<std::ptrdiff_t>(row.size());
  if (others / 4 <= count) {
    for (index k = all.begin; k < all.end; ++k) {
      if (k < seen.begin || k >= seen.end) row.push_back(k);
    }
    // The first `count` of a shuffle.
    for (index n = 0; n < (std::min)(count, others); ++n) {
      const auto at = first + n;
      const auto left = static_cast<std::uint64_t>(others - n);
      std::swap(row[static_cast<std::size_t>(at)],
                row[static_cast<std::size_t>(at) + static_cast<std::size_t>(draw() % left)]);
    }
    row.resize(static_cast<std::size_t>(first + (std::min)(count, others)));
    return;
  }
  while (static_cast<index>(row.size()) - first < count) {
    const index k = all.begin + static_cast<index>(draw() % static_cast<std::uint64_t>(all.size()));
    const bool known = (k >= seen.begin && k < seen.end) ||
                       std::find(row.begin() + first, row.end(), k) != row.end();
    if (!known) row.push_back(k);
  }
}

}  // namespace detail

/// The same pattern for the same extents, options and seed on every machine. Each head draws its
/// own blocks. Throws shape_error, option_error. Cost O(visible blocks).
[[nodiscard]] inline block_pattern big_bird(const pattern_extents& e,
                                            const big_bird_options& o = {}) {
  if (o.window < 1 || o.window % 2 == 0 || o.global < 0 || o.random < 0) {
    fail<option_error>("big_bird has window " + std::to_string(o.window) + " (odd, at least 1), " +
                       "global " + std::to_string(o.global) + ", random " +
                       std::to_string(o.random));
  }
  if (e.query_block != e.key_block || e.query_block < 1) {
    fail<shape_error>("big_bird has query block " + std::to_string(e.query_block) + ", key block " +
                      std::to_string(e.key_block));
  }
  check_pattern_extents(e);
  const index reach = (std::min)(o.window / 2, e.query_blocks() + e.key_blocks());
  std::mt19937_64 draw(o.seed);
  std::vector<std::vector<index>> rows;
  rows.reserve(static_cast<std::size_t>(e.rows()));
  for (index r = 0; r < e.rows(); ++r) {
    const index i = r % e.query_blocks();
    const index last = o.causal ? (std::min)(i + 1, e.key_blocks()) : e.key_blocks();
    std::vector<index> row;
    if (i < o.global) {
      for (index k = 0; k < last; ++k) row.push_back(k);
    } else {
      for (index k = 0; k < (std::min)(o.global, last); ++k) row.push_back(k);
      for (index k = (std::max)(o.global, i - reach); k < (std::min)(i + reach + 1, last); ++k) {
        row.push_back(k);
      }
      detail::draw_others(draw, {o.global, last}, {i - reach, i + reach + 1}, o.random, row);
    }
    rows.push_back(std::move(row));
  }
  return {e, rows};
}

}  // namespace heed::inline HEED_TARGET
