// SPDX-License-Identifier: MIT
// heed_digits_error: the relative error over the number of keys or tokens, of the families that sum
// along them.
//
//   heed_digits_error [digits.svg]                 docs/digits.md has its table and picture
//
// Attention: a sink, one key at score 0 and all others 12 below, as language models have; values in
// [0.5, 1]. That is the hardest sum: the sink's weight is 1, the others' of 6e-6 are below half a
// unit of the sum's last place from a dozen on, and together they outweigh it. The error is the
// largest of the output's channels and the log-sum-exp's, relative, against the textbook in double.
// Recurrences and scans: numbers in [0.5, 1], gates of 0, -1e-6 and -0.01; the error is the largest
// of the last token's output. Gradients and means: sums of numbers in [0.5, 1].
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <string>
#include <vector>

#include "bench/wall/fit.hpp"
#include "bench/wall/plot.hpp"
#include "heed/attention.hpp"
#include "heed/linear.hpp"
#include "heed/sparse.hpp"

namespace {

using heed::index;
using tensor3 = heed::tensor<float, 3>;

constexpr index dim = 16;

tensor3 numbers(index tokens, std::uint32_t seed) {
  tensor3 t({1, tokens, dim});
  for (index i = 0; i < t.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    t.data()[i] = 0.5F + static_cast<float>(seed >> 8U) / 33554432.0F;
  }
  return t;
}

double relative(double got, double want) { return std::abs(got - want) / std::abs(want); }

/// Attention of rows that are all alike to a sink and n - 1 keys.
struct sink {
  tensor3 q, k, v;
  std::vector<double> out;
  double lse = 0;

  sink(index rows, index n) : q({1, rows, dim}), k({1, n, dim}), v(numbers(n, 3)), out(dim) {
    std::fill_n(q.data(), q.size(), 1.0F);
    std::fill_n(k.data(), k.size(), -0.75F);  // 16 of them: -12
    std::fill_n(k.data(), dim, 0.0F);
    double sum = 0;
    for (index j = 0; j < n; ++j) {
      const double w = j == 0 ? 1 : std::exp(-12.0);
      sum += w;
      for (index c = 0; c < dim; ++c) out[static_cast<std::size_t>(c)] += w * double(v(0, j, c));
    }
    for (double& x : out) x /= sum;
    lse = std::log(sum);
  }
  template <class Result>
  [[nodiscard]] double error(const Result& got) const {
    // Of a log-sum-exp near 0 the absolute error is what weights see.
    double worst = std::abs(double(got.log_sum_exp(0, 0)) - lse) / std::max(1.0, std::abs(lse));
    for (index c = 0; c < dim; ++c) {
      worst =
          std::max(worst, relative(double(got.output(0, 0, c)), out[static_cast<std::size_t>(c)]));
    }
    return worst;
  }
};

double of_attention(index rows, index n) {
  const sink x(rows, n);
  return x.error(heed::attention_with_lse(x.q, x.k, x.v, {.scale = 1}));
}

/// All blocks of 64 keys, as a selection.
double of_selection(index n) {
  const index rows = 4, block = 64;
  const sink x(rows, n);
  heed::tensor<index, 3> blocks({1, rows, heed::ceil_div(n, block)});
  for (index i = 0; i < blocks.size(); ++i) blocks.data()[i] = i % blocks.extent(2);
  heed::attention_result<tensor3, heed::tensor<float, 2>> got{tensor3({1, rows, dim}),
                                                              heed::tensor<float, 2>({1, rows})};
  heed::selected_attention_into(heed::into(got.output, got.log_sum_exp), x.q, x.k, x.v, blocks,
                                block, {.scale = 1});
  return x.error(got);
}

/// What one float sum from the first key to the last would do: the textbook of most libraries.
double of_one_sum(index n) {
  const sink x(1, n);
  float sum = 0;
  std::vector<float> out(dim);
  for (index j = 0; j < n; ++j) {
    const float w = j == 0 ? 1.0F : std::exp(-12.0F);
    sum += w;
    for (index c = 0; c < dim; ++c) out[static_cast<std::size_t>(c)] += w * x.v(0, j, c);
  }
  double worst = std::abs(std::log(double(sum)) - x.lse) / std::max(1.0, std::abs(x.lse));
  for (index c = 0; c < dim; ++c) {
    const auto at = static_cast<std::size_t>(c);
    worst = std::max(worst, relative(double(out[at] / sum), x.out[at]));
  }
  return worst;
}

/// A recurrence with one gate for every token: out = sum_j exp((n - 1 - j) g) (q.k_j) v_j.
double of_gate(index n, float gate) {
  const tensor3 k = numbers(n, 1), v = numbers(n, 2);
  heed::tensor<float, 2> g({1, n});
  std::fill_n(g.data(), g.size(), gate);
  const tensor3 got =
      heed::scalar_gated_attention(k, k, v, g, heed::recurrence_options{.scale = 1});
  std::vector<double> want(dim);
  for (index j = 0; j < n; ++j) {
    double w = 0;
    for (index c = 0; c < dim; ++c) w += double(k(0, n - 1, c)) * double(k(0, j, c));
    w *= std::exp(double(gate) * double(n - 1 - j));
    for (index c = 0; c < dim; ++c) want[static_cast<std::size_t>(c)] += w * double(v(0, j, c));
  }
  double worst = 0;
  for (index c = 0; c < dim; ++c) {
    worst = std::max(worst, relative(double(got(0, n - 1, c)), want[static_cast<std::size_t>(c)]));
  }
  return worst;
}

/// Linear attention with its normaliser.
double of_kernelised(index n) {
  const tensor3 k = numbers(n, 1), v = numbers(n, 2);
  const tensor3 got = heed::linear_attention(k, k, v);
  std::vector<double> want(dim);
  double sum = 1e-6;
  for (index j = 0; j < n; ++j) {
    double w = 0;  // elu + 1 of positive numbers
    for (index c = 0; c < dim; ++c) w += (1 + double(k(0, n - 1, c))) * (1 + double(k(0, j, c)));
    sum += w;
    for (index c = 0; c < dim; ++c) want[static_cast<std::size_t>(c)] += w * double(v(0, j, c));
  }
  double worst = 0;
  for (index c = 0; c < dim; ++c) {
    worst = std::max(worst,
                     relative(double(got(0, n - 1, c)), want[static_cast<std::size_t>(c)] / sum));
  }
  return worst;
}

/// Of the last token's sum of x, decayed by exp(gate) a token.
double last_sum_error(const tensor3& x, const tensor3& got, float gate) {
  const index n = x.extent(1);
  double worst = 0;
  for (index c = 0; c < dim; ++c) {
    double h = 0;
    for (index j = 0; j < n; ++j) h = std::exp(double(gate)) * h + double(x(0, j, c));
    worst = std::max(worst, relative(double(got(0, n - 1, c)), h));
  }
  return worst;
}

/// A scan decays once a token.
double of_hgrn(index n, float gate) {
  const tensor3 x = numbers(n, 1);
  tensor3 g({1, n, dim});
  std::fill_n(g.data(), g.size(), gate);
  const tensor3 got = heed::hgrn(x, g);
  return last_sum_error(x, got, gate);
}

/// One state a channel, steps of 1.
double of_s6(index n, float gate) {
  const tensor3 x = numbers(n, 1);
  tensor3 dt({1, n, dim});
  heed::tensor<float, 2> a({dim, 1});
  heed::tensor<float, 3> ones({1, n, 1});
  std::fill_n(dt.data(), dt.size(), 1.0F);
  std::fill_n(a.data(), a.size(), gate);
  std::fill_n(ones.data(), ones.size(), 1.0F);
  const tensor3 got = heed::selective_scan(x, dt, a, ones, ones);
  return last_sum_error(x, got, gate);
}

/// Keys of 3, no bonus.
double of_rwkv4(index n, float gate) {
  const tensor3 v = numbers(n, 1);
  tensor3 k({1, n, dim});
  heed::tensor<float, 1> decay({dim}), bonus({dim});
  std::fill_n(k.data(), k.size(), 3.0F);
  std::fill_n(decay.data(), dim, std::log(-gate));
  const tensor3 got = heed::rwkv4(k, v, decay, bonus);
  const double e = std::exp(-std::exp(double(decay(0))));
  double worst = 0;
  for (index c = 0; c < dim; ++c) {
    double top = 0, bottom = 0;
    for (index j = 0; j < n - 1; ++j) {
      top = e * top + double(v(0, j, c));
      bottom = e * bottom + 1;
    }
    const double want = (top + double(v(0, n - 1, c))) / (bottom + 1);
    worst = std::max(worst, relative(double(got(0, n - 1, c)), want));
  }
  return worst;
}

/// The gradient of the values of two keys of zeros, each of half of the weight of n queries.
double of_gradient(index n) {
  const tensor3 q = numbers(n, 1), d_out = numbers(n, 2);
  const tensor3 k({1, 2, dim}), v = numbers(2, 3);
  const auto forward = heed::attention_with_lse(q, k, v);
  const auto got = heed::attention_backward(q, k, v, forward, d_out);
  double worst = 0;
  for (index c = 0; c < dim; ++c) {
    double want = 0;
    for (index i = 0; i < n; ++i) want += double(d_out(0, i, c)) / 2;
    worst = std::max(worst, relative(double(got.value(0, 0, c)), want));
  }
  return worst;
}

/// One block of n keys.
double of_block_means(index n) {
  const tensor3 k = numbers(n, 1);
  const auto got = heed::block_means(k, n);
  double worst = 0;
  for (index c = 0; c < dim; ++c) {
    double want = 0;
    for (index j = 0; j < n; ++j) want += double(k(0, j, c));
    worst = std::max(worst, relative(double(got.data()[c]), want / double(n)));
  }
  return worst;
}

struct curve {
  const char* name;
  double (*error)(index);
  bool drawn = true;  // the picture has room for ten
};

constexpr curve curves[] = {
    {"one float sum", of_one_sum},
    {"attention, 64 rows", [](index n) { return of_attention(64, n); }},
    {"attention, 1 row", [](index n) { return of_attention(1, n); }},
    {"selected blocks", of_selection, false},
    {"linear attention", of_kernelised},
    {"gate 0", [](index n) { return of_gate(n, 0.0F); }, false},
    {"gate -1e-6", [](index n) { return of_gate(n, -1e-6F); }},
    {"gate -0.01", [](index n) { return of_gate(n, -0.01F); }},
    {"HGRN, gate 0", [](index n) { return of_hgrn(n, 0.0F); }, false},
    {"HGRN, gate -0.01", [](index n) { return of_hgrn(n, -0.01F); }},
    {"S6, gate 0", [](index n) { return of_s6(n, 0.0F); }},
    {"S6, gate -1e-6", [](index n) { return of_s6(n, -1e-6F); }, false},
    {"RWKV-4, gate -1e-6", [](index n) { return of_rwkv4(n, -1e-6F); }},
    {"gradient of values", of_gradient},
    {"block means", of_block_means, false},
};

/// False when gnuplot failed.
bool draw(const std::vector<std::vector<wall::sample>>& all, const std::string& path) {
  wall::gnuplot g;
  g("set encoding utf8");
  g("set terminal svg size 860,560 enhanced font 'Helvetica,Arial,sans-serif,15' background "
    "'#ffffff'");
  g("set output '" + path + "'");
  g("set border 3 lc rgb '#444444'; set tics nomirror out; set grid ytics lc rgb '#e6e6e6' lt 1");
  g("set logscale x 2; set logscale y 10; set rmargin 24; set format y '10^{%L}'");
  g("set xlabel 'keys or tokens n'; set ylabel 'relative error'");
  g("set title 'Relative error over n, float'");
  g("set xrange [900:1200000]; set yrange [1e-8:0.1]");
  std::vector<double> ends;
  std::vector<std::size_t> drawn;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!curves[i].drawn) continue;
    drawn.push_back(i);
    ends.push_back(std::log10(std::max(all[i].back().y, 1e-8)));
  }
  const std::vector<double> at = wall::spread(ends, 0.33);
  std::string plot = "plot 2e-6 with lines lc rgb '#999999' dt 2 lw 1.2 notitle";
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    const wall::mark m = wall::mark_of(i);
    const std::string number = std::to_string(i);
    g("$c" + number + " << EOD");
    for (const wall::sample& p : all[drawn[i]]) {
      g(wall::printed("%g ", p.n) + wall::printed("%g", std::max(p.y, 1e-8)));
    }
    g("EOD");
    g("set label '" + std::string(curves[drawn[i]].name) + "' at 1300000," +
      wall::printed("%g", std::pow(10.0, at[i])) + " tc rgb '" + m.colour + "'");
    plot += ", $c" + number + " with linespoints lc rgb '" + m.colour + "' lw 2.2 pt " +
            std::to_string(m.marker) + " ps " + wall::printed("%g", m.size) + " notitle";
  }
  g("set label 'dashed: 2e-6' at graph 0.03, graph 0.36 tc rgb '#666666'");
  g(plot);
  return g.close();
}

int run(const std::string& path) {
  std::vector<std::vector<wall::sample>> all(std::size(curves));
  std::printf("| n |");
  for (const curve& c : curves) std::printf(" %s |", c.name);
  std::printf("\n|---|");
  for (std::size_t i = 0; i < std::size(curves); ++i) std::printf("---|");
  std::printf("\n");
  for (index n = 1024; n <= index{1} << 20; n *= 4) {
    std::printf("| %td |", n);
    for (std::size_t i = 0; i < std::size(curves); ++i) {
      all[i].push_back({static_cast<double>(n), curves[i].error(n)});
      std::printf(" %.1e |", all[i].back().y);
      std::fflush(stdout);
    }
    std::printf("\n");
  }
  if (path.empty()) return 0;
  if (!wall::gnuplot::installed() || !draw(all, path)) {
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
    std::fprintf(stderr, "heed_digits_error: %s\n", e.what());
    return 1;
  }
}
