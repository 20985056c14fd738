// SPDX-License-Identifier: MIT
// Retention, lightning, gated attention, SSD and RWKV-6: every form against plain loops in double.
#include <vector>

#include "heed/parallel.hpp"
#include "recurrence_oracle.hpp"

namespace {

using namespace recurrence_test;

constexpr method members[] = {method::retention, method::lightning, method::scalar_gated,
                              method::gated,     method::ssd,       method::rwkv6};

template <class T>
class GatedScalar : public testing::Test {};
using scalars = testing::Types<float, double, heed::half, heed::bfloat16>;
TYPED_TEST_SUITE(GatedScalar, scalars);

TYPED_TEST(GatedScalar, FormsMatchTheDefinition) {
  const shape shapes[] = {{1, 1, 1, 1, 1, 1, 1},    {1, 2, 2, 2, 7, 3, 5},
                          {2, 6, 2, 2, 33, 16, 16}, {1, 2, 2, 2, 64, 64, 64},
                          {1, 1, 1, 1, 65, 20, 40}, {1, 1, 2, 4, 63, 17, 33},
                          {1, 8, 2, 4, 16, 8, 100}, {1, 1, 1, 3, 17, 48, 48},
                          {1, 2, 1, 1, 130, 32, 7}, {1, 1, 1, 1, 15, 16, 16}};
  unsigned seed = 1;
  for (const shape& s : shapes) {
    const problem<TypeParam> p(s, gates::mild, ++seed);
    for (const method m : members) {
      expect_forms(m, p);
      if (this->HasFailure()) return;
    }
  }
}

}  // namespace
