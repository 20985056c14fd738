// SPDX-License-Identifier: MIT
// A state in half would lose what each token adds.
// expect: not the accumulator type
#include <heed/linear.hpp>

int main() {
  const heed::tensor<heed::half, 3> q({2, 5, 4});
  heed::tensor<heed::half, 4> state({1, 2, 4, 4});
  (void)heed::retention(q, q, q, state);
}
