// SPDX-License-Identifier: MIT
// One point of the comparison: a method at a size, with the machine's peak right beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/probes.hpp"
#include "fit.hpp"
#include "memory_meter.hpp"
#include "method.hpp"

namespace wall {

struct point {
  index n = 0;
  double seconds = 0;    ///< median
  double flops = 0;      ///< of the method's own products
  double peak = 0;       ///< FLOP/s of the same threads, beside the runs
  double predicted = 0;  ///< seconds, the roofline's
  std::optional<double> memory{};
  double predicted_memory = 0;
  bool disturbed = false;  ///< every run had to share the processor: `seconds` is processor time
};

/// Of two measurements of the same: the less disturbed one, then the shorter.
[[nodiscard]] inline bool better(const point& a, const point& b) {
  return a.disturbed != b.disturbed ? b.disturbed : a.seconds < b.seconds;
}

/// A method's points, and why there are not more.
struct curve {
  std::string name;
  char letter = '?';
  std::vector<point> points;
  std::string stopped;

  [[nodiscard]] std::vector<sample> times() const {
    std::vector<sample> all;
    for (const point& p : points) all.push_back({static_cast<double>(p.n), p.seconds});
    return all;
  }
  [[nodiscard]] std::vector<sample> memories() const {
    std::vector<sample> all;
    for (const point& p : points) {
      if (p.memory) all.push_back({static_cast<double>(p.n), *p.memory});
    }
    return all;
  }
};

class stopwatch {
 public:
  stopwatch(const settings& s, heed::thread_pool& pool, double bandwidth, double cache)
      : settings_(s), pool_(pool), bandwidth_(bandwidth), cache_(cache) {}

  /// Why `m` should not be run at n; empty when it may.
  [[nodiscard]] std::string unreasonable(const method& m, const curve& so_far, problem& data,
                                         index n) const {
    if (!m.materialises) return {};
    const double bytes = m.total(n).extra_memory;
    if (bytes > settings_.max_naive_bytes) {
      return "n = " + std::to_string(n) + " needs " + format_gib(bytes) +
             " GiB of scores, the limit is " + format_gib(settings_.max_naive_bytes) +
             " (--max-naive-bytes)";
    }
    const double seconds = foreseen(m, so_far, data, n);
    if (seconds > settings_.max_naive_seconds) {
      return "n = " + std::to_string(n) + " would take about " +
             std::to_string(std::lround(seconds)) + " s a call, the limit is " +
             std::to_string(std::lround(settings_.max_naive_seconds)) + " (--max-naive-seconds)";
    }
    return {};
  }

  /// The first call brings its own memory, which is metered, and is not timed; the rest reuse it.
  /// A series of runs between two probes that differ by more than 8 %, or without one run that had
  /// the processor to itself, is repeated, twice at most and fewer times when long; the steadiest
  /// series counts.
  [[nodiscard]] point measure(const method& m, problem& data, index n, double budget = 0.25) const {
    point p;
    p.n = n;
    p.flops = m.total(n).flops;
    p.predicted_memory = m.total(n).extra_memory;
    heed::workspace scratch;
    const probes::clock::time_point start = probes::clock::now();
    {
      const memory_meter meter;
      m.run(data, n, scratch);
      p.memory = meter.peak();
    }
    const double first = probes::seconds_since(start);
    const double fewest = first < 0.5 ? 3.0 : 1.0;
    const auto repeats =
        static_cast<int>(std::clamp(budget / std::max(first, 1e-9), fewest, 200.0));
    double best = -1;
    for (int attempt = 0; attempt < 3; ++attempt) {
      probes::peak_pair peak;
      peak.before = probes::fma_peak<float>(pool_, settings_.threads);
      const series runs = run_series(m, data, n, scratch, repeats);
      peak.after = probes::fma_peak<float>(pool_, settings_.threads);
      const double steadiness = peak.worst() / peak.best();
      const double quality = steadiness + (runs.disturbed ? 0 : 1);
      if (quality > best) {
        best = quality;
        p.seconds = runs.median;
        p.disturbed = runs.disturbed;
        p.peak = peak.best();
      }
      if (quality > 1.92 || (first > 0.05 && attempt == 1) || first > 1) break;
    }
    const double io = 4.0 * 4 * static_cast<double>(settings_.heads * n * settings_.head_dim);
    p.predicted = m.predicted({p.peak, bandwidth_}, n, io, cache_);
    return p;
  }

 private:
  /// Seconds of a call at n: from the last point, or from a call at a sixteenth of n.
  [[nodiscard]] double foreseen(const method& m, const curve& so_far, problem& data,
                                index n) const {
    index known = 0;
    double seconds = 0;
    if (so_far.points.empty()) {
      known = std::max<index>(n / 16, std::min<index>(n, 16));
      heed::workspace scratch;
      m.run(data, known, scratch);  // memory, caches
      const probes::clock::time_point start = probes::clock::now();
      m.run(data, known, scratch);
      seconds = probes::seconds_since(start);
    } else {
      known = so_far.points.back().n;
      seconds = so_far.points.back().seconds;
    }
    const double flops = m.total(known).flops;
    return seconds * m.total(n).flops / (flops > 0 ? flops : 1);
  }

  struct series {
    double median = 0;
    bool disturbed = false;
  };

  /// The median of the runs during which the process did not wait for the processor. Where there is
  /// none, the median processor time, and disturbed. Processor time tells it for one thread only;
  /// runs below 5 ms are shorter than a scheduler's slice, and the median passes over the odd one.
  [[nodiscard]] series run_series(const method& m, problem& data, index n, heed::workspace& scratch,
                                  int repeats) const {
    std::vector<double> clean;
    std::vector<double> processor;
    for (int r = 0; r < repeats; ++r) {
      const std::clock_t before = std::clock();
      const probes::clock::time_point start = probes::clock::now();
      m.run(data, n, scratch);
      const double seconds = probes::seconds_since(start);
      processor.push_back(static_cast<double>(std::clock() - before) /
                          static_cast<double>(CLOCKS_PER_SEC));
      if (settings_.threads > 1 || seconds < 0.005 || processor.back() > 0.97 * seconds) {
        clean.push_back(seconds);
      }
    }
    const bool disturbed = clean.empty();
    std::vector<double>& counted = disturbed ? processor : clean;
    const auto middle = counted.begin() + static_cast<std::ptrdiff_t>(counted.size() / 2);
    std::nth_element(counted.begin(), middle, counted.end());
    return {*middle, disturbed};
  }

  static std::string format_gib(double bytes) {
    const double tenths = std::round(bytes / (1024.0 * 1024 * 1024) * 10) / 10;
    std::string text = std::to_string(tenths);
    return text.substr(0, text.find('.') + 2);
  }

  const settings& settings_;
  heed::thread_pool& pool_;
  double bandwidth_;
  double cache_;
};

}  // namespace wall
