// SPDX-License-Identifier: MIT
// A scan's inputs accumulate in one type.
// expect: inputs of a scan accumulate in different types
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> x({1, 5, 4});
  const heed::tensor<double, 3> g({1, 5, 4});
  (void)heed::hgrn(x, g);
}
