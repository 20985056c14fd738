// SPDX-License-Identifier: MIT
// A result cannot go where nothing may be written.
// expect: the output is not a tensor that can be written
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> q({3, 4});
  const heed::tensor<float, 2> out({3, 4});
  heed::attention_into(out, q, q, q);
}
