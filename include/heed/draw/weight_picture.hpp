// SPDX-License-Identifier: MIT
// A map of weights as SVG: queries down, keys across, the blocks of its pattern outlined.
//
//   shade of a cell = sqrt(share / largest share), in 32 steps
//
// The root shows small weights beside large ones. A cell that has no weight is not drawn. With a
// label a token, the axes are labelled where a row and a column stand for one token each.
#pragma once

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "heed/core/target.hpp"
#include "heed/draw/weight_map.hpp"
#include "heed/sparse/pattern/svg.hpp"

namespace heed::inline HEED_TARGET {

struct weight_picture_options {
  index side = 480;  ///< units of the longer side, without labels
  svg::theme theme = svg::theme::automatic;
  std::string title = {};                      ///< more words before those that say what is drawn
  std::vector<std::string> query_labels = {};  ///< one a query, or none
  std::vector<std::string> key_labels = {};    ///< one a key, or none
};

namespace detail {

/// The cells of each shade, as the data of a path: [shade - 1].
[[nodiscard]] inline std::vector<std::string> cells_by_shade(const weight_map& m, int shades,
                                                             double unit) {
  double most = 0;
  for (index r = 0; r < m.share.extent(0); ++r) {
    for (index c = 0; c < m.share.extent(1); ++c) {
      if (m.share(r, c) > most && std::isfinite(m.share(r, c))) most = m.share(r, c);
    }
  }
  const auto shade_of = [&](index r, index c) {
    const double root = std::sqrt(std::clamp(m.share(r, c) / most, 0.0, 1.0));
    return root > 0 ? static_cast<int>(std::ceil(root * shades)) : 0;  // NaN: none
  };
  std::vector<std::ostringstream> paths(static_cast<std::size_t>(shades));
  for (index r = 0; most > 0 && r < m.share.extent(0); ++r) {
    for (index c = 0; c < m.share.extent(1);) {
      const int shade = shade_of(r, c);
      const index first = c;
      while (c < m.share.extent(1) && shade_of(r, c) == shade) ++c;
      if (shade == 0) continue;
      const double width = unit * static_cast<double>(c - first);
      paths[static_cast<std::size_t>(shade - 1)] << 'M' << unit * static_cast<double>(first) << ' '
                                                 << unit * static_cast<double>(r) << 'h' << width
                                                 << 'v' << unit << 'h' << -width << 'z';
    }
  }
  std::vector<std::string> data;
  for (const auto& path : paths) data.push_back(path.str());
  return data;
}

/// Lines between blocks that the pattern sees and blocks that it does not, clipped to the queries
/// and keys there are.
[[nodiscard]] inline std::string outline_of(const block_pattern& p, index batch, index head,
                                            double query_unit, double key_unit) {
  const pattern_extents& e = p.extents();
  const auto columns = static_cast<std::size_t>(e.key_blocks());
  const auto x = [&](std::size_t k) {
    return key_unit * static_cast<double>((std::min)(static_cast<index>(k) * e.key_block, e.keys));
  };
  const auto y = [&](index q) {
    return query_unit * static_cast<double>((std::min)(q * e.query_block, e.queries));
  };
  std::ostringstream lines;
  std::vector<bool> above(columns, false);
  for (index q = 0; q <= e.query_blocks(); ++q) {
    std::vector<bool> here(columns, false);
    for (const block_entry& b : p.row(batch, head, q)) {
      here[static_cast<std::size_t>(b.key_block)] = true;
    }
    bool before = false;
    for (std::size_t k = 0; k <= columns; ++k) {
      const bool now = k < columns && here[k];
      if (now != before) lines << 'M' << x(k) << ' ' << y(q) << 'V' << y(q + 1);
      if (k < columns && here[k] != above[k])
        lines << 'M' << x(k) << ' ' << y(q) << 'H' << x(k + 1);
      before = now;
    }
    above = here;
  }
  return lines.str();
}

[[nodiscard]] inline std::string caption_of(const weight_map& m, const std::string& title) {
  std::ostringstream words;
  if (!title.empty()) words << title << ": ";
  if (m.head) {
    words << "head " << *m.head;
  } else {
    words << "mean of all heads";
  }
  words << ", " << m.queries << " queries by " << m.keys << " keys";
  if (m.query_cell > 1 || m.key_cell > 1) {
    words << ", cells of " << m.query_cell << " by " << m.key_cell;
  }
  if (m.recall) {
    words.precision(3);
    words << std::fixed << ", recall " << *m.recall;
  }
  return words.str();
}

}  // namespace detail

/// The map as a picture. Throws shape_error where labels are given and there is not one for each
/// query or key.
[[nodiscard]] inline std::string to_svg(const weight_map& m, const weight_picture_options& o = {}) {
  const auto check = [](const char* name, const std::vector<std::string>& labels, index tokens) {
    if (!labels.empty() && static_cast<index>(labels.size()) != tokens) {
      fail<shape_error>(std::string(name) + " has " + std::to_string(labels.size()) +
                        " entries, the map has " + std::to_string(tokens) + " tokens");
    }
  };
  check("query_labels", o.query_labels, m.queries);
  check("key_labels", o.key_labels, m.keys);
  const index rows = m.share.extent(0);
  const index columns = m.share.extent(1);
  const double unit =
      static_cast<double>(o.side) / static_cast<double>(std::max<index>({rows, columns, 1}));
  const double width = unit * static_cast<double>(columns);
  const double height = unit * static_cast<double>(rows);
  const bool left = !o.query_labels.empty() && m.query_cell == 1;
  const bool top = !o.key_labels.empty() && m.key_cell == 1;
  const double margin = 90;
  const double caption = 22;

  const std::string words = detail::caption_of(m, o.title);
  const double x0 = left ? -margin : -1;
  const double y0 = top ? -margin : -1;
  svg::document picture(x0, y0, width + 1 - x0, height + caption + 1 - y0, words, o.theme);
  picture.ground(width, height);
  constexpr int shades = 32;
  const auto cells = detail::cells_by_shade(m, shades, unit);
  for (int s = 0; s < shades; ++s) {
    const std::string& data = cells[static_cast<std::size_t>(s)];
    if (data.empty()) continue;
    std::ostringstream opacity;
    opacity << "fill-opacity=\"" << static_cast<double>(s + 1) / shades << '"';
    picture.path(data, "full", opacity.str());
  }
  if (m.pattern) {
    picture.path(detail::outline_of(*m.pattern, m.batch, m.head.value_or(0),
                                    unit / static_cast<double>(m.query_cell),
                                    unit / static_cast<double>(m.key_cell)),
                 "mark", "stroke-width=\"1.5\"");
  }
  const double size = std::clamp(unit * 0.8, 4.0, 12.0);
  const std::string font = "font-size=\"" + std::to_string(size) + '"';
  for (index i = 0; left && i < rows; ++i) {
    picture.text(-4, unit * (static_cast<double>(i) + 0.5) + 0.35 * size,
                 o.query_labels[static_cast<std::size_t>(i)], font + " text-anchor=\"end\"");
  }
  for (index j = 0; top && j < columns; ++j) {
    const double x = unit * (static_cast<double>(j) + 0.5) + 0.35 * size;
    picture.text(x, -4, o.key_labels[static_cast<std::size_t>(j)],
                 font + " transform=\"rotate(-90 " + std::to_string(x) + " -4)\"");
  }
  picture.text(0, height + 16, words, "font-size=\"12\"");
  return picture.str();
}

}  // namespace heed::inline HEED_TARGET
