// SPDX-License-Identifier: MIT
// The delta rules, low rank updates and RWKV-7: every form against plain loops in double.
#include <vector>

#include "heed/parallel.hpp"
#include "recurrence_oracle.hpp"

namespace {

using namespace recurrence_test;
using heed::index;

constexpr method members[] = {
    method::delta,    method::gated_delta,       method::channel_gated_delta,
    method::low_rank, method::diagonal_low_rank, method::rwkv7};

template <class T>
class LowRankScalar : public testing::Test {};
using scalars = testing::Types<float, double, heed::half, heed::bfloat16>;
TYPED_TEST_SUITE(LowRankScalar, scalars);

TYPED_TEST(LowRankScalar, FormsMatchTheDefinition) {
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

TEST(LowRank, GatesFromZeroToResets) {
  unsigned seed = 100;
  for (const gates kind : {gates::zero, gates::tiny, gates::strong, gates::resets}) {
    for (const index tokens : {1, 15, 16, 17, 63, 64, 65, 129}) {
      const problem<float> p({1, 2, 2, 2, tokens, 20, 24}, kind, ++seed);
      for (const method m : members) expect_forms(m, p);
      if (HasFailure()) return;
    }
  }
}

TEST(LowRank, AnyChunk) {
  const problem<float> p({1, 4, 2, 2, 50, 12, 18}, gates::mild, 7);
  for (const index chunk : {1, 2, 5, 16, 31, 50, 1000}) {
    for (const method m : members) expect_forms(m, p, recurrence_options{.chunk = chunk});
    if (HasFailure()) return;
  }
}

TEST(LowRank, NoParallelForm) {
  problem<float> p({1, 1, 1, 1, 9, 4, 4}, gates::mild, 1);
  EXPECT_THROW((void)heed::delta_attention(p.q, p.k, p.v, p.beta,
                                           recurrence_options{.form = linear_form::parallel}),
               heed::option_error);
}

}  // namespace
