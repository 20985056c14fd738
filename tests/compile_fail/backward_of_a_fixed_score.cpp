// SPDX-License-Identifier: MIT
// A backward pass differentiates score modifiers, and a function of floats alone it cannot.
// expect: this score modifier cannot be differentiated: write it as a generic lambda
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> q({3, 4});
  const auto f = [](float s, heed::position) { return 2 * s; };
  const auto forward = heed::attention_with_lse(q, q, q, {}, f);
  (void)heed::attention_backward(q, q, q, forward, q, {}, f);
}
