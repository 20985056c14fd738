// SPDX-License-Identifier: MIT
// Pictures as SVG text: a drawing that follows the reader's light or dark background.
//
// What is drawn names a class, and the style in the picture gives each class its colour on either
// background:
//
// | class   | is                                  | light   | dark    |
// |---------|-------------------------------------|---------|---------|
// | ground  | the background, framed              | #ffffff | #0d1117 |
// | full    | what is there                       | #0072b2 | #56b4e9 |
// | partial | what is partly there                | #9ecae1 | #1f4e79 |
// | mark    | lines over the rest, without a fill | #d55e00 | #e69f00 |
// | text    | labels                              | #222222 | #e6edf3 |
#pragma once

#include <ostream>
#include <sstream>
#include <string>
#include <string_view>

#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET::svg {

/// Which background a picture is made for: that of the reader, by the media query
/// prefers-color-scheme, or one.
enum class theme { automatic, light, dark };

/// Text as the content of an element: & < > " ' are escaped, control characters left out.
[[nodiscard]] inline std::string escaped(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      case '\'':
        safe += "&#39;";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20) safe += c;
    }
  }
  return safe;
}

/// The style element of a theme.
[[nodiscard]] inline std::string style_of(theme t) {
  const std::string light =
      ".ground{fill:#ffffff;stroke:#222222}.full{fill:#0072b2}.partial{fill:#9ecae1}"
      ".mark{fill:none;stroke:#d55e00}text{fill:#222222;font-family:sans-serif}";
  const std::string dark =
      ".ground{fill:#0d1117;stroke:#e6edf3}.full{fill:#56b4e9}.partial{fill:#1f4e79}"
      ".mark{fill:none;stroke:#e69f00}text{fill:#e6edf3;font-family:sans-serif}";
  const std::string rules = t == theme::light ? light
                            : t == theme::dark
                                ? dark
                                : light + "@media(prefers-color-scheme:dark){" + dark + "}";
  return "<style>" + rules + "</style>\n";
}

/// A picture that is written from the back to the front. Its user units are the caller's.
class document {
 public:
  /// Everything from (left, top) on is seen, `width` by `height` units.
  document(double left, double top, double width, double height, std::string_view title, theme t) {
    out_ << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"" << left << ' ' << top << ' '
         << width << ' ' << height << "\">\n<title>" << escaped(title) << "</title>\n"
         << style_of(t);
  }

  /// The framed background from (0, 0) on.
  void ground(double width, double height) {
    out_ << "<rect width=\"" << width << "\" height=\"" << height << "\" class=\"ground\"/>\n";
  }
  void square(double x, double y, double width, double height, std::string_view kind) {
    out_ << "<rect x=\"" << x << "\" y=\"" << y << "\" width=\"" << width << "\" height=\""
         << height << "\" class=\"" << kind << "\"/>\n";
  }
  /// `data` as in the attribute d of a path; `attributes` follow it.
  void path(std::string_view data, std::string_view kind, std::string_view attributes = "") {
    out_ << "<path class=\"" << kind << "\" " << attributes << " d=\"" << data << "\"/>\n";
  }
  void text(double x, double y, std::string_view words, std::string_view attributes = "") {
    out_ << "<text x=\"" << x << "\" y=\"" << y << "\" " << attributes << '>' << escaped(words)
         << "</text>\n";
  }

  [[nodiscard]] std::string str() const { return out_.str() + "</svg>\n"; }

 private:
  std::ostringstream out_;
};

}  // namespace heed::inline HEED_TARGET::svg
