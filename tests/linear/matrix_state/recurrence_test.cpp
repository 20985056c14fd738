// SPDX-License-Identifier: MIT
// Every member with a matrix state, in every form and scalar, against plain loops in double.
#include <rapidcheck.h>

#include <vector>

#include "linear/matrix_state/recurrence_oracle.hpp"
#include "support/scalars.hpp"

namespace {

using namespace recurrence_test;
using heed::index;

/// Every form of a member against the definition, with and without a state. NaN between elements
/// stays where it is.
template <class T>
void expect_forms(method m, const problem<T>& p, layout how, const recurrence_options& base = {}) {
  using A = heed::accumulate_t<T>;
  heed::serial_executor exec;
  const heed::view<const A, 4> start = p.state.view();
  for (const bool with_state : {true, false}) {
    const expected want =
        with_state ? definition(m, p.s, start)(p.in()) : definition(m, p.s)(p.in());
    for_each_form(m, [&](linear_form form) {
      recurrence_options o = base;
      o.form = form;
      laid_out<T, 4> out(want.out.extents(), how);
      auto state = p.state;
      if (with_state) {
        run(exec, m, out.view(), p.in(), state.view(), o);
        expect_near(state.view(), want.state, want.state_error, "state");
      } else {
        run(exec, m, out.view(), p.in(), nullptr, o);
      }
      expect_near(out.view(), want.out, want.out_error, "out");
      const auto gaps = std::count_if(out.memory().begin(), out.memory().end(),
                                      [](T x) { return std::isnan(static_cast<double>(x)); });
      EXPECT_EQ(gaps, static_cast<index>(out.memory().size()) - out.size());
    });
    if (testing::Test::HasFailure()) return;
  }
}

template <class T>
class Recurrence : public testing::Test {};
using scalars = test_scalars::all;
TYPED_TEST_SUITE(Recurrence, scalars);

TYPED_TEST(Recurrence, FormsMatchTheDefinition) {
  const shape shapes[] = {
      {1, 1, 1, 1, 1, 1, 1},    {1, 2, 2, 2, 7, 3, 5},     {2, 6, 2, 2, 33, 16, 16},
      {1, 2, 2, 2, 64, 64, 64}, {1, 1, 1, 1, 65, 20, 40},  {1, 1, 2, 4, 63, 17, 33},
      {1, 8, 2, 4, 16, 8, 100}, {1, 1, 1, 3, 17, 48, 48},  {1, 2, 1, 1, 130, 32, 7},
      {1, 1, 1, 1, 15, 16, 16}, {1, 2, 1, 1, 3, 300, 130}, {2, 1, 1, 1, 1, 257, 5},
      {1, 1, 1, 1, 66, 300, 3}, {1, 1, 1, 1, 5, 1, 300},   {1, 3, 3, 1, 127, 1, 64}};
  std::uint64_t seed = 1;
  for (const shape& s : shapes) {
    SCOPED_TRACE(s.text());
    const problem<TypeParam> p(s, gates::mild, ++seed);
    for_each_method([&](method m) { expect_forms(m, p, layout::in_order); });
  }
}

// Tokens around the chunk from both sides, every grouping of heads, layout and kind of gate.
TYPED_TEST(Recurrence, RandomShapesMatchTheDefinition) {
  const bool held = rc::check([] {
    const index chunk = *rc::gen::element<index>(1, 2, 5, 16, 31, 64);
    shape s;
    s.batch = *rc::gen::inRange<index>(0, 3);
    const index heads = *rc::gen::element<index>(1, 1, 2, 3);
    s.q_heads = heads * *rc::gen::element<index>(1, 2, 4);
    s.k_heads = heads * *rc::gen::element<index>(1, 2, 4);
    s.v_heads = heads * *rc::gen::element<index>(1, 2, 4);
    if (*rc::gen::arbitrary<bool>()) s.q_heads = s.k_heads = s.v_heads;
    s.fewer = *rc::gen::element(index{1}, s.state_heads(), s.state_heads() / heads);
    s.tokens = *rc::gen::element<index>(0, 1, 2, 13, chunk - 1, chunk, chunk + 1, 3 * chunk,
                                        2 * chunk + 7);
    s.d = *rc::gen::element<index>(0, 1, 3, 16, 33, 64, 100, 130);
    s.dv = *rc::gen::element<index>(0, 1, 3, 16, 33, 64, 100);
    if (s.d * s.dv > 4000) s.batch = std::min<index>(s.batch, 1);
    const auto how =
        *rc::gen::element(layout::in_order, layout::token_major, layout::apart, layout::backwards);
    const auto kind =
        *rc::gen::elementOf(std::vector<gates>(std::begin(all_gates), std::end(all_gates)));
    const auto seed = *rc::gen::arbitrary<std::uint32_t>();
    SCOPED_TRACE(s.text() + ", layout " + std::to_string(int(how)) + ", gates " +
                 std::to_string(int(kind)) + ", chunk " + std::to_string(chunk));
    const problem<TypeParam> p(s, kind, seed, how);
    recurrence_options o;
    if (*rc::gen::arbitrary<bool>()) o.chunk = chunk;
    // The arithmetic is float's or double's: of the other scalars a few members a case will do.
    const int every = std::is_same_v<TypeParam, float> ? 1 : 4;
    const int first = *rc::gen::inRange(0, every);
    for_each_method([&](method m) {
      if (int(m) % every == first) expect_forms(m, p, how, o);
    });
    RC_ASSERT(!testing::Test::HasFailure());
  });
  EXPECT_TRUE(held);
}

}  // namespace
