// SPDX-License-Identifier: MIT
// One program of two targets: each part's attention beside the definition, in double.
//
// A part that the processor at hand cannot run is linked and not called: the word `narrow` as the
// program's argument.
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <vector>

const char* wide(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t n,
                 std::ptrdiff_t d);
const char* narrow(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t n,
                   std::ptrdiff_t d);

namespace {

constexpr std::ptrdiff_t n = 150;
constexpr std::ptrdiff_t d = 40;

std::vector<float> numbers(unsigned seed) {
  std::vector<float> x(std::size_t{n * d});
  for (float& number : x) {
    seed = seed * 1664525U + 1013904223U;
    number = static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F;
  }
  return x;
}

double largest_error(const std::vector<float>& q, const std::vector<float>& k,
                     const std::vector<float>& v, const std::vector<float>& out) {
  double worst = 0;
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    std::vector<double> sum(std::size_t{d});
    double total = 0;
    for (std::ptrdiff_t j = 0; j <= i; ++j) {
      double score = 0;
      for (std::ptrdiff_t c = 0; c < d; ++c) {
        score += double{q[std::size_t(i * d + c)]} * double{k[std::size_t(j * d + c)]};
      }
      const double weight = std::exp(score / std::sqrt(double{d}) + 0.01 * double(j));
      total += weight;
      for (std::ptrdiff_t c = 0; c < d; ++c) {
        sum[std::size_t(c)] += weight * double{v[std::size_t(j * d + c)]};
      }
    }
    for (std::ptrdiff_t c = 0; c < d; ++c) {
      const double error = double{out[std::size_t(i * d + c)]} - sum[std::size_t(c)] / total;
      // A NaN is the largest error of all.
      if (!(std::fabs(error) <= worst)) worst = std::fabs(error);
    }
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<float> q = numbers(1);
  const std::vector<float> k = numbers(2);
  const std::vector<float> v = numbers(3);
  bool right = true;
  const auto check = [&](auto part, const char* role) {
    std::vector<float> out(std::size_t{n * d}, 7.0F);
    const char* target = part(q.data(), k.data(), v.data(), out.data(), n, d);
    const double error = largest_error(q, k, v, out);
    std::printf("%-6s %-50s error %.1e\n", role, target, error);
    // Values in [-1, 1]: (d + n) roundings of 2^-24 are more than either sum makes.
    right = right && error <= double(d + n) * 6e-8;
  };
  check(narrow, "narrow");
  if (argc < 2 || std::strcmp(argv[1], "narrow") != 0) check(wide, "wide");
  return right ? 0 : 1;
}
