// SPDX-License-Identifier: MIT
// Decode in real time: how evenly long the steps of an endless stream take.
//
//   steady_decode [--steps 100000] [--window 750]
//
// A step appends one token to a rolling cache and attends to the window. Nothing is allocated and
// nothing locks after the first, and each step does the same work, so that what differs in time is
// the machine's. The last line says by how much: the step that 999 of 1000 are faster than, over
// the median. Measure on a core without other work (taskset, chrt).
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/parallel.hpp>
#include <vector>

namespace {

constexpr heed::index heads = 16, kv_heads = 4, dim = 64;

/// The numbers of a token, as a model would make them.
void make(heed::tensor<float, 4>& x, heed::index step, float turn) {
  for (heed::index i = 0; i < x.size(); ++i) {
    x.data()[i] = std::sin(turn * static_cast<float>(step % 10'007) + static_cast<float>(i));
  }
}

}  // namespace

int main(int argc, char** argv) {
  heed::index steps = 20'000;
  heed::index window = 750;
  CLI::App app("Times each step of a decode in a rolling window");
  app.add_option("--steps", steps, "how many steps")->check(CLI::PositiveNumber);
  app.add_option("--window", window, "tokens that a step sees")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);

  heed::serial_executor exec;
  heed::rolling_cache<float> cache(
      {.kv_heads = kv_heads, .sinks = 0, .window = window, .head_dim = dim});
  heed::tensor<float, 4> q({1, heads, 1, dim}), out({1, heads, 1, dim});
  heed::tensor<float, 4> k({1, kv_heads, 1, dim}), v({1, kv_heads, 1, dim});
  heed::workspace scratch;
  std::vector<double> took(static_cast<std::size_t>(steps));
  float largest = 0;
  for (heed::index t = -window; t < steps; ++t) {  // the window is full at 0
    make(q, t + window, 0.013F);
    make(k, t + window, 0.37F);
    make(v, t + window, 0.11F);
    const auto start = std::chrono::steady_clock::now();
    cache.append(k, v);
    heed::decode_into(exec, out, q, cache, {.scratch = &scratch});
    const std::chrono::duration<double, std::micro> passed =
        std::chrono::steady_clock::now() - start;
    if (t >= 0) took[static_cast<std::size_t>(t)] = passed.count();
    largest = std::max(largest, std::abs(out.data()[0]));
  }
  std::sort(took.begin(), took.end());
  const auto at = [&](double part) {
    return took[static_cast<std::size_t>(part * static_cast<double>(steps - 1))];
  };
  std::printf("%td steps of a window of %td, %td query heads, %td KV heads of %td channels\n",
              steps, window, heads, kv_heads, dim);
  std::printf("median %.1f us, p99 %.1f, p99.9 %.1f, longest %.1f\n", at(0.5), at(0.99), at(0.999),
              took.back());
  std::printf("p99.9 is %.2f times the median\n", at(0.999) / at(0.5));
  return std::isfinite(largest) ? 0 : 1;
}
