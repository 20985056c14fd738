// SPDX-License-Identifier: MIT
// Kernelised linear attention: every form against an oracle in long double, over shapes, strides,
// scalars, states and chunk boundaries; and its errors.
#include "heed/linear.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "heed/parallel.hpp"
#include "heed/tensor.hpp"
#include "support/expect_error.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using heed::linear_form;
using heed::linear_options;
using support::expect_error;

constexpr linear_form forms[] = {linear_form::recurrent, linear_form::chunked,
                                 linear_form::parallel};

const char* name(linear_form f) {
  return f == linear_form::recurrent ? "recurrent"
         : f == linear_form::chunked ? "chunked"
                                     : "parallel";
}

template <class T>
double scalar_epsilon() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -10);
  if constexpr (std::is_same_v<T, heed::bfloat16>) return std::ldexp(1.0, -7);
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

template <class T, std::size_t R>
heed::tensor<T, static_cast<int>(R)> random_tensor(const index (&extents)[R], unsigned seed) {
  heed::tensor<T, static_cast<int>(R)> t(std::to_array(extents));
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(normal(engine));
  return t;
}

long double elu_plus_one(long double x) { return x > 0 ? x + 1 : std::exp(x); }

/// What the definition gives, and how large the terms of its sums are: errors are proportional to
/// it.
struct expected {
  heed::tensor<double, 4> out, out_size;
  heed::tensor<double, 4> sum, sum_size;
  heed::tensor<double, 3> normaliser;
};

/// The quadratic definition in long double, written from the formulas alone.
template <class T>
expected oracle(const heed::view<const T, 4>& q, const heed::view<const T, 4>& k,
                const heed::view<const T, 4>& v, const linear_options& o,
                const std::function<std::vector<long double>(std::vector<long double>)>& phi,
                const heed::linear_state_view<heed::accumulate_t<T>>* state = nullptr) {
  using real = long double;
  const index batch = q.extent(0), heads = q.extent(1), n = q.extent(2), d = q.extent(3);
  const index kv_heads = k.extent(1), m = k.extent(2), dv = v.extent(3);
  const auto row = [&](const heed::view<const T, 4>& x, index b, index h, index t) {
    std::vector<real> c;
    for (index i = 0; i < d; ++i)
      c.push_back(static_cast<real>(static_cast<double>(x(b, h, t, i))));
    return phi(c);
  };
  const auto f_count =
      static_cast<index>(phi(std::vector<real>(static_cast<std::size_t>(d))).size());
  expected e{heed::tensor<double, 4>({batch, heads, n, dv}),
             heed::tensor<double, 4>({batch, heads, n, dv}),
             heed::tensor<double, 4>({batch, kv_heads, f_count, dv}),
             heed::tensor<double, 4>({batch, kv_heads, f_count, dv}),
             heed::tensor<double, 3>({batch, kv_heads, f_count})};
  const real scale = o.scale ? *o.scale : 1 / std::sqrt(static_cast<real>(d));
  for (index b = 0; b < batch; ++b) {
    for (index g = 0; g < kv_heads; ++g) {
      std::vector<std::vector<real>> keys;
      for (index j = 0; j < m; ++j) keys.push_back(row(k, b, g, j));
      for (index h = g * (heads / kv_heads); h < (g + 1) * (heads / kv_heads); ++h) {
        for (index i = 0; i < n; ++i) {
          const auto query = row(q, b, h, i);
          std::vector<real> sums(static_cast<std::size_t>(dv)), sizes(static_cast<std::size_t>(dv));
          real z = 0, z_size = 0;
          for (index f = 0; state != nullptr && f < f_count; ++f) {
            const real w = query[static_cast<std::size_t>(f)];
            for (std::size_t c = 0; c < sums.size(); ++c) {
              const real s = state->sum(b, g, f, static_cast<index>(c));
              sums[c] += w * s;
              sizes[c] += std::abs(w * s);
            }
            if (o.normalise) z += w * state->normaliser(b, g, f);
            if (o.normalise) z_size += std::abs(w * state->normaliser(b, g, f));
          }
          for (index j = 0; j < (o.causal ? i + 1 : m); ++j) {
            real w = 0, w_size = 0;
            for (std::size_t f = 0; f < query.size(); ++f) {
              w += query[f] * keys[static_cast<std::size_t>(j)][f];
              w_size += std::abs(query[f] * keys[static_cast<std::size_t>(j)][f]);
            }
            z += w;
            z_size += w_size;
            for (std::size_t c = 0; c < sums.size(); ++c) {
              const auto value =
                  static_cast<real>(static_cast<double>(v(b, g, j, static_cast<index>(c))));
              sums[c] += w * value;
              sizes[c] += w_size * std::abs(value);
            }
          }
          for (std::size_t c = 0; c < sums.size(); ++c) {
            const auto at = static_cast<index>(c);
            if (o.normalise) {
              const real den = z + static_cast<real>(o.eps);
              e.out(b, h, i, at) = static_cast<double>(sums[c] / den);
              e.out_size(b, h, i, at) = static_cast<double>(
                  sizes[c] / std::abs(den) + std::abs(sums[c]) * z_size / (den * den));
            } else {
              e.out(b, h, i, at) = static_cast<double>(scale * sums[c]);
              e.out_size(b, h, i, at) = static_cast<double>(std::abs(scale) * sizes[c]);
            }
          }
        }
      }
      for (index f = 0; f < f_count; ++f) {
        real z = state != nullptr && state->normaliser.data() != nullptr
                     ? state->normaliser(b, g, f)
                     : 0;
        for (index j = 0; j < m; ++j)
          z += keys[static_cast<std::size_t>(j)][static_cast<std::size_t>(f)];
        e.normaliser(b, g, f) = static_cast<double>(z);
        for (index c = 0; c < dv; ++c) {
          real s = state != nullptr ? state->sum(b, g, f, c) : 0;
          real size = std::abs(s);
          for (index j = 0; j < m; ++j) {
            const real t = keys[static_cast<std::size_t>(j)][static_cast<std::size_t>(f)] *
                           static_cast<real>(static_cast<double>(v(b, g, j, c)));
            s += t;
            size += std::abs(t);
          }
          e.sum(b, g, f, c) = static_cast<double>(s);
          e.sum_size(b, g, f, c) = static_cast<double>(size);
        }
      }
    }
  }
  return e;
}

std::vector<long double> elu_features(std::vector<long double> x) {
  for (auto& c : x) c = elu_plus_one(c);
  return x;
}
std::vector<long double> same(std::vector<long double> x) { return x; }

/// Roundings on the way to a result: M + F additions of products, 8 units for the feature map (its
/// polynomial 2 eps, the rounded exponent |x| eps with |x| < 6) of each factor, and a division.
template <class A>
double rounding(index keys, index features) {
  return static_cast<double>(keys + features + 20) *
         static_cast<double>(std::numeric_limits<A>::epsilon());
}

template <class T>
void expect_output(const heed::view<const T, 4>& out, const expected& want, index keys,
                   index features, const std::string& what) {
  const double eps = rounding<heed::accumulate_t<T>>(keys, features);
  for (index b = 0; b < out.extent(0); ++b) {
    for (index h = 0; h < out.extent(1); ++h) {
      for (index i = 0; i < out.extent(2); ++i) {
        for (index c = 0; c < out.extent(3); ++c) {
          const double w = want.out(b, h, i, c);
          ASSERT_NEAR(static_cast<double>(out(b, h, i, c)), w,
                      eps * want.out_size(b, h, i, c) + scalar_epsilon<T>() * std::abs(w))
              << what << " batch " << b << " head " << h << " row " << i << " channel " << c;
        }
      }
    }
  }
}

template <class A>
void expect_state(const heed::linear_state_view<A>& s, const expected& want, index keys,
                  const std::string& what) {
  const double eps = rounding<A>(keys, 0);
  for (index b = 0; b < s.sum.extent(0); ++b) {
    for (index h = 0; h < s.sum.extent(1); ++h) {
      for (index f = 0; f < s.sum.extent(2); ++f) {
        for (index c = 0; c < s.sum.extent(3); ++c) {
          ASSERT_NEAR(static_cast<double>(s.sum(b, h, f, c)), want.sum(b, h, f, c),
                      eps * want.sum_size(b, h, f, c))
              << what << " state " << b << ' ' << h << ' ' << f << ' ' << c;
        }
        if (s.normaliser.data() != nullptr) {
          // phi > 0: the sum is its own size.
          ASSERT_NEAR(static_cast<double>(s.normaliser(b, h, f)), want.normaliser(b, h, f),
                      eps * std::abs(want.normaliser(b, h, f)))
              << what << " normaliser " << b << ' ' << h << ' ' << f;
        }
      }
    }
  }
}

template <class T>
class LinearScalar : public testing::Test {};
using scalars = test_scalars::all;
TYPED_TEST_SUITE(LinearScalar, scalars);

TYPED_TEST(LinearScalar, FormsMatchTheDefinition) {
  using T = TypeParam;
  struct shape {
    index batch, heads, kv_heads, tokens, d, dv, chunk;
  };
  const shape shapes[] = {{1, 1, 1, 1, 1, 1, 64},    {1, 2, 1, 7, 3, 5, 4},
                          {2, 6, 2, 33, 16, 16, 16}, {1, 2, 2, 65, 64, 64, 64},
                          {1, 1, 1, 63, 20, 40, 64}, {1, 4, 2, 50, 17, 33, 7},
                          {1, 1, 1, 40, 8, 100, 1},  {1, 1, 1, 130, 48, 48, 48}};
  for (const shape& s : shapes) {
    const auto q = random_tensor<T>({s.batch, s.heads, s.tokens, s.d}, 1);
    const auto k = random_tensor<T>({s.batch, s.kv_heads, s.tokens, s.d}, 2);
    const auto v = random_tensor<T>({s.batch, s.kv_heads, s.tokens, s.dv}, 3);
    for (const bool causal : {true, false}) {
      for (const bool normalise : {true, false}) {
        linear_options o{.causal = causal, .normalise = normalise, .chunk = s.chunk};
        const auto want =
            oracle<T>(heed::as_view(q), heed::as_view(k), heed::as_view(v), o, elu_features);
        for (const auto form : forms) {
          o.form = form;
          const std::string what = std::string(name(form)) + " causal " + std::to_string(causal) +
                                   " normalise " + std::to_string(normalise) + " tokens " +
                                   std::to_string(s.tokens);
          heed::linear_state<heed::accumulate_t<T>> state({s.batch, s.kv_heads, s.d, s.dv});
          const auto out = heed::linear_attention(q, k, v, state, o);
          expect_output<T>(heed::as_view(out), want, s.tokens, s.d, what);
          expect_state<heed::accumulate_t<T>>(state, want, s.tokens, what);
          // Without a state the output is the same.
          const auto stateless = heed::linear_attention(q, k, v, o);
          for (index i = 0; i < out.size(); ++i) {
            ASSERT_EQ(static_cast<double>(out.data()[i]), static_cast<double>(stateless.data()[i]))
                << what;
          }
        }
      }
    }
  }
}

TEST(Linear, DefaultFormIsOneOfThem) {
  for (const index n : {7, 8}) {
    const auto q = random_tensor<float>({1, 1, n, 16}, 1);
    const auto out = heed::linear_attention(q, q, q);
    const auto named = heed::linear_attention(
        q, q, q, {.form = n < 8 ? linear_form::recurrent : linear_form::chunked});
    EXPECT_EQ(0, std::memcmp(out.data(), named.data(), static_cast<std::size_t>(out.size()) * 4));
  }
}

// One random case of everything; chunk boundaries are met from both sides because tokens are drawn
// around multiples of the chunk.
RC_GTEST_PROP(LinearProperty, EveryShapeStrideAndState, ()) {
  using T = float;
  const index batch = *rc::gen::inRange<index>(1, 3);
  const index kv_heads = *rc::gen::inRange<index>(1, 3);
  const index heads = kv_heads * *rc::gen::inRange<index>(1, 4);
  const index chunk = *rc::gen::element<index>(1, 2, 5, 8, 16, 31, 64);
  const index around = *rc::gen::inRange<index>(0, 4);
  const index n =
      std::max<index>(0, std::min<index>(around * chunk, 130) + *rc::gen::inRange<index>(-1, 2));
  const bool causal = *rc::gen::arbitrary<bool>();
  const index m = causal ? n : *rc::gen::inRange<index>(0, 80);
  const index d = *rc::gen::inRange<index>(1, 40);
  const index dv = *rc::gen::element<index>(1, 3, 16, 17, 32, 48, 50);
  const bool normalise = *rc::gen::arbitrary<bool>();
  const bool carried = *rc::gen::arbitrary<bool>();
  const index gap = *rc::gen::inRange<index>(1, 3);
  const bool token_major = *rc::gen::arbitrary<bool>();
  const auto seed = *rc::gen::arbitrary<unsigned>();
  linear_options o{.causal = causal, .normalise = normalise, .chunk = chunk};
  o.form = *rc::gen::element(linear_form::recurrent, linear_form::chunked, linear_form::parallel);

  // Storage with NaN between the elements; perhaps token-major, channels perhaps apart.
  const auto spread = [&](std::vector<T>& storage, index h, index t, index c, unsigned s) {
    storage.assign(static_cast<std::size_t>(batch * h * t * c * gap + 1),
                   std::numeric_limits<T>::quiet_NaN());
    const index row = c * gap;
    const heed::view<T, 4> x(storage.data(), {batch, h, t, c},
                             token_major ? std::array<index, 4>{h * t * row, row, h * row, gap}
                                         : std::array<index, 4>{h * t * row, t * row, row, gap});
    std::mt19937 engine(s);
    std::normal_distribution<float> normal;
    for (index i = 0; i < batch * h * t * c; ++i) {
      x(i / (h * t * c), i / (t * c) % h, i / c % t, i % c) = normal(engine);
    }
    return x;
  };
  std::vector<T> sq, sk, sv, so;
  const auto q = spread(sq, heads, n, d, seed);
  const auto k = spread(sk, kv_heads, m, d, seed + 1);
  const auto v = spread(sv, kv_heads, m, dv, seed + 2);
  const auto out = spread(so, heads, n, dv, seed + 3);

  heed::linear_state<float> state({batch, kv_heads, d, dv});
  if (carried) {  // as if tokens had gone before: z positive
    std::mt19937 engine(seed + 4);
    std::normal_distribution<float> normal;
    for (index i = 0; i < state.sum().size(); ++i) state.sum().data()[i] = 3 * normal(engine);
    for (index i = 0; i < state.normaliser().size(); ++i) {
      state.normaliser().data()[i] = 1 + std::abs(normal(engine));
    }
  }
  heed::linear_state<float> before = state;
  const heed::linear_state_view<float> in = before;
  const auto want = oracle<T>(q, k, v, o, elu_features, &in);
  heed::linear_attention_into(out, q, k, v, state, o);
  expect_output<T>(out, want, m + 1, d, name(*o.form));
  expect_state<float>(state, want, m + 1, name(*o.form));
  RC_ASSERT(!testing::Test::HasFailure());
  const auto gaps = std::count_if(so.begin(), so.end(), [](float f) { return std::isnan(f); });
  RC_ASSERT(gaps == static_cast<std::ptrdiff_t>(so.size()) - out.size());
}

// Any cut of a sequence into pieces, each in any form, with one state.
RC_GTEST_PROP(LinearProperty, PiecesMakeTheWhole, ()) {
  const index n = *rc::gen::inRange<index>(1, 100);
  const bool normalise = *rc::gen::arbitrary<bool>();
  const auto q = random_tensor<double>({1, 2, n, 9}, 1);
  const auto k = random_tensor<double>({1, 1, n, 9}, 2);
  const auto v = random_tensor<double>({1, 1, n, 6}, 3);
  linear_options o{.normalise = normalise, .chunk = *rc::gen::inRange<index>(1, 20)};
  const auto want =
      oracle<double>(heed::as_view(q), heed::as_view(k), heed::as_view(v), o, elu_features);
  heed::linear_state<double> state({.features = 9, .value_dim = 6});
  heed::tensor<double, 4> out({1, 2, n, 6});
  bool had_empty = *rc::gen::arbitrary<bool>();
  for (index t = 0; t < n;) {
    // An empty piece first, sometimes: it changes nothing.
    const bool empty = !std::exchange(had_empty, true);
    const index end = empty ? t : std::min<index>(n, t + *rc::gen::inRange<index>(1, 40));
    o.form = *rc::gen::element(linear_form::recurrent, linear_form::chunked, linear_form::parallel);
    const auto cut = [&](auto& x) { return heed::as_view(x).slice(2, t, end); };
    heed::linear_attention_into(cut(out), cut(q), cut(k), cut(v), state, o);
    t = end;
  }
  expect_output<double>(heed::as_view(std::as_const(out)), want, n, 9, "pieces");
  expect_state<double>(state, want, n, "pieces");
  RC_ASSERT(!testing::Test::HasFailure());
}

TEST(Linear, PiecesOfWholeChunksGiveTheSameBits) {
  const auto q = random_tensor<float>({1, 2, 96, 32}, 1);
  const auto k = random_tensor<float>({1, 1, 96, 32}, 2);
  const auto v = random_tensor<float>({1, 1, 96, 32}, 3);
  const linear_options o{.form = linear_form::chunked, .chunk = 16};
  const auto whole = heed::linear_attention(q, k, v, o);
  heed::linear_state<float> state({.features = 32, .value_dim = 32});
  heed::tensor<float, 4> out(whole.extents());
  for (const auto& [begin, end] : {std::pair<index, index>{0, 48}, {48, 64}, {64, 96}}) {
    const auto cut = [b = begin, e = end](auto& x) { return heed::as_view(x).slice(2, b, e); };
    heed::linear_attention_into(cut(out), cut(q), cut(k), cut(v), state, o);
  }
  EXPECT_EQ(0, std::memcmp(whole.data(), out.data(),
                           static_cast<std::size_t>(out.size()) * sizeof(float)));
}

TEST(Linear, SameBitsForAnyThreadsAndBatch) {
  const auto q = random_tensor<float>({3, 6, 100, 24}, 1);
  const auto k = random_tensor<float>({3, 3, 100, 24}, 2);
  const auto v = random_tensor<float>({3, 3, 100, 20}, 3);
  heed::serial_executor serial;
  for (const auto form : forms) {
    for (const bool causal : {true, false}) {
      const linear_options o{.causal = causal, .form = form, .chunk = 32};
      const auto one = heed::linear_attention(serial, q, k, v, o);
      const auto bytes = static_cast<std::size_t>(one.size()) * sizeof(float);
      for (const index threads : {2, 7}) {
        heed::thread_pool pool(threads);
        const auto many = heed::linear_attention(pool, q, k, v, o);
        EXPECT_EQ(0, std::memcmp(one.data(), many.data(), bytes)) << name(form) << ' ' << threads;
      }
      for (index b = 0; b < 3; ++b) {
        const auto element = [b](auto& x) { return heed::as_view(x).slice(0, b, b + 1); };
        const auto alone = heed::linear_attention(serial, element(q), element(k), element(v), o);
        EXPECT_EQ(0, std::memcmp(&one(b, 0, 0, 0), alone.data(), bytes / 3)) << name(form);
      }
    }
  }
}

// Sequences one after another are as many calls, causal and not; one may have no tokens.
TEST(Linear, RaggedBatchesAreSeparateCalls) {
  const index bounds[] = {0, 30, 30, 31, 200};
  const auto q = random_tensor<float>({1, 4, 200, 16}, 1);
  const auto k = random_tensor<float>({1, 2, 200, 16}, 2);
  const auto v = random_tensor<float>({1, 2, 200, 9}, 3);
  for (const bool causal : {true, false}) {
    heed::linear_state<float> states({.batch = 4, .kv_heads = 2, .features = 16, .value_dim = 9});
    states.sum() = random_tensor<float>({4, 2, 16, 9}, 4);
    for (index i = 0; i < states.normaliser().size(); ++i) states.normaliser().data()[i] = 1;
    const auto begin = states;
    const auto out =
        heed::linear_attention(q, k, v, states, {.causal = causal, .sequence_bounds = bounds});
    for (index n = 0; n < 4; ++n) {
      const auto part = [&](const auto& x) {
        return heed::as_view(x).slice(2, bounds[n], bounds[n + 1]);
      };
      auto copy = begin;
      const heed::linear_state_view<float> all = copy;
      const heed::linear_state_view<float> state{all.sum.slice(0, n, n + 1),
                                                 all.normaliser.slice(0, n, n + 1)};
      heed::tensor<float, 4> alone({1, 4, bounds[n + 1] - bounds[n], 9});
      heed::linear_attention_into(alone, part(q), part(k), part(v), state, {.causal = causal});
      for (index h = 0; h < 4; ++h) {
        for (index t = bounds[n]; t < bounds[n + 1]; ++t) {
          for (index c = 0; c < 9; ++c) ASSERT_EQ(out(0, h, t, c), alone(0, h, t - bounds[n], c));
        }
      }
      for (index h = 0; h < 2; ++h) {
        for (index f = 0; f < 16; ++f) {
          ASSERT_EQ(states.normaliser()(n, h, f), copy.normaliser()(n, h, f));
          for (index c = 0; c < 9; ++c) ASSERT_EQ(states.sum()(n, h, f, c), copy.sum()(n, h, f, c));
        }
      }
    }
  }
}

TEST(Linear, IdentityFeaturesAreTheOperatorStandardsRule) {
  const auto q = random_tensor<double>({2, 4, 37, 8}, 1);
  const auto k = random_tensor<double>({2, 2, 37, 8}, 2);
  const auto v = random_tensor<double>({2, 2, 37, 8}, 3);
  for (const auto form : forms) {
    for (const auto scale : {std::optional<double>{}, std::optional<double>{-0.3}}) {
      const linear_options o{.normalise = false, .scale = scale, .form = form, .chunk = 16};
      const auto want =
          oracle<double>(heed::as_view(q), heed::as_view(k), heed::as_view(v), o, same);
      heed::tensor<double, 4> sum({2, 2, 8, 8});
      const heed::linear_state_view<double> mine{heed::as_view(sum), {}};
      const auto out = heed::linear_attention(q, k, v, mine, o, heed::identity_features{});
      expect_output<double>(heed::as_view(out), want, 37, 8, name(form));
      expect_state<double>(mine, want, 37, name(form));
    }
  }
}

TEST(Linear, UsersChannelMap) {
  const auto q = random_tensor<float>({1, 1, 40, 21}, 1);
  const auto k = random_tensor<float>({1, 1, 40, 21}, 2);
  const auto v = random_tensor<float>({1, 1, 40, 10}, 3);
  const auto phi = [](std::vector<long double> x) {
    for (auto& c : x) c = c > 0 ? c * c : 0;
    return x;
  };
  for (const auto form : forms) {
    // eps keeps the first rows, whose products may all vanish, away from 0 / 0.
    const linear_options o{.eps = 0.5, .form = form, .chunk = 16};
    const auto want = oracle<float>(heed::as_view(q), heed::as_view(k), heed::as_view(v), o, phi);
    const auto out =
        heed::linear_attention(q, k, v, o, [](float x) { return x > 0 ? x * x : 0.0F; });
    expect_output<float>(heed::as_view(out), want, 40, 21, name(form));
  }
}

/// phi(x) = (relu(x), relu(-x)): twice the features, some way of D.
struct both_signs {
  [[nodiscard]] static index features(index d) { return 2 * d; }
  void operator()(std::span<const float> x, std::span<float> phi) const {
    for (std::size_t c = 0; c < x.size(); ++c) {
      phi[c] = std::max(x[c], 0.0F);
      phi[x.size() + c] = std::max(-x[c], 0.0F);
    }
  }
};

TEST(Linear, UsersVectorMapWithMoreFeatures) {
  const auto q = random_tensor<heed::bfloat16>({1, 2, 40, 11}, 1);
  const auto k = random_tensor<heed::bfloat16>({1, 1, 40, 11}, 2);
  const auto v = random_tensor<heed::bfloat16>({1, 1, 40, 7}, 3);
  const auto phi = [](const std::vector<long double>& x) {
    std::vector<long double> f;
    for (const auto c : x) f.push_back(std::max(c, 0.0L));
    for (const auto c : x) f.push_back(std::max(-c, 0.0L));
    return f;
  };
  for (const auto form : forms) {
    for (const bool causal : {true, false}) {
      const linear_options o{.causal = causal, .eps = 0.1, .form = form, .chunk = 8};
      const auto want =
          oracle<heed::bfloat16>(heed::as_view(q), heed::as_view(k), heed::as_view(v), o, phi);
      heed::linear_state<float> state({.features = 22, .value_dim = 7});
      const auto out = heed::linear_attention(q, k, v, state, o, both_signs{});
      expect_output<heed::bfloat16>(heed::as_view(out), want, 40, 22, name(form));
      expect_state<float>(state, want, 40, name(form));
    }
  }
}

TEST(Linear, EluPlusOneMatchesItsDefinition) {
  for (double x = -100; x < 20; x += 0.0137) {
    float lane[64] = {static_cast<float>(x)};
    double lane_d[64] = {x};
    heed::detail::map_row(heed::elu_plus_one{}, lane, lane, 1);
    heed::detail::map_row(heed::elu_plus_one{}, lane_d, lane_d, 1);
    const auto want = static_cast<double>(elu_plus_one(static_cast<float>(x)));
    const auto want_d = static_cast<double>(elu_plus_one(x));
    // The exponential's polynomial: 2 eps; its rounded argument: |x| eps; below that, subnormals.
    const double units = 3 + std::abs(x);
    EXPECT_NEAR(lane[0], want, units * std::ldexp(1.0, -23) * want + std::ldexp(1.0, -126)) << x;
    EXPECT_NEAR(lane_d[0], want_d, units * std::ldexp(1.0, -52) * want_d) << x;
  }
}

TEST(Linear, EluPlusOneOfInfinitiesAndNan) {
  const float inf = std::numeric_limits<float>::infinity();
  // More than a few packets of them, so that every path of a row meets each.
  std::vector<float> row;
  for (index i = 0; i < 99; ++i) {
    row.push_back(i % 3 == 0 ? inf : i % 3 == 1 ? -inf : std::numeric_limits<float>::quiet_NaN());
  }
  heed::detail::map_row(heed::elu_plus_one{}, row.data(), row.data(), 99);
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (i % 3 == 2) {
      EXPECT_TRUE(std::isnan(row[i])) << i;
    } else {
      EXPECT_EQ(row[i], i % 3 == 0 ? inf : 0.0F) << i;
    }
  }
}

TEST(Linear, LaterTokensNeverReachEarlierOnes) {
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(),
                       std::numeric_limits<float>::infinity()};
  for (const auto form : forms) {
    for (const float poison : bad) {
      for (const index at : {0, 1, 7, 8, 15, 16, 30, 39}) {
        const auto q = random_tensor<float>({1, 1, 40, 16}, 1);
        auto k = random_tensor<float>({1, 1, 40, 16}, 2);
        auto v = random_tensor<float>({1, 1, 40, 16}, 3);
        const linear_options o{.form = form, .chunk = 16};
        const auto clean = heed::linear_attention(q, k, v, o);
        for (index c = 0; c < 16; ++c) k(0, 0, at, c) = v(0, 0, at, c) = poison;
        const auto out = heed::linear_attention(q, k, v, o);
        for (index i = 0; i < 40; ++i) {
          for (index c = 0; c < 16; ++c) {
            if (i < at) {
              ASSERT_EQ(out(0, 0, i, c), clean(0, 0, i, c))
                  << name(form) << " at " << at << " row " << i;
            } else {
              ASSERT_FALSE(std::isfinite(out(0, 0, i, c)))
                  << name(form) << " at " << at << " row " << i;
            }
          }
        }
      }
    }
  }
}

TEST(Linear, NoTokensNoKeys) {
  for (const auto form : forms) {
    const heed::tensor<float, 4> none({1, 1, 0, 8});
    const auto q = random_tensor<float>({1, 1, 3, 8}, 1);
    heed::linear_state<float> state({.features = 8, .value_dim = 8});
    state.sum()(0, 0, 2, 3) = 5;
    state.normaliser()(0, 0, 2) = 7;
    const auto nothing = heed::linear_attention(none, none, none, state, {.form = form});
    EXPECT_EQ(nothing.size(), 0);
    EXPECT_EQ(state.sum()(0, 0, 2, 3), 5.0F);
    EXPECT_EQ(state.normaliser()(0, 0, 2), 7.0F);
    const auto unseen = heed::linear_attention(q, none, none, {.causal = false, .form = form});
    for (index i = 0; i < unseen.size(); ++i) EXPECT_EQ(unseen.data()[i], 0.0F) << name(form);
  }
  const heed::tensor<float, 4> no_heads({1, 0, 3, 8});
  EXPECT_EQ(heed::linear_attention(no_heads, no_heads, no_heads).size(), 0);
}

TEST(Linear, RanksAndEigen) {
  const auto q = random_tensor<float>({1, 1, 20, 8}, 1);
  const auto want = heed::linear_attention(q, q, q);
  Eigen::MatrixXf m(20, 8);
  for (index i = 0; i < 20; ++i) {
    for (index c = 0; c < 8; ++c) m(i, c) = q(0, 0, i, c);
  }
  const Eigen::MatrixXf out = heed::linear_attention(m, m, m);
  const auto three =
      heed::linear_attention(heed::as_view(q)[0], heed::as_view(q)[0], heed::as_view(q)[0]);
  for (index i = 0; i < 20; ++i) {
    for (index c = 0; c < 8; ++c) {
      EXPECT_EQ(out(i, c), want(0, 0, i, c));
      EXPECT_EQ(three(0, i, c), want(0, 0, i, c));
    }
  }
}

TEST(Linear, ScratchIsReusedAndDoesNotGrowWithTokens) {
  heed::workspace scratch;
  const auto q = random_tensor<float>({1, 1, 64, 16}, 1);
  heed::serial_executor serial;
  (void)heed::linear_attention(serial, q, q, q, {.scratch = &scratch});
  const auto size = scratch.size();
  EXPECT_GT(size, 0U);
  const auto longer = random_tensor<float>({1, 1, 6400, 16}, 1);
  (void)heed::linear_attention(serial, longer, longer, longer, {.scratch = &scratch});
  EXPECT_EQ(scratch.size(), size);
  // Nor with the chunk that is given.
  (void)heed::linear_attention(serial, longer, longer, longer,
                               {.chunk = heed::longest_chunk, .scratch = &scratch});
  const auto largest = scratch.size();
  (void)heed::linear_attention(serial, longer, longer, longer,
                               {.chunk = 6400, .scratch = &scratch});
  EXPECT_EQ(scratch.size(), largest);
}

/// A text that is long and comes in pieces, beside its definition in double. Values drift, so that
/// a state that lost its beginning shows.
///
/// A number of S or z has gone through A additions: N of a step each, or N / C of a chunk and C
/// inside it. Their roundings, of independent sign and at most u of what there is, add up in
/// quadrature: 8 times the root is exceeded with a chance of 2 exp(-32) (Higham and Mary 2019). F
/// terms of an answer, the features and the products add theirs at once.
void expect_no_drift(index tokens, index piece) {
  constexpr std::size_t d = 4;
  const index f = d;
  const double u = std::ldexp(1.0, -24);
  const auto phi = [](double x) { return x > 0 ? x + 1 : std::exp(x); };
  const std::array<linear_form, 2> both = {linear_form::chunked, linear_form::recurrent};
  const heed::linear_state<float> empty({.batch = 1, .kv_heads = 1, .features = f, .value_dim = f});
  std::array<heed::linear_state<float>, 2> states = {empty, empty};
  std::array<std::array<double, d>, d> sum{}, size{};
  std::array<double, d> normaliser{};
  std::array<double, 2> worst{};
  for (index at = 0; at < tokens; at += piece) {
    const auto seed = static_cast<unsigned>(3 * at);
    const auto q = random_tensor<float>({1, 1, piece, f}, seed),
               k = random_tensor<float>({1, 1, piece, f}, seed + 1);
    auto v = random_tensor<float>({1, 1, piece, f}, seed + 2);
    for (index i = 0; i < v.size(); ++i) {
      v.data()[i] += static_cast<float>(at) / static_cast<float>(tokens);
    }
    const std::array<heed::tensor<float, 4>, 2> out = {
        heed::linear_attention(q, k, v, states[0], {.form = both[0]}),
        heed::linear_attention(q, k, v, states[1], {.form = both[1]})};
    for (index t = 0; t < piece; ++t) {
      std::array<double, d> out_sum{}, out_size{};
      double weights = 1e-6;
      for (std::size_t r = 0; r < d; ++r) {
        const auto row = static_cast<index>(r);
        const auto key = phi(k(0, 0, t, row));
        const auto query = phi(q(0, 0, t, row));
        normaliser[r] += key;
        weights += query * normaliser[r];
        for (std::size_t c = 0; c < d; ++c) {
          const double value = static_cast<double>(v(0, 0, t, static_cast<index>(c)));
          sum[r][c] += key * value;
          size[r][c] += key * std::abs(value);
          out_sum[c] += query * sum[r][c];
          out_size[c] += query * size[r][c];
        }
      }
      const auto n = static_cast<double>(at + t + 1);
      const auto chunk = static_cast<double>(linear_options{}.chunk);
      for (std::size_t i = 0; i < both.size(); ++i) {
        const double additions = both[i] == linear_form::recurrent ? n : n / chunk + chunk;
        const double eps = u * (8 * std::sqrt(additions) + static_cast<double>(d) + 16);
        for (std::size_t c = 0; c < d; ++c) {
          const double want = out_sum[c] / weights;
          const double got = static_cast<double>(out[i](0, 0, t, static_cast<index>(c)));
          const double bound = eps * (out_size[c] / weights + std::abs(want));
          worst[i] = std::max(worst[i], std::abs(got - want) / bound);
          ASSERT_LE(std::abs(got - want), bound)
              << name(both[i]) << " token " << at + t << " channel " << c;
        }
      }
    }
  }
  for (std::size_t i = 0; i < both.size(); ++i) {
    testing::Test::RecordProperty(name(both[i]), std::to_string(worst[i]) + " of the bound");
  }
}

TEST(LongLinear, AMillionTokens) { expect_no_drift(1'000'000, 50'000); }

TEST(LinearErrors, Shapes) {
  using heed::shape_error;
  const auto make = [](index b, index h, index n, index d) {
    return heed::tensor<float, 4>({b, h, n, d});
  };
  const auto q = make(2, 4, 3, 8);
  const auto k = make(2, 2, 3, 8);
  const auto run = [](const auto& a, const auto& b, const auto& c) {
    (void)heed::linear_attention(a, b, c);
  };
  expect_error<shape_error>("k has batch 1, q has 2", [&] { run(q, make(1, 2, 3, 8), k); });
  expect_error<shape_error>("v has batch 1, q has 2", [&] { run(q, k, make(1, 2, 3, 8)); });
  expect_error<shape_error>("v has heads 4, k has 2", [&] { run(q, k, q); });
  expect_error<shape_error>("v has tokens 4, k has 3", [&] { run(q, k, make(2, 2, 4, 8)); });
  expect_error<shape_error>("k has head dim 6, q has 8", [&] { run(q, make(2, 2, 3, 6), k); });
  expect_error<shape_error>("q has 4 heads, not a multiple of k's 3",
                            [&] { run(q, make(2, 3, 3, 8), make(2, 3, 3, 8)); });
  expect_error<shape_error>("q has 4 heads, not a multiple of k's 0",
                            [&] { run(q, make(2, 0, 3, 8), make(2, 0, 3, 8)); });
  expect_error<shape_error>("causal linear attention pairs tokens: k has tokens 5, q has 3",
                            [&] { run(q, make(2, 2, 5, 8), make(2, 2, 5, 8)); });
  auto narrow = make(2, 4, 3, 7);
  expect_error<shape_error>("out has extents [2, 4, 3, 7], the result has [2, 4, 3, 8]",
                            [&] { heed::linear_attention_into(narrow, q, k, k); });
  heed::linear_state<float> state({.batch = 2, .kv_heads = 4, .features = 8, .value_dim = 8});
  expect_error<shape_error>("state sum has extents [2, 4, 8, 8], the call needs [2, 2, 8, 8]",
                            [&] { (void)heed::linear_attention(q, k, k, state); });
  auto sum = make(2, 2, 8, 8);
  expect_error<shape_error>("state normaliser has extents [0, 0, 0], the call needs [2, 2, 8]",
                            [&] {
                              (void)heed::linear_attention(
                                  q, k, k, heed::linear_state_view<float>{heed::as_view(sum), {}});
                            });
  expect_error<shape_error>("view extents [1, 1, -1, 0] are negative",
                            [] { (void)heed::linear_state<float>({.features = -1}); });
}

TEST(LinearErrors, Options) {
  using heed::option_error;
  const auto q = heed::tensor<float, 2>({3, 8});
  expect_error<option_error>("chunk is 0, must be at least 1",
                             [&] { (void)heed::linear_attention(q, q, q, {.chunk = 0}); });
  expect_error<option_error>("eps is -1.000000, must not be negative",
                             [&] { (void)heed::linear_attention(q, q, q, {.eps = -1}); });
  expect_error<option_error>(
      "scale is given, but the normalised output has none; set normalise = false",
      [&] { (void)heed::linear_attention(q, q, q, {.scale = 1.0}); });
}

}  // namespace
