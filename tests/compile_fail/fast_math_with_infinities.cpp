// SPDX-License-Identifier: MIT
// A control: fast mathematics with infinities is no error.
// options: -ffast-math -fno-finite-math-only
#include <heed/core.hpp>

int main() {}
