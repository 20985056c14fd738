// SPDX-License-Identifier: MIT
// The picture: two log-log panels as SVG, and one for the terminal, both drawn by gnuplot.
//
// Colours are those of Okabe and Ito, told apart by colour-blind readers, and for the recurrences
// darker ones, dashed; markers differ too, and every line is labelled at its end instead of in a
// legend.
#pragma once

#include <stdio.h>  // popen, pclose

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "format.hpp"
#include "measure.hpp"

namespace wall {

/// A pipe to gnuplot. `close` is false when gnuplot is not there or failed.
class gnuplot {
 public:
  gnuplot() : pipe_(popen("gnuplot", "w")) {}
  gnuplot(const gnuplot&) = delete;
  gnuplot& operator=(const gnuplot&) = delete;
  ~gnuplot() { (void)close(); }

  /// Whether there is a gnuplot to write to.
  [[nodiscard]] static bool installed() {
    FILE* p = popen("gnuplot --version >/dev/null 2>&1", "r");
    return p != nullptr && pclose(p) == 0;
  }
  void operator()(const std::string& line) {
    if (pipe_ != nullptr) std::fprintf(pipe_, "%s\n", line.c_str());
  }
  [[nodiscard]] bool close() {
    if (pipe_ == nullptr) return false;
    const int status = pclose(pipe_);
    pipe_ = nullptr;
    return status == 0;
  }

 private:
  FILE* pipe_;
};

struct mark {
  const char* colour;
  int marker;
  double size;  ///< later curves are drawn over earlier ones, which must still be seen beneath
  const char* dash = "solid";
};

[[nodiscard]] inline mark mark_of(std::size_t curve_number) {
  static constexpr mark marks[] = {{"#D55E00", 13, 1.2},       {"#CC79A7", 5, 0.7},
                                   {"#0072B2", 7, 1.1},        {"#009E73", 9, 0.8},
                                   {"#E69F00", 15, 0.8},       {"#56B4E9", 2, 0.9},
                                   {"#000000", 11, 1.1},       {"#882255", 6, 0.9, "'-'"},
                                   {"#332288", 4, 0.8, "'.'"}, {"#6B6B00", 8, 0.9, "'-.'"}};
  return marks[curve_number % std::size(marks)];
}

/// Label heights, at least `gap` apart in log10, each as near to its line's end as that allows.
[[nodiscard]] inline std::vector<double> spread(const std::vector<double>& ends, double gap) {
  std::vector<std::size_t> order(ends.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return ends[a] < ends[b]; });
  std::vector<double> at = ends;
  for (int round = 0; round < 200; ++round) {
    for (std::size_t i = 1; i < order.size(); ++i) {
      double& low = at[order[i - 1]];
      double& high = at[order[i]];
      if (high - low < gap) {
        const double middle = (high + low) / 2;
        low = middle - gap / 2;
        high = middle + gap / 2;
      }
    }
  }
  return at;
}

/// One panel of the current multiplot. `reference` is a horizontal line with a name.
inline void draw_panel(gnuplot& g, const std::vector<curve>& curves, bool memory,
                       const settings& s) {
  struct line {
    std::size_t curve_number;
    std::vector<sample> samples;
  };
  std::vector<line> lines;
  double low = 1e300;
  double high = 0;
  for (std::size_t i = 0; i < curves.size(); ++i) {
    std::vector<sample> samples = memory ? curves[i].memories() : curves[i].times();
    for (sample& p : samples) {
      p.y = std::max(p.y, memory ? 1024.0 : 1e-9);
      low = std::min(low, p.y);
      high = std::max(high, p.y);
    }
    if (!samples.empty()) lines.push_back({i, samples});
  }
  if (lines.empty()) return;
  const double budget = memory ? 1024.0 * 1024 * 1024 : 1.0;
  low /= 3;
  high = std::max(high, budget) * 4;

  std::vector<double> ends;
  for (const line& l : lines) ends.push_back(std::log10(l.samples.back().y));
  const std::vector<double> heights = spread(ends, 0.055 * std::log10(high / low));
  // Labels of lines that end together reach below them: room for the lowest, and in the time panel
  // for what slopes one and two look like, below it.
  const double below = memory ? 1.5 : 50;
  low = std::min(low, std::pow(10, *std::min_element(heights.begin(), heights.end())) / below);

  const double right = static_cast<double>(s.max_n);
  g("unset label; unset arrow; set title '" +
    std::string(memory ? "Peak memory besides inputs and output" : "Time of one call") +
    "' font ',19'");
  g("set xrange [" + printed("%g", static_cast<double>(s.min_n) / 1.25) + ":" +
    printed("%g", right * 1.25) + "]");
  g("set yrange [" + printed("%g", low) + ":" + printed("%g", high) + "]");
  std::string ticks;
  if (memory) {
    const char* units[] = {"KiB", "MiB", "GiB", "TiB"};
    for (int power = 10; power < 50; power += 2) {
      if (std::pow(2.0, power) < low || std::pow(2.0, power) > high) continue;
      ticks += (ticks.empty() ? "" : ", ") + ("'" + printed("%g", std::pow(2.0, power % 10))) +
               " " + units[power / 10 - 1] + "' " + printed("%.17g", std::pow(2.0, power));
    }
  } else {
    const char* names[] = {"1 ns",  "10 ns",  "100 ns", "1 µs", "10 µs", "100 µs", "1 ms",
                           "10 ms", "100 ms", "1 s",    "10 s", "100 s", "1000 s"};
    for (std::size_t i = 0; i < std::size(names); ++i) {
      const double y = std::pow(10.0, static_cast<double>(i) - 9);
      if (y < low || y > high) continue;
      ticks +=
          (ticks.empty() ? "" : ", ") + ("'" + std::string(names[i])) + "' " + printed("%.17g", y);
    }
  }
  g("set ytics (" + ticks + ")");

  // The budget, and in the time panel what slopes one and two look like.
  g("set arrow from graph 0, first " + printed("%g", budget) + " to graph 1, first " +
    printed("%g", budget) + " nohead lc rgb '#999999' dt 2 lw 1.2 back");
  g("set label '" + std::string(memory ? "1 GiB" : "1 second") + "' at graph 0.02, first " +
    printed("%g", budget * std::pow(high / low, 0.025)) + " tc rgb '#666666' font ',14'");
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const line& l = lines[i];
    g("set label '" + curves[l.curve_number].name + "' at " +
      printed("%g", l.samples.back().n * 1.14) + ", " + printed("%g", std::pow(10, heights[i])) +
      " tc rgb '" + mark_of(l.curve_number).colour + "' font ',16' noenhanced");
  }
  std::string plot = "plot ";
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const mark m = mark_of(lines[i].curve_number);
    g("$c" + std::to_string(i) + " << EOD");
    for (const sample& p : lines[i].samples) g(printed("%g ", p.n) + printed("%g", p.y));
    g("EOD");
    plot += (i != 0 ? ", " : "") + ("$c" + std::to_string(i)) + " with linespoints lc rgb '" +
            m.colour + "' dt " + m.dash + " lw 2.6 pt " + std::to_string(m.marker) + " ps " +
            printed("%g", m.size) + " notitle";
  }
  if (!memory) {
    // At the lower right, where the slowest growing method leaves room.
    const double x0 = right / 4;
    const double x1 = right;
    const double y0 = low * 1.6;
    for (const int slope : {1, 2}) {
      const double y1 = y0 * std::pow(x1 / x0, slope);
      g("set arrow from " + printed("%g", x0) + "," + printed("%g", y0) + " to " +
        printed("%g", x1) + "," + printed("%g", y1) + " nohead lc rgb '#999999' dt 2 lw 1.2 back");
      g("set label 'n" + std::string(slope == 2 ? "²" : "") + "' at " + printed("%g", x1 * 1.14) +
        "," + printed("%g", y1) + " tc rgb '#666666' font ',14'");
    }
  }
  g(plot);
}

inline void set_log_axes(gnuplot& g, const settings& s) {
  g("set logscale x 2; set logscale y 10");
  std::string ticks;
  for (index n = 1; n <= s.max_n; n *= 2) {
    if (n < s.min_n) continue;
    const std::string name = n >= 1024 ? std::to_string(n / 1024) + "K" : std::to_string(n);
    ticks += (ticks.empty() ? "'" : ", '") + name + "' " + std::to_string(n);
  }
  g("set xtics (" + ticks + ")");
}

/// False when gnuplot failed.
inline bool draw_svg(const std::vector<curve>& curves, const settings& s) {
  gnuplot g;
  std::string path;
  for (const char c : s.output) path += c == '\'' ? std::string("''") : std::string(1, c);
  g("set encoding utf8");
  g("set terminal svg size 1280,600 enhanced font 'Helvetica,Arial,sans-serif,15' background "
    "'#ffffff'");
  g("set output '" + path + "'");
  g("set border 3 lc rgb '#444444'; set tics nomirror out; set grid ytics lc rgb '#e6e6e6' lt 1");
  g("set xlabel 'tokens n' font ',16'");
  set_log_axes(g, s);
  const std::string threads = std::to_string(s.threads) + (s.threads == 1 ? " thread" : " threads");
  const std::string heads = s.heads == 1 ? "one head" : std::to_string(s.heads) + " heads";
  g("set multiplot title 'Causal self-attention, float, " + heads + " of dimension " +
    std::to_string(s.head_dim) + ", window " + std::to_string(s.window) + ", " + threads +
    "' font ',15' textcolor rgb '#444444' offset 0,-0.3");
  g("set origin 0,0; set size 0.5,0.95; set lmargin 10; set rmargin 15; set bmargin 4; set tmargin "
    "3");
  draw_panel(g, curves, false, s);
  g("set origin 0.5,0; set size 0.5,0.95");
  draw_panel(g, curves, true, s);
  g("unset multiplot");
  return g.close();
}

/// Time over n in the terminal, each method by its letter.
inline bool draw_terminal(const std::vector<curve>& curves, const settings& s) {
  std::fflush(stdout);
  gnuplot g;
  g("set terminal dumb 79,24 noenhanced");
  set_log_axes(g, s);
  g("set format y '%.0e s'; set border 3; set tics nomirror; set title 'time of one call over n'");
  g("set key outside right top");
  g("set xrange [" + printed("%g", static_cast<double>(s.min_n) / 1.25) + ":" +
    printed("%g", static_cast<double>(s.max_n) * 1.25) + "]");
  std::string plot = "plot ";
  for (std::size_t i = 0; i < curves.size(); ++i) {
    g("$t" + std::to_string(i) + " << EOD");
    for (const point& p : curves[i].points) {
      g(printed("%g ", static_cast<double>(p.n)) + printed("%g", p.seconds));
    }
    g("EOD");
    plot += (i != 0 ? ", " : "") + ("$t" + std::to_string(i)) + " with points pt '" +
            curves[i].letter + "' title '" + curves[i].name + "'";
  }
  g(plot);
  return g.close();
}

}  // namespace wall
