// SPDX-License-Identifier: MIT
// A gate in double would be rounded unseen.
// expect: an input accumulates in another type than q
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  const heed::tensor<double, 2> beta({2, 5});
  (void)heed::delta_attention(q, q, q, beta);
}
