// SPDX-License-Identifier: MIT
// An executor runs a body for each worker.
// expect: no run.workers, body.
#include <heed/attention.hpp>

struct pool {
  heed::index concurrency() const { return 2; }
};

int main() {
  const heed::tensor<float, 2> q({3, 3});
  pool p;
  (void)heed::attention(p, q, q, q);
}
