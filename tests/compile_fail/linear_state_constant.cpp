// SPDX-License-Identifier: MIT
// A state that cannot be written does not come out.
// expect: or is constant
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  const heed::tensor<float, 4> state({1, 2, 4, 4});
  (void)heed::retention(q, q, q, state);
}
