// SPDX-License-Identifier: MIT
// A row seen in parts has no probabilities until the last.
// expect: a probability modifier acts on whole rows
#include <heed/heed.hpp>

int main() {
  const heed::tensor<float, 2> q({3, 3});
  const heed::tensor<heed::index, 2> chosen({3, 1});
  (void)heed::selected_attention(q, q, q, chosen, 1, {},
                                 heed::probability([](float p, heed::position) { return p; }));
}
