// SPDX-License-Identifier: MIT
// A recurrence has no meaning over integers.
// expect: queries, keys and values are float, double, half or bfloat16
#include <heed/linear.hpp>

int main() {
  const heed::tensor<int, 3> q({2, 5, 4});
  (void)heed::retention(q, q, q);
}
