// SPDX-License-Identifier: MIT
// The log-sum-exp of half tensors is a float: in half it could not be merged.
// expect: the log-sum-exp tensor has the accumulator type
#include <heed/heed.hpp>

int main() {
  const heed::tensor<heed::half, 2> q({3, 4});
  heed::tensor<heed::half, 2> out({3, 4});
  heed::tensor<heed::half, 1> lse({3});
  heed::attention_into(heed::into(out, lse), q, q, q);
}
