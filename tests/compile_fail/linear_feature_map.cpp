// SPDX-License-Identifier: MIT
// A feature map is of numbers or of vectors.
// expect: a feature map is callable as
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  (void)heed::linear_attention(q, q, q, {}, [](int, int) { return 0; });
}
