// SPDX-License-Identifier: MIT
// A scan's state comes out too.
// expect: or is constant
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> x({1, 5, 4});
  const heed::tensor<float, 2> state({1, 4});
  (void)heed::hgrn(x, x, state);
}
