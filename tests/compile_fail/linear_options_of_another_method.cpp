// SPDX-License-Identifier: MIT
// Options of another method would be taken for a state.
// expect: options are of the method's type
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  (void)heed::retention(q, q, q, heed::linear_options{});
}
