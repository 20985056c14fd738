// SPDX-License-Identifier: MIT
// heed_wall: quadratic attention hits the wall, tiled, sparse and linear attention do not.
//
// Measures ten methods over doubling n and prints one table, fitted exponents, crossovers and
// what a second and a gibibyte afford; draws scaling.svg. With `--model llama3-8b --tokens 32768` it
// prints what that model costs here instead, by the cost model, and measures one layer.
// `heed_wall --help` lists what can be changed.
#include <stdio.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "bench/probes.hpp"
#include "measure.hpp"
#include "method.hpp"
#include "model.hpp"
#include "plot.hpp"
#include "report.hpp"
#include "sparse.hpp"

namespace {

using namespace wall;
using heed::index;

/// One line on a terminal's standard error, overwritten as work goes on; nothing elsewhere.
class progress {
 public:
  explicit progress(bool shown) : shown_(shown && isatty(STDERR_FILENO) != 0) {}
  ~progress() { clear(); }
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  void say(const std::string& text) const {
    if (!shown_) return;
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
  }
  void clear() const { say(""); }

 private:
  bool shown_;
};

/// Bytes of the largest cache of the first core, as Linux tells; 0 elsewhere.
double last_level_cache() {
  double largest = 0;
  for (const char level : {'1', '2', '3', '4'}) {
    std::ifstream file(std::string("/sys/devices/system/cpu/cpu0/cache/index") + level + "/size");
    double kibibytes = 0;  // "32768K"
    if (file >> kibibytes) largest = std::max(largest, kibibytes * 1024);
  }
  return largest;
}

/// Sizes below the smallest that is shown, measured briefly, for crossovers that lie there.
std::vector<curve> with_small_sizes(const std::vector<curve>& curves,
                                    const std::vector<method>& methods, const settings& s,
                                    const stopwatch& watch) {
  const progress line(!s.plain);
  problem data(s.heads, s.min_n, s.head_dim);
  std::vector<curve> all = curves;
  for (std::size_t i = 0; i < methods.size(); ++i) {
    std::vector<point> small;
    for (index n = std::max<index>(s.min_n / 16, 16); n < s.min_n; n *= 2) {
      line.say("small sizes for the crossovers: " + methods[i].name + " ...");
      small.push_back(watch.measure(methods[i], data, n, 0.02));
    }
    all[i].points.insert(all[i].points.begin(), small.begin(), small.end());
  }
  return all;
}

/// A neighbour on the machine comes and goes within seconds. So all is measured in two rounds, and
/// of each point the better one counts; calls that take long enough to meet its coming and its
/// going are measured in the first round only.
std::vector<curve> measure_all(const std::vector<method>& methods, const settings& s,
                               const stopwatch& watch) {
  constexpr int rounds = 2;
  constexpr double long_call = 0.3;
  const progress line(!s.plain);
  problem data(s.heads, s.max_n, s.head_dim);
  std::vector<curve> curves;
  for (const method& m : methods) curves.push_back({m.name, m.letter, {}, {}});
  std::size_t steps = 0;
  for (index n = s.min_n; n <= s.max_n; n *= 2) steps += rounds * methods.size();
  std::size_t step = 0;
  std::string last;
  for (int round = 0; round < rounds; ++round) {
    std::size_t size = 0;
    for (index n = s.min_n; n <= s.max_n; n *= 2, ++size) {
      for (std::size_t i = 0; i < methods.size(); ++i) {
        ++step;
        curve& c = curves[i];
        if (round == 0 && c.stopped.empty()) {
          c.stopped = watch.unreasonable(methods[i], c, data, n);
        }
        const bool wanted = round == 0
                                ? c.stopped.empty()
                                : size < c.points.size() && c.points[size].seconds < long_call;
        if (!wanted) continue;
        line.say("[" + std::to_string(step) + "/" + std::to_string(steps) + "] " + c.name +
                 ", n = " + count_text(static_cast<double>(n)) + " ..." + last);
        const point p = watch.measure(methods[i], data, n);
        if (round == 0) {
          c.points.push_back(p);
        } else if (better(p, c.points[size])) {
          c.points[size] = p;
        }
        last = "   last: " + c.name + " " + time_text(p.seconds) + ", " +
               printed("%.0f", 100 * p.flops / p.seconds / p.peak) + "% of peak";
      }
    }
  }
  return curves;
}

int run(const settings& s) {
  heed::thread_pool pool(s.threads);
  const double cache = last_level_cache();
  const double bandwidth = probes::read_probe().bandwidth(s.threads, 5);
  const double peak = probes::fma_peak<float>(pool, s.threads);
  std::printf(
      "heed %d.%d.%d: causal self-attention, float, %td head%s of dimension %td, window %td, "
      "%td thread%s\n",
      HEED_VERSION_MAJOR, HEED_VERSION_MINOR, HEED_VERSION_PATCH, s.heads, s.heads == 1 ? "" : "s",
      s.head_dim, s.window, s.threads, s.threads == 1 ? "" : "s");
  std::printf(
      "Longformer: the window and %td global tokens; BigBird: blocks of %td, %td global, %td near, "
      "%td random\n",
      s.global, big_bird_block, big_bird_blocks_seen.global, big_bird_blocks_seen.window / 2 + 1,
      big_bird_blocks_seen.random);
  std::printf("peak %s GFLOP/s (%td lanes), read bandwidth %s GB/s, last-level cache %s\n",
              three_digits(peak * 1e-9).c_str(), heed::simd::lanes<float>,
              three_digits(bandwidth * 1e-9).c_str(), bytes_text(cache).c_str());
  std::fflush(stdout);

  std::vector<method> methods = softmax_methods(s, pool, cache);
  for (method& m : linear_methods(s, pool)) methods.push_back(std::move(m));
  const stopwatch watch(s, pool, bandwidth, cache);
  const std::vector<curve> curves = measure_all(methods, s, watch);

  print_table(curves);
  print_exponents(curves);
  print_crossovers(with_small_sizes(curves, methods, s, watch), methods, s);
  print_affordable(curves, s);
  if (!gnuplot::installed()) {
    std::printf("\ngnuplot is not installed: no %s and no plot here\n", s.output.c_str());
    return 0;
  }
  std::printf("\n");
  (void)draw_terminal(curves, s);
  if (!draw_svg(curves, s)) {
    std::printf("gnuplot could not write %s\n", s.output.c_str());
    return 1;
  }
  std::printf("wrote %s\n", s.output.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  settings s;
  bool heads_given = false;
  CLI::App app(
      "Measures naive, tiled, windowed, Longformer, BigBird and linear attention, and three\n"
      "recurrences (gated, gated delta, selective scan), over doubling n.");
  app.add_option("--min-n", s.min_n, "smallest number of tokens")
      ->capture_default_str()
      ->check(CLI::Range(16, 1 << 24));
  app.add_option("--max-n", s.max_n, "largest number of tokens, reached by doubling")
      ->capture_default_str()
      ->check(CLI::Range(16, 1 << 24));
  app.add_option("--head-dim", s.head_dim, "channels of a head")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  const CLI::Option* heads =
      app.add_option("--heads", s.heads, "heads of one call (default: as many as threads)")
          ->check(CLI::Range(1, 1024));
  app.add_option("--threads", s.threads, "threads")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024));
  app.add_option("--window", s.window, "keys a query of the windowed method sees")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--global", s.global, "tokens that the Longformer method sees beside its window")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("--max-naive-bytes", s.max_naive_bytes,
                 "the naive methods stop where their scores need more")
      ->capture_default_str();
  app.add_option("--max-naive-seconds", s.max_naive_seconds,
                 "the naive methods stop where one call would take longer")
      ->capture_default_str();
  app.add_option("--output", s.output, "where the picture goes")->capture_default_str();
  app.add_flag("--plain", s.plain, "no progress line");
  std::string model;
  heed::index tokens = 32'768;
  app.add_option("--model", model, "print what this model costs here instead")
      ->check(CLI::IsMember(model_names()));
  app.add_option("--tokens", tokens, "of the model's prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24));
  CLI11_PARSE(app, argc, argv);
  heads_given = heads->count() > 0;
  if (!heads_given) s.heads = s.threads;
  if (s.max_n < s.min_n) {
    std::fprintf(stderr, "--max-n is %td, less than --min-n %td\n", s.max_n, s.min_n);
    return 2;
  }
  try {
    if (!model.empty()) {
      heed::thread_pool pool(s.threads);
      print_model(model, tokens, s.threads, probes::fma_peak<float>(pool, s.threads),
                  probes::read_probe().bandwidth(s.threads, 5));
      return 0;
    }
    return run(s);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "heed_wall: %s\n", e.what());
    return 1;
  }
}
