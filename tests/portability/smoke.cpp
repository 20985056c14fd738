// SPDX-License-Identifier: MIT
// Every family once, small: fast form beside textbook, one line each. For compilers, processors and
// systems on which the whole of the tests does not run. Uses no test library, so that a compiler is
// all it needs; three files, so that they compile side by side.
#include "smoke.hpp"

int main() {
  std::printf("packets of %d floats, Eigen %d.%d.%d\n",
              static_cast<int>(Eigen::internal::packet_traits<float>::size), EIGEN_WORLD_VERSION,
              EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION);
  smoke::attention_family();
  smoke::sparse_family();
  smoke::linear_family();
  std::printf("%s\n", smoke::all_right ? "all right" : "WRONG");
  return smoke::all_right ? 0 : 1;
}
