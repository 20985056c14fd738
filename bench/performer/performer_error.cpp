// SPDX-License-Identifier: MIT
// heed_performer_error: how far Performer's estimate is from exact softmax attention, over the
// number of random features.
//
//   heed_performer_error [performer_error.svg]
//
// 512 tokens of one head of 64 channels, standard normal ones times a spread; every query sees
// every key. The error is that of the whole output in its own size, root mean square over 16 draws
// of the directions:
//
//   error(F) = sqrt(mean_draws |performer - exact|^2 / |exact|^2)        (Frobenius norms)
//
// An unbiased estimate's error falls as 1 / sqrt(F). The variance of one estimated exp(q.k) grows
// as exp(|q + k|^2), hence the three spreads: for long vectors the few features that matter are
// missed for long. Source: Choromanski et al. 2020, arXiv 2009.14794, lemma 2.
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "bench/wall/fit.hpp"
#include "bench/wall/plot.hpp"
#include "heed/attention.hpp"
#include "heed/linear.hpp"

namespace {

using heed::index;

constexpr index tokens = 512;
constexpr index head_dim = 64;
constexpr index most_features = 2048;
constexpr int draws = 16;
constexpr double spreads[] = {0.25, 0.5, 1.0};

/// Standard normal numbers times `spread`.
heed::tensor<float, 3> normal(double spread, std::uint64_t seed) {
  heed::tensor<float, 3> t({1, tokens, head_dim});
  heed::gaussian_source gaussian(seed);
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<float>(spread * gaussian());
  return t;
}

std::vector<wall::sample> errors(double spread) {
  // Seeds that no draw has: directions out of the same numbers would lie along the keys.
  const auto q = normal(spread, 1001);
  const auto k = normal(spread, 1002);
  const auto v = normal(1, 1003);
  const heed::tensor<float, 3> exact = heed::attention(q, k, v);
  double size = 0;
  for (index i = 0; i < exact.size(); ++i) size += std::pow(double{exact.data()[i]}, 2);
  std::vector<wall::sample> all;
  heed::workspace scratch;
  heed::tensor<float, 3> estimate(exact.extents());
  for (index features = 16; features <= most_features; features *= 2) {
    heed::random_directions<float> directions(head_dim, features, 0);
    double square = 0;
    for (int draw = 0; draw < draws; ++draw) {
      directions.redraw(static_cast<std::uint64_t>(draw + 1));
      heed::performer_attention_into(estimate, q, k, v, directions,
                                     heed::performer_options{.causal = false, .scratch = &scratch});
      for (index i = 0; i < exact.size(); ++i) {
        square += std::pow(double{estimate.data()[i]} - double{exact.data()[i]}, 2) / draws;
      }
    }
    all.push_back({static_cast<double>(features), std::sqrt(square / size)});
  }
  return all;
}

/// False when gnuplot failed.
bool draw(const std::vector<std::vector<wall::sample>>& curves, const std::string& path) {
  wall::gnuplot g;
  g("set encoding utf8");
  g("set terminal svg size 760,520 enhanced font 'Helvetica,Arial,sans-serif,15' background "
    "'#ffffff'");
  g("set output '" + path + "'");
  g("set border 3 lc rgb '#444444'; set tics nomirror out; set grid ytics lc rgb '#e6e6e6' lt 1");
  g("set logscale x 2; set logscale y 10; set rmargin 26");
  g("set xlabel 'random features F'; set ylabel 'relative error of the output'");
  g("set title 'Performer against exact attention: 512 tokens, dimension 64, 16 draws'");
  g("set xrange [14:2300]");
  std::string plot = "plot ";
  for (std::size_t i = 0; i < curves.size(); ++i) {
    const wall::mark m = wall::mark_of(i == 0 ? 2 : i == 1 ? 3 : 0);
    const std::string number = std::to_string(i);
    g("$c" + number + " << EOD");
    for (const wall::sample& p : curves[i]) {
      g(wall::printed("%g ", p.n) + wall::printed("%g", p.y));
    }
    g("EOD");
    g("set label 'channels of spread " + wall::printed("%g", spreads[i]) + "' at " +
      wall::printed("%g", curves[i].back().n * 1.17) + "," +
      wall::printed("%g", curves[i].back().y) + " tc rgb '" + m.colour + "'");
    // From the first point down: what 1 / sqrt(F) looks like.
    const wall::sample& first = curves[i].front();
    plot += wall::printed("%g", first.y * std::sqrt(first.n)) +
            "/sqrt(x) with lines lc rgb '#999999' dt 2 lw 1.2 notitle, ";
    plot += "$c" + number + " with linespoints lc rgb '" + m.colour + "' lw 2.6 pt " +
            std::to_string(m.marker) + " ps " + wall::printed("%g", m.size) + " notitle" +
            (i + 1 < curves.size() ? ", " : "");
  }
  g("set label 'dashed: 1/√F from the first point' at graph 0.03, graph 0.05 tc rgb '#666666'");
  g(plot);
  return g.close();
}

int run(const std::string& path) {
  std::vector<std::vector<wall::sample>> curves;
  for (const double spread : spreads) curves.push_back(errors(spread));
  std::printf("| features | spread 0.25 | spread 0.5 | spread 1 |\n|---|---|---|---|\n");
  for (std::size_t i = 0; i < curves[0].size(); ++i) {
    std::printf("| %.0f |", curves[0][i].n);
    for (const auto& c : curves) std::printf(" %.3g |", c[i].y);
    std::printf("\n");
  }
  std::printf("| exponent of the larger half |");
  for (const auto& c : curves) {
    const auto law = wall::fit_upper_half(c);
    std::printf(" %.2f |", law ? law->exponent : 0.0);
  }
  std::printf("\n");
  if (path.empty()) return 0;
  if (!wall::gnuplot::installed() || !draw(curves, path)) {
    std::fprintf(stderr, "gnuplot could not write %s\n", path.c_str());
    return 1;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : "");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "heed_performer_error: %s\n", e.what());
    return 1;
  }
}
