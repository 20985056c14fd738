// SPDX-License-Identifier: MIT
// One number is no gate of every token.
// expect: an input is not a tensor
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  (void)heed::delta_attention(q, q, q, 0.5F);
}
