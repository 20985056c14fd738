// SPDX-License-Identifier: MIT
// Pictures of a block pattern: for the terminal, and as SVG.
#pragma once

#include <algorithm>
#include <string>

#include "heed/core/target.hpp"
#include "heed/sparse/pattern/block_pattern.hpp"
#include "heed/sparse/pattern/svg.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// What a square of `step` x `step` blocks holds together.
inline coverage square_of(const block_pattern& p, index batch, index head, index query, index key,
                          index step) {
  bool any = false;
  bool all = true;
  const pattern_extents& e = p.extents();
  for (index q = query; q < (std::min)(query + step, e.query_blocks()); ++q) {
    for (index k = key; k < (std::min)(key + step, e.key_blocks()); ++k) {
      const coverage c = p.at(batch, head, q, k);
      any = any || c != coverage::empty;
      all = all && c == coverage::full;
    }
  }
  return !any ? coverage::empty : all ? coverage::full : coverage::partial;
}

}  // namespace detail

/// One line a block of queries, one character a key block: `#` full, `+` partial, `.` empty. Of
/// more than `width` blocks a character stands for a square of several.
[[nodiscard]] inline std::string to_text(const block_pattern& p, index batch = 0, index head = 0,
                                         index width = 64) {
  const pattern_extents& e = p.extents();
  const index blocks = (std::max)(e.query_blocks(), e.key_blocks());
  const index step = std::max<index>(1, ceil_div(blocks, std::max<index>(width, 1)));
  std::string text;
  for (index q = 0; q < e.query_blocks(); q += step) {
    for (index k = 0; k < e.key_blocks(); k += step) {
      const coverage c = detail::square_of(p, batch, head, q, k, step);
      text += c == coverage::full ? '#' : c == coverage::partial ? '+' : '.';
    }
    text += '\n';
  }
  return text;
}

/// Full blocks in a strong colour, partial ones in a weak one, a frame around all; `side` units wide
/// at the most.
[[nodiscard]] inline std::string to_svg(const block_pattern& p, index batch = 0, index head = 0,
                                        index side = 480,
                                        svg::theme theme = svg::theme::automatic) {
  const pattern_extents& e = p.extents();
  const index blocks = std::max<index>({e.query_blocks(), e.key_blocks(), 1});
  const double unit = static_cast<double>(side) / static_cast<double>(blocks);
  const double width = unit * static_cast<double>(e.key_blocks());
  const double height = unit * static_cast<double>(e.query_blocks());
  svg::document picture(-1, -1, width + 2, height + 2,
                        std::to_string(e.queries) + " queries by " + std::to_string(e.keys) +
                            " keys, blocks of " + std::to_string(e.query_block) + " by " +
                            std::to_string(e.key_block),
                        theme);
  picture.ground(width, height);
  for (index q = 0; q < e.query_blocks(); ++q) {
    for (const block_entry& b : p.row(batch, head, q)) {
      picture.square(unit * static_cast<double>(b.key_block), unit * static_cast<double>(q), unit,
                     unit, b.full ? "full" : "partial");
    }
  }
  return picture.str();
}

}  // namespace heed::inline HEED_TARGET
