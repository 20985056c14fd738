// SPDX-License-Identifier: MIT
// A kernelised state that cannot be written does not come out.
// expect: the state is constant
#include <heed/linear.hpp>

int main() {
  const heed::tensor<float, 3> q({2, 5, 4});
  const heed::linear_state<float> state({1, 2, 4, 4});
  (void)heed::linear_attention(q, q, q, state);
}
