// SPDX-License-Identifier: MIT
// A state is in the accumulator type.
// expect: not the accumulator type
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  heed::tensor<double, 4> state({1, 2, 4, 4});
  (void)heed::retention(q, q, q, state);
}
