// SPDX-License-Identifier: MIT
// The one part of -ffast-math that matters.
// options: -ffinite-math-only
// expect: Compile without -ffinite-math-only
#include <heed/core.hpp>

int main() {}
