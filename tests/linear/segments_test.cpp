// SPDX-License-Identifier: MIT
// The associative scan over segments of tokens: every member against its definition, and the same
// bits for any number of threads.
#include <random>

#include "heed/parallel.hpp"
#include "linear/matrix_state/recurrence_oracle.hpp"

namespace {

using namespace recurrence_test;
using heed::index;

template <class T>
void expect_scan(method m, const problem<T>& p) {
  using A = heed::accumulate_t<T>;
  const recurrence_options o{.form = linear_form::scan};
  heed::serial_executor one;
  heed::thread_pool several(3);
  const heed::view<const A, 4> start = p.state.view();
  for (const bool with_state : {true, false}) {
    const expected want =
        with_state ? definition(m, p.s, start)(p.in()) : definition(m, p.s)(p.in());
    laid_out<T, 4> out(want.out.extents()), shared(want.out.extents());
    auto state = p.state, shared_state = p.state;
    if (with_state) {
      run(one, m, out.view(), p.in(), state.view(), o);
      run(several, m, shared.view(), p.in(), shared_state.view(), o);
      expect_near(state.view(), want.state, want.state_error, "state");
      EXPECT_TRUE(same_bits(state.view(), shared_state.view()));
    } else {
      run(one, m, out.view(), p.in(), nullptr, o);
      run(several, m, shared.view(), p.in(), nullptr, o);
    }
    expect_near(out.view(), want.out, want.out_error, "out");
    EXPECT_TRUE(same_bits(out.view(), shared.view()));
  }
}

// One segment, two with the second of one token, several; and states wider than they are long.
TEST(ParallelSegments, MembersMatchTheDefinition) {
  std::uint64_t seed = 1;
  for (const shape& s : {shape{1, 1, 1, 1, 5, 3, 5}, shape{1, 2, 2, 2, 257, 8, 20},
                         shape{2, 2, 1, 1, 700, 17, 33}, shape{1, 1, 1, 2, 769, 80, 9}}) {
    SCOPED_TRACE(s.text());
    const problem<float> p(s, gates::mild, ++seed);
    for_each_method([&](method m) { expect_scan(m, p); });
  }
}

TEST(ParallelSegments, GatesFromZeroToResets) {
  std::uint64_t seed = 50;
  for (const gates kind : all_gates) {
    SCOPED_TRACE(static_cast<int>(kind));
    const problem<float> p({1, 1, 1, 1, 600, 6, 12}, kind, ++seed);
    for_each_method([&](method m) { expect_scan(m, p); });
  }
}

TEST(ParallelSegments, InDouble) {
  const problem<double> p({1, 2, 2, 2, 530, 12, 7}, gates::mild, 3);
  for_each_method([&](method m) { expect_scan(m, p); });
}

// Sequences of different lengths, among them none and one shorter than a segment.
TEST(ParallelSegments, RaggedBatch) {
  const index bounds[] = {0, 300, 300, 310, 900};
  const problem<float> p({1, 2, 2, 2, 900, 8, 16}, gates::mild, 9);
  heed::thread_pool pool(2);
  for (const method m : {method::gated, method::delta}) {
    laid_out<float, 4> out({1, 2, 900, 16}), states({4, 2, 8, 16});
    states.each([](float& x, index) { x = 0; });
    run(pool, m, out.view(), p.in(), states.view(),
        {.form = linear_form::scan, .sequence_bounds = bounds});
    for (index i = 0; i < 4; ++i) {
      const auto alone = p.in().tokens(bounds[i], bounds[i + 1]);
      const expected want = definition(m, alone.s)(alone);
      expect_near(out.view().slice(2, bounds[i], bounds[i + 1]), want.out, want.out_error, "out");
      expect_near(states.view().slice(0, i, i + 1), want.state, want.state_error, "state");
    }
  }
}

// The state may lie where the kernel would work on it in place, or not.
TEST(ParallelSegments, KernelisedMatchesChunks) {
  const index tokens = 900, d = 16;
  std::mt19937 engine(4);
  std::normal_distribution<float> normal;
  for (const index dv : {16, 21}) {
    heed::tensor<float, 3> q({4, tokens, d}), k({2, tokens, d}), v({2, tokens, dv});
    for (auto* x : {&q, &k, &v}) {
      for (index i = 0; i < x->size(); ++i) x->data()[i] = normal(engine);
    }
    for (const bool normalise : {true, false}) {
      heed::linear_options o{.normalise = normalise, .form = linear_form::chunked};
      heed::linear_state<float> state({.batch = 1, .kv_heads = 2, .features = d, .value_dim = dv});
      for (index i = 0; i < state.sum().size(); ++i) state.sum().data()[i] = normal(engine);
      for (index i = 0; i < 2 * d; ++i) state.normaliser().data()[i] = 1;
      auto one = state, three = state;
      const auto want = heed::linear_attention(q, k, v, state, o);
      o.form = linear_form::scan;
      heed::thread_pool pool(3);
      const auto alone = heed::linear_attention(heed::serial_executor{}, q, k, v, one, o);
      const auto shared = heed::linear_attention(pool, q, k, v, three, o);
      // Terms are positive but for v: sums of T terms of either order, of size at most the largest.
      const float eps = 4 * float(tokens) * std::numeric_limits<float>::epsilon();
      float largest = 0;
      for (index i = 0; i < state.sum().size(); ++i) {
        largest = std::max(largest, std::abs(state.sum().data()[i]));
      }
      const float out_size = normalise ? 10 : largest * float(2 * d);
      for (index i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(alone.data()[i], want.data()[i], eps * out_size) << i;
        ASSERT_EQ(alone.data()[i], shared.data()[i]);
      }
      for (index i = 0; i < state.sum().size(); ++i) {
        ASSERT_NEAR(one.sum().data()[i], state.sum().data()[i], eps * (largest + 4 * 30));
        ASSERT_EQ(one.sum().data()[i], three.sum().data()[i]);
      }
      for (index i = 0; i < state.normaliser().size(); ++i) {
        ASSERT_NEAR(one.normaliser().data()[i], state.normaliser().data()[i],
                    eps * state.normaliser().data()[i]);
      }
    }
  }
}

}  // namespace
