// SPDX-License-Identifier: MIT
// Draws losses over steps as an SVG: two curves, and level lines to compare them with.
#pragma once

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

struct loss_point {
  int step;
  double training, held_out;  // bits a character
};

class loss_curve {
 public:
  void add(const loss_point& p) { points_.push_back(p); }
  void add_level(double bits, std::string name) { levels_.emplace_back(bits, std::move(name)); }

  void save(const std::string& path) const {
    std::ofstream file(path);
    file << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 420\" "
            "font-family=\"sans-serif\" font-size=\"13\">\n"
            "<rect width=\"720\" height=\"420\" fill=\"white\"/>\n";
    for (int bits = 0; bits <= 8; bits += 2) {
      file << line(x(0), y(bits), x(last()), y(bits), "#ddd", "")
           << text(40, y(bits) + 4, "end", "black", std::to_string(bits));
    }
    for (int i = 0; i <= 4; ++i) {
      const int step = last() * i / 4;
      file << text(x(step), 385, "middle", "black", std::to_string(step));
    }
    file << text(380, 408, "middle", "black", "step")
         << text(48, 22, "start", "black", "loss, bits a character");
    for (const auto& [bits, name] : levels_) {
      file << line(x(0), y(bits), x(last()), y(bits), "#888", " stroke-dasharray=\"5 4\"")
           << text(x(last()), y(bits) - 5, "end", "#555", name + format(": %.2f", bits));
    }
    file << curve("#1f77b4", &loss_point::training) << curve("#d62728", &loss_point::held_out)
         << text(x(last()), 40, "end", "#1f77b4", "training text")
         << text(x(last()), 58, "end", "#d62728", "held-out text") << "</svg>\n";
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
  }

 private:
  static std::string format(const char* how, double number) {
    char text[32];
    std::snprintf(text, sizeof text, how, number);
    return text;
  }
  [[nodiscard]] int last() const { return points_.empty() ? 1 : std::max(1, points_.back().step); }
  [[nodiscard]] double x(int step) const { return 50 + 650.0 * step / last(); }
  static double y(double bits) { return 365 - 41.0 * bits; }

  static std::string line(double x0, double y0, double x1, double y1, const std::string& colour,
                          const std::string& more) {
    return "<path d=\"M" + format("%.1f", x0) + format(" %.1f", y0) + "L" + format("%.1f", x1) +
           format(" %.1f", y1) + "\" stroke=\"" + colour + "\"" + more + "/>\n";
  }
  static std::string text(double at_x, double at_y, const std::string& anchor,
                          const std::string& colour, const std::string& words) {
    return "<text x=\"" + format("%.1f", at_x) + "\" y=\"" + format("%.1f", at_y) +
           "\" text-anchor=\"" + anchor + "\" fill=\"" + colour + "\">" + words + "</text>\n";
  }
  [[nodiscard]] std::string curve(const std::string& colour, double loss_point::* loss) const {
    std::string path;
    for (const loss_point& p : points_) {
      path += (path.empty() ? "M" : "L") + format("%.1f", x(p.step)) + format(" %.1f", y(p.*loss));
    }
    return "<path d=\"" + path + "\" stroke=\"" + colour +
           "\" stroke-width=\"2\" fill=\"none\"/>\n";
  }

  std::vector<loss_point> points_;
  std::vector<std::pair<double, std::string>> levels_;
};
