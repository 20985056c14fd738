// SPDX-License-Identifier: MIT
// A gate of each channel has one.
// expect: rows of each token have the axes of q
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  const heed::tensor<float, 2> g({2, 5});
  (void)heed::gated_attention(q, q, q, g);
}
