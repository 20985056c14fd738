// SPDX-License-Identifier: MIT
// A view of a temporary that owns its memory would outlive it.
// expect: a view of a temporary that owns its memory would dangle
#include <heed/tensor.hpp>

int main() {
  const auto v = heed::as_view(heed::tensor<float, 2>({2, 3}));
  return static_cast<int>(v.size());
}
