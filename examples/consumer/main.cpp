// SPDX-License-Identifier: MIT
// Attention in somebody else's project: three tokens attend to each other, none to a later one.
#include <heed/heed.hpp>
#include <iostream>

int main() {
  const Eigen::MatrixXf q = Eigen::MatrixXf::Identity(3, 4);
  const Eigen::MatrixXf v = Eigen::MatrixXf::Ones(3, 4);
  const Eigen::MatrixXf out = heed::attention(q, q, v, {}, heed::causal());
  std::cout << "heed " << HEED_VERSION_MAJOR << '.' << HEED_VERSION_MINOR << '.'
            << HEED_VERSION_PATCH << '\n'
            << out << '\n';
  // A mean of ones is one.
  return out.isApprox(v, 1e-6F) ? 0 : 1;
}
