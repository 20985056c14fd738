// SPDX-License-Identifier: MIT
// Numbers for people: three significant digits and a unit.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include "heed/core.hpp"

namespace wall {

[[nodiscard]] inline std::string printed(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

/// Three significant digits without an exponent.
[[nodiscard]] inline std::string three_digits(double x) {
  if (x >= 100 || x == 0) return printed("%.0f", x);
  return printed(x >= 10 ? "%.1f" : "%.2f", x);
}

[[nodiscard]] inline std::string time_text(double seconds) {
  if (seconds < 1e-3) return three_digits(seconds * 1e6) + " us";
  if (seconds < 1) return three_digits(seconds * 1e3) + " ms";
  return three_digits(seconds) + " s";
}

[[nodiscard]] inline std::string bytes_text(double bytes) {
  if (bytes < 1024) return three_digits(bytes) + " B";
  if (bytes < 1024.0 * 1024) return three_digits(bytes / 1024) + " KiB";
  if (bytes < 1024.0 * 1024 * 1024) return three_digits(bytes / 1024 / 1024) + " MiB";
  return three_digits(bytes / 1024 / 1024 / 1024) + " GiB";
}

/// 16,384
[[nodiscard]] inline std::string count_text(double count) {
  const std::string digits = printed("%.0f", count);
  std::string grouped;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i != 0 && (digits.size() - i) % 3 == 0) grouped.push_back(',');
    grouped.push_back(digits[i]);
  }
  return grouped;
}

/// A count that is an estimate: two significant digits.
[[nodiscard]] inline std::string about_text(double count) {
  if (count < 100) return printed("%.0f", count);
  const double unit = std::pow(10.0, std::floor(std::log10(count)) - 1);
  return count_text(std::round(count / unit) * unit);
}

}  // namespace wall
