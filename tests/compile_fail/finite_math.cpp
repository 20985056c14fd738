// SPDX-License-Identifier: MIT
// A masked score is -inf: no kernel may be compiled where infinities and NaN may be ignored.
// options: -ffast-math
// expect: heed needs infinities and NaN: a masked score is -inf
#include <heed/core.hpp>

int main() {}
