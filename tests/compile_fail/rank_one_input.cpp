// SPDX-License-Identifier: MIT
// One axis cannot be tokens and channels both.
// expect: a tensor of queries, keys or values has rank 2
#include <heed/tensor.hpp>

int main() {
  heed::tensor<float, 1> t({6});
  return static_cast<int>(heed::as_rank4(heed::as_view(t)).size());
}
