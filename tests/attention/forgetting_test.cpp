// SPDX-License-Identifier: MIT
// Forgetting attention against its definition in double: windows, groups, decode, hard resets, and
// a million tokens.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;

template <class T, std::size_t R>
heed::tensor<T, static_cast<int>(R)> random_tensor(const index (&extents)[R], unsigned seed) {
  heed::tensor<T, static_cast<int>(R)> t(std::to_array(extents));
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(normal(engine));
  return t;
}

/// One head's output at row i: the sum of the gates between query and key taken anew for each pair.
template <class T>
std::vector<double> row(const heed::tensor<T, 4>& q, const heed::tensor<T, 4>& k,
                        const heed::tensor<T, 4>& v, const heed::tensor<T, 3>& g, index b, index h,
                        index i, index left) {
  const index kv = h / (q.extent(1) / k.extent(1));
  const index d = q.extent(3);
  std::vector<double> out(static_cast<std::size_t>(v.extent(3)));
  double total = 0, most = -1e300;
  for (const bool measure : {true, false}) {
    for (index j = std::max<index>(0, i - left); j <= i; ++j) {
      double s = 0;
      for (index c = 0; c < d; ++c) {
        s += static_cast<double>(q(b, h, i, c)) * static_cast<double>(k(b, kv, j, c));
      }
      s /= std::sqrt(static_cast<double>(d));
      for (index t = j + 1; t <= i; ++t) s += static_cast<double>(g(b, h, t));
      if (measure) {
        most = std::max(most, s);
        continue;
      }
      const double weight = std::exp(s - most);
      total += weight;
      for (std::size_t c = 0; c < out.size(); ++c) {
        out[c] += weight * static_cast<double>(v(b, kv, j, static_cast<index>(c)));
      }
    }
  }
  for (double& x : out) x /= total;
  return out;
}

template <class T>
void check(index batch, index tokens, index kv_heads, index group, index d, index dv, index left,
           bool resets, unsigned seed) {
  const auto q = random_tensor<T>({batch, kv_heads * group, tokens, d}, seed);
  const auto k = random_tensor<T>({batch, kv_heads, tokens, d}, seed + 1);
  const auto v = random_tensor<T>({batch, kv_heads, tokens, dv}, seed + 2);
  auto g = random_tensor<T>({batch, kv_heads * group, tokens}, seed + 3);
  for (index i = 0; i < g.size(); ++i) {
    g.data()[i] =
        resets && i % 7 == 4 ? -std::numeric_limits<T>::infinity() : -std::abs(g.data()[i]) / T(4);
  }
  const heed::window window{.left = left};
  const auto tiled = heed::forgetting_attention(q, k, v, g, {}, window);
  heed::serial_executor serial;
  heed::tensor<T, 4> written(tiled.extents());
  heed::forgetting_attention_into(serial, written, q, k, v, g, {}, window);
  const heed::forget_gates gates(g);
  const auto naive = heed::naive_attention(q, k, v, {}, gates, heed::causal() && window);
  // Scores below 20 in size, each off by d + 20 eps; a mean of values of size 4.
  const double tolerance = 4.0 * (static_cast<double>(d) + 20) * 8 *
                           static_cast<double>(std::numeric_limits<T>::epsilon());
  for (index b = 0; b < batch; ++b) {
    for (index h = 0; h < kv_heads * group; ++h) {
      for (index i = 0; i < tokens; ++i) {
        const auto want = row(q, k, v, g, b, h, i, left);
        for (index c = 0; c < dv; ++c) {
          const double expected = want[static_cast<std::size_t>(c)];
          ASSERT_NEAR(static_cast<double>(tiled(b, h, i, c)), expected, tolerance);
          ASSERT_NEAR(static_cast<double>(written(b, h, i, c)), expected, tolerance);
          ASSERT_NEAR(static_cast<double>(naive(b, h, i, c)), expected, tolerance);
        }
      }
    }
  }
}

RC_GTEST_PROP(ForgettingAttention, IsItsDefinition, ()) {
  const auto seed = *rc::gen::inRange(0U, 10000U);
  const auto tokens = *rc::gen::inRange<index>(1, 70);
  const auto kv_heads = *rc::gen::inRange<index>(1, 3);
  const auto group = *rc::gen::inRange<index>(1, 3);
  const auto d = *rc::gen::inRange<index>(1, 20);
  const auto dv = *rc::gen::inRange<index>(1, 20);
  const auto left = *rc::gen::inRange<index>(0, 100);
  check<float>(1, tokens, kv_heads, group, d, dv, left, seed % 2 == 0, seed);
  check<double>(2, tokens, kv_heads, group, d, dv, left, seed % 2 == 0, seed);
}

TEST(ForgettingAttention, DecodeByTheModifierIsTheLastRow) {
  const auto q = random_tensor<float>({1, 2, 33, 8}, 1), k = random_tensor<float>({1, 2, 33, 8}, 2),
             v = random_tensor<float>({1, 2, 33, 8}, 3);
  auto g = random_tensor<float>({1, 2, 33}, 4);
  for (index i = 0; i < g.size(); ++i) g.data()[i] = -std::abs(g.data()[i]);
  const auto whole = heed::forgetting_attention(q, k, v, g);
  const heed::forget_gates gates(g);
  const auto last = heed::attention(heed::as_view(q).slice(2, 32, 33), k, v, {.offset = 32}, gates,
                                    heed::causal());
  for (index h = 0; h < 2; ++h) {
    for (index c = 0; c < 8; ++c) EXPECT_NEAR(last(0, h, 0, c), whole(0, h, 32, c), 1e-5);
  }
}

TEST(ForgettingAttention, OpenGatesAreCausalAttention) {
  const auto q = random_tensor<float>({1, 3, 50, 16}, 1),
             k = random_tensor<float>({1, 3, 50, 16}, 2);
  const heed::tensor<float, 3> g({1, 3, 50});
  const auto out = heed::forgetting_attention(q, k, k, g);
  const auto plain = heed::attention(q, k, k, {}, heed::causal());
  for (index i = 0; i < out.size(); ++i) EXPECT_NEAR(out.data()[i], plain.data()[i], 1e-6);
}

// A float sum of a million gates would be off by several units; here the last window is exact.
TEST(ForgettingAttention, AMillionTokensKeepThePrecisionOfTheLastWindow) {
  constexpr index n = 1'000'000, w = 40;
  heed::tensor<float, 2> k({n, 4}), v({n, 4});
  heed::tensor<float, 1> g({n});
  std::mt19937 engine(3);
  for (index t = 0; t < n; ++t) {
    g(t) = -static_cast<float>(engine() % 1000) * 1e-3F;
    for (index c = 0; c < 4; ++c) {
      k(t, c) = static_cast<float>(engine() % 100) * 0.02F - 1;
      v(t, c) = static_cast<float>(engine() % 100) * 0.02F - 1;
    }
  }
  const auto q = heed::as_view(k).slice(0, n - 1, n);
  const heed::forget_gates gates(g);
  const auto out = heed::attention(q, k, v, {.offset = n - 1}, gates,
                                   heed::causal() && heed::window{.left = w - 1});
  const auto tail = [&](const auto& x) { return heed::as_view(x).slice(0, n - w, n); };
  const heed::forget_gates last(tail(g));
  const auto alone = heed::attention(q, tail(k), tail(v), {.offset = w - 1}, last, heed::causal());
  for (index c = 0; c < 4; ++c) EXPECT_NEAR(out(0, c), alone(0, c), 1e-6);
}

TEST(ForgettingAttention, GatesThatDoNotFitAreNamed) {
  const heed::tensor<float, 4> q({1, 2, 5, 4});
  const heed::tensor<float, 3> g({1, 3, 5}), short_g({1, 2, 4});
  const auto fails = [&](const std::string& part, const heed::tensor<float, 3>& gates) {
    try {
      (void)heed::forgetting_attention(q, q, q, gates);
      ADD_FAILURE() << "no error about " << part;
    } catch (const heed::shape_error& e) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    }
  };
  fails("gates has heads 3, q has 2", g);
  fails("gates has tokens 4, k has 5", short_g);
}

}  // namespace
