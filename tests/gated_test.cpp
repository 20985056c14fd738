// SPDX-License-Identifier: MIT
// Retention, lightning, gated attention, SSD and RWKV-6: every form against plain loops in double.
#include <vector>

#include "heed/parallel.hpp"
#include "recurrence_oracle.hpp"

namespace {

using namespace recurrence_test;
using heed::index;

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

TEST(Gated, GatesFromZeroToResets) {
  unsigned seed = 100;
  for (const gates kind : {gates::zero, gates::tiny, gates::strong, gates::resets}) {
    for (const index tokens : {1, 15, 16, 17, 63, 64, 65, 129}) {
      const problem<float> p({1, 2, 2, 2, tokens, 20, 24}, kind, ++seed);
      for (const method m : members) expect_forms(m, p);
      if (HasFailure()) return;
    }
  }
}

TEST(Gated, AnyChunk) {
  const problem<float> p({1, 4, 2, 2, 50, 12, 18}, gates::mild, 7);
  for (const index chunk : {1, 2, 5, 16, 31, 50, 1000}) {
    for (const method m : members) expect_forms(m, p, recurrence_options{.chunk = chunk});
    if (HasFailure()) return;
  }
}

// No token at all leaves the state's bits alone.
TEST(Gated, NoTokens) {
  const problem<float> p({2, 2, 2, 2, 0, 5, 3}, gates::mild, 3);
  for (const auto form : {linear_form::recurrent, linear_form::chunked, linear_form::parallel}) {
    auto state = p.state;
    const auto out =
        heed::gated_attention(p.q, p.k, p.v, p.g, state, recurrence_options{.form = form});
    EXPECT_EQ(out.size(), 0);
    EXPECT_EQ(0, std::memcmp(state.data(), p.state.data(),
                             static_cast<std::size_t>(state.size()) * sizeof(float)));
  }
}

// A NaN of one token is met by it and by later ones alone.
TEST(Gated, NaNReachesNoEarlierToken) {
  for (const index at : {0, 15, 16, 40, 63, 64, 80}) {
    problem<float> p({1, 1, 1, 1, 90, 16, 16}, gates::mild, 5);
    heed::serial_executor exec;
    for (const auto form : {linear_form::recurrent, linear_form::chunked, linear_form::parallel}) {
      for (const method m : members) {
        const recurrence_options o{.form = form};
        heed::tensor<float, 4> clean({1, 1, 90, 16}), out({1, 1, 90, 16});
        run_into(exec, m, clean, p, nullptr, o);
        auto broken = p;
        broken.v(0, 0, at, 3) = std::numeric_limits<float>::quiet_NaN();
        run_into(exec, m, out, broken, nullptr, o);
        EXPECT_TRUE(std::isnan(out(0, 0, at, 3))) << name_of(m);
        for (index t = 0; t < at; ++t) {
          for (index c = 0; c < 16; ++c) ASSERT_EQ(out(0, 0, t, c), clean(0, 0, t, c));
        }
      }
    }
  }
}

// Pieces with a state saved and restored as bytes between them, against the definition.
TEST(Gated, PiecesMakeTheWhole) {
  const index tokens = 100;
  const problem<float> p({1, 2, 2, 2, tokens, 16, 20}, gates::mild, 11);
  const expected want = oracle(method::gated, p, true);
  const auto piece = [&](const auto& x, index from, index to) {
    heed::tensor<float, 4> y({x.extent(0), x.extent(1), to - from, x.extent(3)});
    for (index h = 0; h < x.extent(1); ++h) {
      for (index t = from; t < to; ++t) {
        for (index c = 0; c < x.extent(3); ++c) y(0, h, t - from, c) = x(0, h, t, c);
      }
    }
    return y;
  };
  auto state = p.state;
  heed::tensor<float, 4> whole({1, 2, tokens, 20});
  const index cuts[] = {0, 1, 4, 37, 53, 54, 100};
  for (std::size_t i = 0; i + 1 < std::size(cuts); ++i) {
    const index from = cuts[i], to = cuts[i + 1];
    std::vector<float> saved(state.data(), state.data() + state.size());
    heed::tensor<float, 4> restored(p.state.extents());
    std::memcpy(restored.data(), saved.data(), saved.size() * sizeof(float));
    const auto out = heed::gated_attention(piece(p.q, from, to), piece(p.k, from, to),
                                           piece(p.v, from, to), piece(p.g, from, to), restored);
    for (index h = 0; h < 2; ++h) {
      for (index t = from; t < to; ++t) {
        for (index c = 0; c < 20; ++c) whole(0, h, t, c) = out(0, h, t - from, c);
      }
    }
    state = restored;
  }
  expect_near<float, 4>(heed::as_view(whole), want.out, want.out_size, rounding<float>(p.s), "out");
  expect_near<float, 4>(heed::as_view(state), want.state, want.state_size, rounding<float>(p.s),
                        "state");
}

// Sequences laid end to end, a state each, are what each is alone, to the bit.
TEST(Gated, RaggedSequences) {
  const problem<float> p({1, 2, 2, 2, 60, 8, 16}, gates::mild, 12);
  const index bounds[] = {0, 7, 7, 40, 60};
  for (const auto form : {linear_form::recurrent, linear_form::chunked, linear_form::parallel}) {
    heed::tensor<float, 4> states({4, 2, 8, 16});
    const auto out = heed::gated_attention(
        p.q, p.k, p.v, p.g, states, recurrence_options{.form = form, .sequence_bounds = bounds});
    for (std::size_t s = 0; s < 4; ++s) {
      const index from = bounds[s], n = bounds[s + 1] - from;
      const auto part = [&](const heed::tensor<float, 4>& x) {
        const auto v = heed::as_view(x);
        return heed::view<const float, 4>(v.data() + from * v.stride(2), {1, 2, n, v.extent(3)},
                                          v.strides());
      };
      heed::tensor<float, 4> state({1, 2, 8, 16});
      const auto alone = heed::gated_attention(part(p.q), part(p.k), part(p.v), part(p.g), state,
                                               recurrence_options{.form = form});
      for (index h = 0; h < 2; ++h) {
        for (index t = 0; t < n; ++t) {
          for (index c = 0; c < 16; ++c) ASSERT_EQ(out(0, h, from + t, c), alone(0, h, t, c));
        }
        for (index f = 0; f < 8; ++f) {
          for (index c = 0; c < 16; ++c) {
            ASSERT_EQ(states(static_cast<index>(s), h, f, c), state(0, h, f, c));
          }
        }
      }
    }
  }
}

TEST(Gated, WrongArgumentsAreNamed) {
  const problem<float> p({1, 2, 2, 2, 9, 4, 6}, gates::mild, 1);
  const auto message = [](auto&& f) -> std::string {
    try {
      f();
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "nothing was thrown";
  };
  const heed::tensor<float, 4> wide({1, 2, 9, 5}), shorter({1, 2, 8, 4}), three({1, 3, 9, 4});
  heed::tensor<float, 4> state({1, 2, 4, 5});
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, wide); }),
            "g has channels 5, k has 4");
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, shorter); }),
            "g has tokens 8, q has 9");
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, three); }),
            "g has 3 heads, which do not divide the state's 2");
  EXPECT_EQ(message([&] { (void)heed::gated_attention(p.q, p.k, p.v, p.g, state); }),
            "state has extents [1, 2, 4, 5], the call needs [1, 2, 4, 6]");
  EXPECT_EQ(message([&] {
              (void)heed::gated_attention(p.q, p.k, p.v, p.g, recurrence_options{.chunk = 0});
            }),
            "chunk is 0, must be at least 1");
}

TEST(ParallelGated, SameBitsForAnyNumberOfThreads) {
  const problem<float> p({2, 8, 2, 4, 90, 16, 20}, gates::mild, 21);
  for (int i = 0; i <= static_cast<int>(method::rwkv7); ++i) {
    const auto m = static_cast<method>(i);
    for (const auto form : {linear_form::recurrent, linear_form::chunked}) {
      heed::serial_executor serial;
      heed::tensor<float, 4> one({2, 8, 90, 20}), many({2, 8, 90, 20});
      auto state_one = p.state, state_many = p.state;
      run_into(serial, m, one, p, &state_one, recurrence_options{.form = form});
      for (const int threads : {2, 3, 5}) {
        heed::thread_pool pool(threads);
        state_many = p.state;
        run_into(pool, m, many, p, &state_many, recurrence_options{.form = form});
        ASSERT_EQ(0, std::memcmp(one.data(), many.data(), std::size_t(one.size()) * 4));
        ASSERT_EQ(
            0, std::memcmp(state_one.data(), state_many.data(), std::size_t(p.state.size()) * 4));
      }
    }
  }
}

}  // namespace
