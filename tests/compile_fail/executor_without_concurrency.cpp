// SPDX-License-Identifier: MIT
// An executor says how many workers are worth starting.
// expect: it has no concurrency
#include <heed/heed.hpp>

struct pool {
  template <class Body>
  void run(heed::index workers, Body&& body) {
    for (heed::index w = 0; w < workers; ++w) body(w);
  }
};

int main() {
  const heed::tensor<float, 2> q({3, 3});
  pool p;
  (void)heed::attention(p, q, q, q);
}
