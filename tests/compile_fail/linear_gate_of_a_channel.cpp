// SPDX-License-Identifier: MIT
// A gate of each token has no axis of channels.
// expect: numbers of each token have the axes of q without the last
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  const heed::tensor<float, 3> g({2, 5, 4});
  (void)heed::scalar_gated_attention(q, q, q, g);
}
