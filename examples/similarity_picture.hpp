// SPDX-License-Identifier: MIT
// Draws how alike texts are as an SVG: a row and a column a text, in each cell the cosine of their
// vectors, shaded from 0 to 1.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <heed/draw.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace similarity {

inline constexpr std::size_t most_texts = 200;

/// The first `characters` of UTF-8 text, with an ellipsis where some are left out.
inline std::string shortened(const std::string& text, std::size_t characters) {
  const auto starts_character = [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80;
  };
  std::size_t seen = 0;
  std::size_t keep = 0;  // bytes of all characters but the last that fits
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!starts_character(text[i])) continue;
    if (seen + 1 == characters) keep = i;
    if (seen++ == characters) return text.substr(0, keep) + "…";
  }
  return text;
}

inline std::string decimal(double number, int digits) {
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", digits, number);
  const bool zero = std::strspn(text, "-0.") == std::strlen(text);
  return text + (zero && text[0] == '-' ? 1 : 0);
}

/// `vectors` has a text's vector of unit length a row. Throws std::runtime_error where there is not
/// one for each text, or more than a picture shows.
inline std::string to_svg(const Eigen::Ref<const Eigen::MatrixXf>& vectors,
                          const std::vector<std::string>& texts) {
  const std::size_t count = texts.size();
  if (static_cast<std::size_t>(vectors.rows()) != count || count > most_texts) {
    throw std::runtime_error("a picture shows at most " + std::to_string(most_texts) + " texts, " +
                             std::to_string(count) + " given, with " +
                             std::to_string(vectors.rows()) + " vectors");
  }
  const Eigen::MatrixXd wide = vectors.cast<double>();
  const Eigen::MatrixXd cosines = wide * wide.transpose();

  static constexpr double margin = 375;  // left of the cells, for the texts
  const double unit =
      std::clamp(480 / static_cast<double>(std::max<std::size_t>(count, 1)), 6.0, 34.0);
  const double side = unit * static_cast<double>(count);
  const double size = std::min(12.0, 0.8 * unit);
  const std::string font = "font-size=\"" + decimal(size, 1) + "\" text-anchor=";
  const std::string small = "font-size=\"" + decimal(size * 0.9, 1) + "\" text-anchor=\"middle\"";
  heed::svg::document picture(-margin, -20, margin + side + 1, side + 21,
                              "How alike " + std::to_string(count) + " texts are",
                              heed::svg::theme::automatic);
  picture.ground(side, side);
  for (std::size_t i = 0; i < count; ++i) {
    const double y = unit * static_cast<double>(i);
    const double middle = y + 0.5 * unit + 0.35 * size;
    const std::string number = std::to_string(i + 1);
    picture.text(-6, middle, shortened(texts[i], 54) + "  " + number, font + "\"end\"");
    if (unit >= 12) picture.text(y + 0.5 * unit, -6, number, small);
    for (std::size_t j = 0; j < count; ++j) {
      const double cosine = cosines(static_cast<Eigen::Index>(i), static_cast<Eigen::Index>(j));
      const std::string shade = decimal(std::clamp(cosine, 0.0, 1.0), 2);
      const double x = unit * static_cast<double>(j);
      picture.path("M" + decimal(x, 1) + " " + decimal(y, 1) + "h" + decimal(unit, 1) + "v" +
                       decimal(unit, 1) + "h-" + decimal(unit, 1) + "z",
                   "full", "fill-opacity=\"" + shade + "\"");
      if (unit < 26 || i == j) continue;
      // On a dark shade the words have the colour of the background.
      const bool inverse = cosine > 0.7;
      picture.text(x + 0.5 * unit, middle, decimal(cosine, 2),
                   small + (inverse ? " class=\"ground\" style=\"stroke:none\"" : ""));
    }
  }
  return picture.str();
}

}  // namespace similarity
