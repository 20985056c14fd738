// SPDX-License-Identifier: MIT
// Attention over integers is not defined.
// expect: queries, keys and values are float, double, half or bfloat16
#include <heed/heed.hpp>

int main() {
  const heed::tensor<int, 2> q({3, 4});
  (void)heed::attention(q, q, q);
}
