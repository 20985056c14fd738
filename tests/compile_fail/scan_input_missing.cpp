// SPDX-License-Identifier: MIT
// A scan names its inputs where one is missing.
// expect: selective_scan takes x, dt, a, b, c
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> x({1, 5, 4});
  const heed::tensor<float, 2> a({4, 2});
  (void)heed::selective_scan(x, x, a, x, {.softplus = true});
}
