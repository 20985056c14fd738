// SPDX-License-Identifier: MIT
// What the program and its kernels share: plain pointers and numbers, of no target.
#pragma once

#include <cstddef>
#include <heed/dispatch/table.hpp>

/// The program's kernels. q, k, v, out: tokens x channels, one after another.
struct kernels {
  /// Causal attention with scores that fall by `slope` a token of distance. Throws
  /// std::invalid_argument for extents that are negative.
  void (*attend)(const float* q, const float* k, const float* v, float* out, std::ptrdiff_t tokens,
                 std::ptrdiff_t channels, float slope);
};
HEED_DECLARE_TARGETS(kernels, app_kernels);
