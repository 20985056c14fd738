// SPDX-License-Identifier: MIT
// What was measured, in words: one table, exponents, crossovers, what a budget affords.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "fit.hpp"
#include "format.hpp"
#include "measure.hpp"
#include "method.hpp"

namespace wall {

inline void print_table(const std::vector<curve>& curves) {
  std::printf("\n%-13s %8s %9s %9s %9s %7s %9s %13s %9s\n", "method", "n", "time", "roofline",
              "GFLOP/s", "% peak", "time/roof", "extra memory", "model");
  bool disturbed = false;
  for (const curve& c : curves) {
    for (const point& p : c.points) {
      const double rate = p.flops / p.seconds;
      std::printf("%-13s %8s %9s %9s %9s %7.1f %9.1f %13s %9s%s\n", c.name.c_str(),
                  count_text(static_cast<double>(p.n)).c_str(), time_text(p.seconds).c_str(),
                  time_text(p.predicted).c_str(), three_digits(rate * 1e-9).c_str(),
                  100 * rate / p.peak, p.seconds / p.predicted,
                  p.memory ? bytes_text(*p.memory).c_str() : "-",
                  bytes_text(p.predicted_memory).c_str(), p.disturbed ? " *" : "");
      disturbed = disturbed || p.disturbed;
    }
    if (!c.stopped.empty()) std::printf("%-13s stops: %s\n", c.name.c_str(), c.stopped.c_str());
    std::printf("\n");
  }
  std::printf(
      "Time is the median call of the better of two rounds. Roofline is the cost model's least\n"
      "time, at the peak and the read bandwidth measured in this process. GFLOP/s count the\n"
      "method's own products; %% peak is that in the multiply-add peak measured beside each run.\n"
      "Extra memory is the most that a call holds beyond inputs and output, counted in malloc;\n"
      "model is the cost model's. The exponentials of Mamba S6, %td a token and channel, are\n"
      "neither FLOPs nor in its roofline.\n",
      scan_states);
  if (disturbed) {
    std::printf(
        "* Other processes shared the processor: processor time instead of elapsed time.\n");
  }
}

/// Least squares of a memory that does not change has no exponent to speak of, of either sign.
[[nodiscard]] inline std::string exponent_text(const std::vector<sample>& samples) {
  const auto law = fit_upper_half(samples);
  if (!law) return "-";
  return printed("%.2f", std::abs(law->exponent) < 0.005 ? 0.0 : law->exponent);
}

inline void print_exponents(const std::vector<curve>& curves) {
  std::printf("\nFitted exponents (least squares of log-log over the larger half of the sizes)\n");
  std::printf("%-13s %8s %8s\n", "", "time", "memory");
  for (const curve& c : curves) {
    std::printf("%-13s %8s %8s\n", c.name.c_str(), exponent_text(c.times()).c_str(),
                exponent_text(c.memories()).c_str());
  }
}

[[nodiscard]] inline const curve* find_curve(const std::vector<curve>& curves, const char* name) {
  for (const curve& c : curves) {
    if (c.name == name) return &c;
  }
  return nullptr;
}

inline void print_crossing(const std::vector<curve>& curves, const std::vector<method>& methods,
                           const char* slow, const char* fast) {
  const curve* a = find_curve(curves, slow);
  const curve* b = find_curve(curves, fast);
  if (a == nullptr || b == nullptr) return;
  const crossing at = find_crossing(a->times(), b->times());
  const double first = a->points.empty() ? 0 : static_cast<double>(a->points.front().n);
  std::string text;
  switch (at.how) {
    case crossing::kind::measured:
      text = "n = " + about_text(at.n);
      break;
    case crossing::kind::extrapolated:
      text = "n = " + about_text(at.n) + " (extrapolated)";
      break;
    case crossing::kind::from_the_start:
      text = "at every n from " + count_text(first) + " on";
      break;
    case crossing::kind::never:
      text = "not in sight";
      break;
  }
  const auto flops = [&](const char* name, index n) {
    for (const method& m : methods) {
      if (m.name == name) return m.total(n).flops;
    }
    return 0.0;
  };
  // By more than rounding: the naive loops do the tiled method's very products.
  const auto model =
      cost::crossover([&](index n) { return flops(slow, n); },
                      [&](index n) { return flops(fast, n) * (1 + 1e-9); }, index{1} << 30);
  std::printf("  %-13s slower than %-11s %-26s more FLOPs from: %s\n", slow, fast, text.c_str(),
              model ? ("n = " + count_text(static_cast<double>(*model))).c_str() : "never");
}

inline void print_crossovers(const std::vector<curve>& curves, const std::vector<method>& methods,
                             const settings& s) {
  std::printf("\nCrossovers (time)\n");
  print_crossing(curves, methods, "naive, loops", "tiled");
  print_crossing(curves, methods, "naive, Eigen", "tiled");
  print_crossing(curves, methods, "tiled", "linear");
  print_crossing(curves, methods, "tiled", "windowed");
  print_crossing(curves, methods, "tiled", "Longformer");
  print_crossing(curves, methods, "tiled", "BigBird");
  print_crossing(curves, methods, "tiled", "gated (GLA)");
  print_crossing(curves, methods, "tiled", "gated delta");
  print_crossing(curves, methods, "tiled", "Mamba S6");
  print_crossing(curves, methods, "windowed", "linear");
  print_crossing(curves, methods, "Longformer", "linear");
  print_crossing(curves, methods, "BigBird", "linear");
  // A layer as wide as these heads, with a plain feed-forward layer of four times the width.
  const index width = s.heads * s.head_dim;
  cost::model layer = cost::presets::gpt3_175b;
  layer.model_dim = width;
  layer.query_heads = layer.kv_heads = s.heads;
  layer.head_dim = s.head_dim;
  layer.value_dim = s.head_dim;
  layer.feed_forward = {width, 4 * width, false};
  std::printf(
      "  causal attention does more FLOPs than a feed-forward layer of width 4 d from n = %s on\n"
      "  at d = %s as here, from %s in Llama 3 8B, from %s in GPT-3 175B (cost model, exact)\n",
      count_text(static_cast<double>(cost::attention_overtakes_feed_forward(layer, true))).c_str(),
      count_text(static_cast<double>(width)).c_str(),
      count_text(static_cast<double>(
                     cost::attention_overtakes_feed_forward(cost::presets::llama3_8b, true)))
          .c_str(),
      count_text(static_cast<double>(
                     cost::attention_overtakes_feed_forward(cost::presets::gpt3_175b, true)))
          .c_str());
}

/// The largest n for a budget by the fitted laws. Memory that does not grow (or is not measured)
/// never stops a method.
inline void print_affordable(const std::vector<curve>& curves, const settings& s) {
  const cost::budget budget;
  std::printf("\nWhat 1 second and 1 GiB of extra memory afford, by the fitted laws\n");
  for (const curve& c : curves) {
    const auto time = fit_upper_half(c.times());
    if (!time) continue;
    const double by_time = time->reaches(budget.seconds).value_or(0);
    const auto memory = fit_upper_half(c.memories());
    double by_memory = std::numeric_limits<double>::infinity();
    if (memory && memory->reaches(budget.bytes)) by_memory = *memory->reaches(budget.bytes);
    const double n = std::min(by_time, by_memory);
    const double tensors = 16 * n * static_cast<double>(s.heads * s.head_dim);
    std::printf("  %-13s n = %-12s stopped by %-7s (q, k, v and output take %s)\n", c.name.c_str(),
                about_text(n).c_str(), by_time <= by_memory ? "time" : "memory",
                bytes_text(tensors).c_str());
  }
}

}  // namespace wall
