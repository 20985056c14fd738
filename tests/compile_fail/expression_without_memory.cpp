// SPDX-License-Identifier: MIT
// An expression has no memory that a kernel could read: it is evaluated first.
// expect: q is not a tensor
#include <heed/heed.hpp>

int main() {
  const Eigen::MatrixXf m(3, 4);
  (void)heed::attention(m * 2.0F, m, m);
}
