// SPDX-License-Identifier: MIT
// The associative scan over segments of tokens: every member against its definition, and the same
// bits for any number of threads.
#include <cstring>
#include <vector>

#include "heed/parallel.hpp"
#include "recurrence_oracle.hpp"

namespace {

using namespace recurrence_test;
using heed::index;

constexpr method members[] = {
    method::retention,    method::lightning,
    method::scalar_gated, method::gated,
    method::ssd,          method::rwkv6,
    method::delta,        method::gated_delta,
    method::low_rank,     method::channel_gated_delta,
    method::rwkv7,        method::diagonal_low_rank,
};

template <class T>
void expect_scan(method m, const problem<T>& p) {
  for (const bool with_state : {true, false}) {
    const expected want = oracle(m, p, with_state);
    const std::string what = std::string(name_of(m)) + " tokens " + std::to_string(p.s.tokens);
    heed::tensor<T, 4> out(want.out.extents()), shared(want.out.extents());
    const recurrence_options o{.form = linear_form::scan};
    heed::serial_executor one;
    heed::thread_pool several(3);
    auto state = p.state, shared_state = p.state;
    if (with_state) {
      run_into(one, m, out, p, &state, o);
      run_into(several, m, shared, p, &shared_state, o);
    } else {
      run_into(one, m, out, p, nullptr, o);
      run_into(several, m, shared, p, nullptr, o);
    }
    expect_near<T, 4>(heed::as_view(out), want.out, want.out_size, rounding<T>(p.s), what);
    EXPECT_EQ(
        0, std::memcmp(out.data(), shared.data(), static_cast<std::size_t>(out.size()) * sizeof(T)))
        << what;
    if (!with_state) continue;
    expect_near<heed::accumulate_t<T>, 4>(heed::as_view(state), want.state, want.state_size,
                                          rounding<T>(p.s), what + " state");
    EXPECT_EQ(0, std::memcmp(state.data(), shared_state.data(),
                             static_cast<std::size_t>(state.size()) * sizeof(state.data()[0])))
        << what;
  }
}

// One segment, two with the second of one token, several; and states wider than they are long.
TEST(ParallelSegments, MembersMatchTheDefinition) {
  unsigned seed = 1;
  for (const shape& s : {shape{1, 1, 1, 1, 5, 3, 5}, shape{1, 2, 2, 2, 257, 8, 20},
                         shape{2, 2, 1, 1, 700, 17, 33}, shape{1, 1, 1, 2, 769, 80, 9}}) {
    const problem<float> p(s, gates::mild, ++seed);
    for (const method m : members) expect_scan(m, p);
    if (HasFailure()) return;
  }
}

TEST(ParallelSegments, GatesFromZeroToResets) {
  unsigned seed = 50;
  for (const gates kind : {gates::zero, gates::tiny, gates::strong, gates::resets}) {
    const problem<float> p({1, 1, 1, 1, 600, 6, 12}, kind, ++seed);
    for (const method m : members) expect_scan(m, p);
    if (HasFailure()) return;
  }
}

TEST(ParallelSegments, InDouble) {
  const problem<double> p({1, 2, 2, 2, 530, 12, 7}, gates::mild, 3);
  for (const method m : members) expect_scan(m, p);
}

// Sequences of different lengths, among them none and one shorter than a segment.
TEST(ParallelSegments, RaggedBatch) {
  const index bounds[] = {0, 300, 300, 310, 900};
  const problem<float> p({1, 2, 2, 2, 900, 8, 16}, gates::mild, 9);
  for (const method m : {method::gated, method::delta}) {
    heed::tensor<float, 4> out({1, 2, 900, 16}), want({1, 2, 900, 16});
    heed::tensor<float, 4> states({4, 2, 8, 16}), want_states({4, 2, 8, 16});
    heed::thread_pool pool(2);
    run_into(pool, m, out, p, &states,
             recurrence_options{.form = linear_form::scan, .sequence_bounds = bounds});
    run_into(pool, m, want, p, &want_states,
             recurrence_options{.form = linear_form::recurrent, .sequence_bounds = bounds});
    const expected size = oracle(m, p, false);
    const double eps = 2 * rounding<float>(p.s);
    for (index i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out.data()[i], want.data()[i], eps * size.out_size.data()[i]) << i;
    }
    double largest = 0;
    for (index i = 0; i < size.state_size.size(); ++i) {
      largest = std::max(largest, size.state_size.data()[i]);
    }
    for (index i = 0; i < states.size(); ++i) {
      ASSERT_NEAR(states.data()[i], want_states.data()[i], eps * largest) << i;
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
