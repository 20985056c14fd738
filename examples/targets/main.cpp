// SPDX-License-Identifier: MIT
// One program for many processors: it runs the kernels of the best target that is offered here.
//
//   targets                      the best one
//   HEED_TARGET=avx2 targets     that one
#include <chrono>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "kernels.hpp"

namespace {

constexpr std::ptrdiff_t channels = 64;
constexpr float slope = 0.01F;

std::vector<float> numbers(std::ptrdiff_t tokens, unsigned seed) {
  std::vector<float> x(static_cast<std::size_t>(tokens * channels));
  for (float& number : x) {
    seed = seed * 1664525U + 1013904223U;
    number = static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F;
  }
  return x;
}

/// The largest difference from the definition, in double.
double largest_error(const std::vector<float>& q, const std::vector<float>& k,
                     const std::vector<float>& v, const std::vector<float>& out,
                     std::ptrdiff_t tokens) {
  const auto at = [](const std::vector<float>& x, std::ptrdiff_t i, std::ptrdiff_t c) {
    return double{x[static_cast<std::size_t>(i * channels + c)]};
  };
  double worst = 0;
  for (std::ptrdiff_t i = 0; i < tokens; ++i) {
    double total = 0;
    std::vector<double> sum(static_cast<std::size_t>(channels));
    for (std::ptrdiff_t j = 0; j <= i; ++j) {
      double score = 0;
      for (std::ptrdiff_t c = 0; c < channels; ++c) score += at(q, i, c) * at(k, j, c);
      const double distance = static_cast<double>(i - j);
      const double weight =
          std::exp(score / std::sqrt(double{channels}) - double{slope} * distance);
      total += weight;
      for (std::ptrdiff_t c = 0; c < channels; ++c) {
        sum[static_cast<std::size_t>(c)] += weight * at(v, j, c);
      }
    }
    for (std::ptrdiff_t c = 0; c < channels; ++c) {
      const double error = std::fabs(at(out, i, c) - sum[static_cast<std::size_t>(c)] / total);
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

}  // namespace

int main() try {
  std::printf("target %s\n", app_kernels_target());
  bool right = true;
  for (const std::ptrdiff_t tokens : {1, 300, 2048}) {
    const std::vector<float> q = numbers(tokens, 1);
    const std::vector<float> k = numbers(tokens, 2);
    const std::vector<float> v = numbers(tokens, 3);
    std::vector<float> out(q.size());
    double fastest = 1e30;
    for (int turn = 0; turn < 5; ++turn) {
      const auto start = std::chrono::steady_clock::now();
      app_kernels().attend(q.data(), k.data(), v.data(), out.data(), tokens, channels, slope);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      fastest = std::fmin(fastest, time.count());
    }
    const double flops = 2.0 * double(tokens) * double(tokens + 1) * double{channels};
    std::printf("%5td tokens: %7.2f GFLOP/s", tokens, flops / fastest * 1e-9);
    if (tokens <= 300) {
      const double error = largest_error(q, k, v, out, tokens);
      right = right && error <= 2e-6;
      std::printf(", error %.1e", error);
    }
    std::printf("\n");
  }
  // Errors cross the table as exceptions of the standard library.
  try {
    app_kernels().attend(nullptr, nullptr, nullptr, nullptr, -1, channels, slope);
    right = false;
  } catch (const std::invalid_argument& error) {
    std::printf("-1 tokens: %s\n", error.what());
  }
  return right ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
