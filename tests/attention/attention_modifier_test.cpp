// SPDX-License-Identifier: MIT
// Score modifiers, bias, sink and dropout: each against its formula in every kernel, their order,
// and scores at the ends of the number line.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <functional>
#include <vector>

#include "heed/attention.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using heed::position;

constexpr auto everything = [](const position&) { return true; };

template <class T>
struct arguments {
  heed::tensor<T, 4> q;
  heed::tensor<T, 4> k;
  heed::tensor<T, 4> v;
};

/// Two batches, four heads on two KV heads.
template <class T>
arguments<T> random_arguments(index queries, index keys, double size = 1.0) {
  return {oracle::random_tensor<T, 4>({2, 4, queries, 16}, 1, size),
          oracle::random_tensor<T, 4>({2, 2, keys, 16}, 2, size),
          oracle::random_tensor<T, 4>({2, 2, keys, 20}, 3)};
}

/// naive_attention and attention with the modifiers against the definition with the formula.
template <class T, class Score, class Visible, class... M>
std::string check_formula(const arguments<T>& in, const heed::attention_options& options,
                          Score score, Visible visible, const std::vector<double>& sinks,
                          const M&... modifiers) {
  std::vector<index> offset;
  for (index b = 0; b < 2; ++b) offset.push_back(options.offset[b]);
  const auto want =
      oracle::by_definition(oracle::widened(in.q), oracle::widened(in.k), oracle::widened(in.v),
                            0.25, offset, score, visible, sinks);
  auto sizes = oracle::expected(in.q, in.k, in.v, options, modifiers...).sizes;
  for (const double s : sinks) sizes.score = std::max(sizes.score, std::abs(s));
  const auto naive = heed::naive_attention_with_lse(in.q, in.k, in.v, options, modifiers...);
  const auto fast = heed::attention_with_lse(in.q, in.k, in.v, options, modifiers...);
  std::string text = oracle::difference<T>(naive.output, want.output, sizes);
  if (text.empty()) {
    text = oracle::lse_difference<T>(naive.log_sum_exp, want.log_sum_exp, sizes);
  }
  if (!text.empty()) return "naive: " + text;
  text = oracle::difference<T>(fast.output, want.output, sizes);
  return text.empty() ? oracle::lse_difference<T>(fast.log_sum_exp, want.log_sum_exp, sizes) : text;
}

// Few queries and many, around a group of 48 and a block of 128 keys.
constexpr std::array<std::array<index, 2>, 8> counts{
    {{1, 1}, {1, 300}, {4, 129}, {9, 17}, {47, 128}, {48, 131}, {49, 257}, {100, 64}}};

template <class T>
class Modifier : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(Modifier, scalars);

TYPED_TEST(Modifier, Softcap) {
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<TypeParam>(n, m, 3.0);
    for (const double cap : {0.5, 3.0, 50.0}) {
      const auto score = [cap](double s, const position&) { return cap * std::tanh(s / cap); };
      EXPECT_EQ(check_formula(in, {}, score, everything, {}, heed::softcap(cap)), "")
          << n << " queries, " << m << " keys, cap " << cap;
    }
  }
}

TYPED_TEST(Modifier, AlibiSlopesOfEveryNumberOfHeads) {
  // From the paper: 8 heads 1/2, 1/4, ... 1/256; 12 heads add every other slope of 16.
  for (index h = 0; h < 8; ++h) {
    EXPECT_EQ(heed::alibi::default_slope(h, 8), std::ldexp(1.0, -static_cast<int>(h) - 1));
    EXPECT_EQ(heed::alibi::default_slope(h, 12), std::ldexp(1.0, -static_cast<int>(h) - 1));
  }
  for (index h = 8; h < 12; ++h) {
    EXPECT_DOUBLE_EQ(heed::alibi::default_slope(h, 12),
                     std::exp2(-0.5 * static_cast<double>(2 * (h - 8) + 1)));
  }
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<TypeParam>(n, m);
    const std::vector<index> offset = {m - n, -5};
    const double slopes[] = {0.25, 0.0625, 0.015625, 0.00390625};  // 2^(-8 (h + 1) / 4)
    const auto score = [&](double s, const position& p) {
      return s - slopes[p.head] * static_cast<double>(std::abs(p.query - p.key));
    };
    EXPECT_EQ(check_formula(in, {.offset = offset}, score, everything, {}, heed::alibi()), "");
    const std::vector<double> given = {0.5, -0.25, 0.0, 1.5};
    const auto given_score = [&](double s, const position& p) {
      return s - given[static_cast<std::size_t>(p.head)] *
                     static_cast<double>(std::abs(p.query - p.key));
    };
    EXPECT_EQ(
        check_formula(in, {.offset = offset}, given_score, everything, {}, heed::alibi(given)), "");
  }
}

// A bias is indexed by row, whatever the offset; axes of extent 1 and missing axes repeat.
TYPED_TEST(Modifier, BiasOfEveryRank) {
  using T = TypeParam;
  using A = heed::accumulate_t<T>;
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<T>(n, m);
    const heed::attention_options options{.offset = 3};
    const auto of_keys = oracle::random_tensor<A, 1>({m}, 5);
    EXPECT_EQ(
        check_formula(
            in, options,
            [&](double s, const position& p) { return s + static_cast<double>(of_keys(p.key)); },
            everything, {}, heed::bias(of_keys)),
        "");
    const auto of_pairs = oracle::random_tensor<A, 2>({n, m}, 6);
    EXPECT_EQ(check_formula(
                  in, options,
                  [&](double s, const position& p) {
                    return s + static_cast<double>(of_pairs(p.row, p.key));
                  },
                  everything, {}, heed::bias(of_pairs)),
              "");
    const auto of_heads = oracle::random_tensor<A, 3>({4, 1, m}, 7);
    EXPECT_EQ(check_formula(
                  in, options,
                  [&](double s, const position& p) {
                    return s + static_cast<double>(of_heads(p.head, 0, p.key));
                  },
                  everything, {}, heed::bias(of_heads)),
              "");
    const auto of_batches = oracle::random_tensor<T, 4>({2, 1, n, 1}, 8);
    EXPECT_EQ(check_formula(
                  in, options,
                  [&](double s, const position& p) {
                    return s + static_cast<double>(of_batches(p.batch, 0, p.row, 0));
                  },
                  everything, {}, heed::bias(of_batches)),
              "");
    if (m < 2) continue;
    // Narrower than the keys (and at least 2 wide, 1 would repeat): masks what it does not cover.
    const auto narrow = oracle::random_tensor<A, 2>({n, std::max<index>(2, m - 3)}, 9);
    EXPECT_EQ(
        check_formula(
            in, options,
            [&](double s, const position& p) {
              return s + static_cast<double>(narrow(p.row, p.key));
            },
            [&](const position& p) { return p.key < narrow.extent(1); }, {}, heed::bias(narrow)),
        "");
  }
}

// -inf in a bias is a mask: rows full of it are empty, NaN and infinities behind it are not seen.
TYPED_TEST(Modifier, MinusInfinityInABiasMasks) {
  using T = TypeParam;
  using A = heed::accumulate_t<T>;
  const auto hidden = [](index row, index key) { return row % 5 == 1 || key % 7 == 3; };
  for (const auto [n, m] : counts) {
    auto in = random_arguments<T>(n, m);
    auto bias = oracle::random_tensor<A, 2>({n, m}, 5);
    for (index i = 0; i < n; ++i) {
      for (index j = 0; j < m; ++j) {
        if (hidden(i, j)) bias(i, j) = -std::numeric_limits<A>::infinity();
      }
    }
    const auto score = [&](double s, const position& p) {
      return s + static_cast<double>(bias(p.row, p.key));
    };
    const auto visible = [&](const position& p) { return !hidden(p.row, p.key); };
    EXPECT_EQ(check_formula(in, {}, score, visible, {}, heed::bias(bias)), "");
    const auto clean = heed::attention(in.q, in.k, in.v, {}, heed::bias(bias));
    const auto sizes = oracle::expected(in.q, in.k, in.v, {}, heed::bias(bias)).sizes;
    for (const T poison : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                           -std::numeric_limits<T>::infinity()}) {
      for (const int where : {1, 2, 3}) {
        auto k = in.k;
        auto v = in.v;
        for (index j = 3; j < m; j += 7) {
          for (index b = 0; b < 2; ++b) {
            if ((where & 1) != 0) k(b, 1, j, 2) = poison;
            if ((where & 2) != 0) v(b, 1, j, 2) = poison;
          }
        }
        EXPECT_EQ(oracle::difference<T>(heed::attention(in.q, k, v, {}, heed::bias(bias)),
                                        oracle::widened(clean), sizes),
                  "")
            << n << " queries, " << m << " keys, " << static_cast<double>(poison) << " in "
            << where;
        EXPECT_EQ(oracle::difference<T>(heed::naive_attention(in.q, k, v, {}, heed::bias(bias)),
                                        oracle::widened(clean), sizes),
                  "");
      }
    }
  }
}

// A lambda that takes float serves double kernels, in float; one that takes any type, in double.
TYPED_TEST(Modifier, LambdasOfAnyScalar) {
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<TypeParam>(n, m);
    const auto formula = [](double s, const position& p) {
      return 0.5 * s - 0.125 * static_cast<double>(p.head) + (p.key % 2 == 0 ? 0.25 : 0.0);
    };
    const auto narrow = [](float s, position p) {
      return 0.5F * s - 0.125F * static_cast<float>(p.head) + (p.key % 2 == 0 ? 0.25F : 0.0F);
    };
    const auto wide = [](auto s, const position& p) {
      using S = decltype(s);
      return S(0.5) * s - S(0.125) * static_cast<S>(p.head) + (p.key % 2 == 0 ? S(0.25) : S(0));
    };
    EXPECT_EQ(check_formula(in, {}, formula, everything, {}, wide), "");
    if constexpr (!std::is_same_v<TypeParam, double>) {
      EXPECT_EQ(check_formula(in, {}, formula, everything, {}, narrow), "");
    } else {
      const auto e = oracle::expected(in.q, in.k, in.v, {}, wide);
      const auto got = heed::attention_with_lse(in.q, in.k, in.v, {}, narrow);
      EXPECT_EQ(oracle::difference<float>(got.output, e.output, e.sizes), "");
      if (m > 1) {
        EXPECT_NE(oracle::difference<double>(got.output, e.output, e.sizes), "") << "not in float?";
      }
    }
  }
}

// A lambda that returns -inf removes the pair.
TYPED_TEST(Modifier, ALambdaMayRemovePairs) {
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<TypeParam>(n, m);
    const auto removes = [](auto s, const position& p) {
      return (p.key + p.row) % 3 == 0 ? -std::numeric_limits<decltype(s)>::infinity() : s;
    };
    const auto visible = [](const position& p) { return (p.key + p.row) % 3 != 0; };
    EXPECT_EQ(check_formula(
                  in, {}, [](double s, const position&) { return s; }, visible, {}, removes),
              "");
  }
}

TYPED_TEST(Modifier, Sink) {
  using A = heed::accumulate_t<TypeParam>;
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<TypeParam>(n, m);
    const std::vector<A> logits = {A(-2), A(0), A(1.5), A(30)};
    const std::vector<double> same = {-2, 0, 1.5, 30};
    const auto score = [](double s, const position&) { return s; };
    EXPECT_EQ(check_formula(in, {}, score, everything, same, heed::sink(logits)), "");
    // Rows without a key have the sink alone: output 0, log-sum-exp the logit.
    const auto visible = [](const position& p) { return p.key <= p.query; };
    EXPECT_EQ(
        check_formula(in, {.offset = -3}, score, visible, same, heed::sink(logits), heed::causal()),
        "");
    // A logit of -inf is none, and joins other sinks as none.
    const std::vector<A> none(4, -std::numeric_limits<A>::infinity());
    EXPECT_TRUE(oracle::same_bits(heed::attention(in.q, in.k, in.v, {}, heed::sink(none)),
                                  heed::attention(in.q, in.k, in.v)));
    EXPECT_EQ(check_formula(in, {}, score, everything, same, heed::sink(none), heed::sink(logits)),
              "");
    // Two sinks are one of the sum of their exponentials.
    std::vector<double> doubled = same;
    for (double& s : doubled) s += std::log(2.0);
    EXPECT_EQ(
        check_formula(in, {}, score, everything, doubled, heed::sink(logits), heed::sink(logits)),
        "");
  }
}

TYPED_TEST(Modifier, ANanInASinkIsSeenByItsHeadAlone) {
  using A = heed::accumulate_t<TypeParam>;
  for (const index n : {2, 60}) {
    const auto in = random_arguments<TypeParam>(n, 70);
    const std::vector<A> logits = {A(0), std::numeric_limits<A>::quiet_NaN(), A(0), A(0)};
    const auto got = heed::attention_with_lse(in.q, in.k, in.v, {}, heed::sink(logits));
    for (index h = 0; h < 4; ++h) {
      EXPECT_EQ(std::isnan(static_cast<double>(got.log_sum_exp(1, h, n - 1))), h == 1);
      EXPECT_EQ(std::isnan(static_cast<double>(got.output(1, h, n - 1, 3))), h == 1);
    }
  }
}

// ------------------------------------------------------------------------------------- dropout

// The dropped pairs are those of one function of the position, whatever the kernel; the
// log-sum-exp is that of the undropped scores.
TYPED_TEST(Modifier, Dropout) {
  using T = TypeParam;
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<T>(n, m);
    const heed::dropout dropout{.probability = 0.3, .seed = 42};
    const auto e = oracle::expected(in.q, in.k, in.v, {.offset = 7}, dropout, heed::causal());
    auto sizes = e.sizes;
    sizes.value /= 0.7;
    const auto got =
        heed::attention_with_lse(in.q, in.k, in.v, {.offset = 7}, dropout, heed::causal());
    EXPECT_EQ(oracle::difference<T>(got.output, e.output, sizes), "");
    const auto undropped = oracle::expected(in.q, in.k, in.v, {.offset = 7}, heed::causal());
    EXPECT_EQ(oracle::lse_difference<T>(got.log_sum_exp, undropped.log_sum_exp, e.sizes), "");
    // Written out: the undropped probabilities, some 0, the others divided by 0.7.
    const auto stages =
        heed::naive_attention_stages(in.q, in.k, in.v, {.offset = 7}, dropout, heed::causal());
    const auto plain =
        heed::naive_attention_stages(in.q, in.k, in.v, {.offset = 7}, heed::causal());
    const auto& p = stages.probabilities;
    for (index i = 0; i < p.size(); ++i) {
      const auto kept = static_cast<double>(plain.probabilities.data()[i]) / 0.7;
      const auto x = static_cast<double>(p.data()[i]);
      EXPECT_TRUE(x == 0 || std::abs(x - kept) <= 1e-6 * kept) << x << " of " << kept;
    }
    EXPECT_TRUE(oracle::same_bits(
        heed::attention(in.q, in.k, in.v, {}, heed::dropout{.probability = 0, .seed = 1}),
        heed::attention(in.q, in.k, in.v)));
  }
}

// 160,000 decisions of probability 0.3: within 5 standard deviations, of neighbours too, so that
// no coordinate is forgotten. Other seeds decide otherwise.
TEST(Dropout, DropsTheShareItSays) {
  constexpr double probability = 0.3;
  const heed::dropout dropout{.probability = probability, .seed = 7};
  const heed::dropout other{.probability = probability, .seed = 8};
  index dropped = 0;
  std::array<index, 5> both{};
  index count = 0;
  const auto falls = [](const heed::dropout& d, index b, index h, index i, index j) {
    const double f = d.factor({b, h, 0, i + 100, j, i});
    EXPECT_TRUE(f == 0 || f == 1 / (1 - probability));
    return f == 0;
  };
  for (index b = 0; b < 4; ++b) {
    for (index h = 0; h < 4; ++h) {
      for (index i = 0; i < 100; ++i) {
        for (index j = 0; j < 100; ++j) {
          ++count;
          if (!falls(dropout, b, h, i, j)) continue;
          ++dropped;
          both[0] += falls(dropout, b + 1, h, i, j) ? 1 : 0;
          both[1] += falls(dropout, b, h + 1, i, j) ? 1 : 0;
          both[2] += falls(dropout, b, h, i + 1, j) ? 1 : 0;
          both[3] += falls(dropout, b, h, i, j + 1) ? 1 : 0;
          both[4] += falls(other, b, h, i, j) ? 1 : 0;
        }
      }
    }
  }
  const auto within = [](double p, index n) {
    return 5 * std::sqrt(p * (1 - p) * static_cast<double>(n));
  };
  EXPECT_NEAR(static_cast<double>(dropped), probability * static_cast<double>(count),
              within(probability, count));
  for (const index pairs : both) {
    EXPECT_NEAR(static_cast<double>(pairs), probability * static_cast<double>(dropped),
                within(probability, dropped));
  }
}

// --------------------------------------------------------------------------------------- order

// Softcap first wherever it is written, score modifiers as written, bias, masks last.
TYPED_TEST(Modifier, TheOrderOfTheStages) {
  using A = heed::accumulate_t<TypeParam>;
  const auto twice = [](auto s, const position&) { return decltype(s)(2) * s; };
  const auto plus_one = [](auto s, const position&) { return s + decltype(s)(1); };
  for (const auto [n, m] : counts) {
    const auto in = random_arguments<TypeParam>(n, m);
    const auto bias = oracle::random_tensor<A, 1>({m}, 5);
    const auto visible = [](const position& p) { return p.key <= p.query; };
    const auto b = [&](const position& p) { return static_cast<double>(bias(p.key)); };
    const auto capped = [](double s) { return 2 * std::tanh(s / 2); };
    EXPECT_EQ(check_formula(
                  in, {.offset = 20},
                  [&](double s, const position& p) { return 2 * capped(s) + 1 + b(p); }, visible,
                  {}, heed::causal(), heed::bias(bias), twice, plus_one, heed::softcap(2)),
              "");
    EXPECT_EQ(check_formula(
                  in, {.offset = 20},
                  [&](double s, const position& p) {
                    return 2 * (capped(s) + 1 -
                                std::exp2(-2.0 * static_cast<double>(p.head + 1)) *
                                    static_cast<double>(std::abs(p.query - p.key))) +
                           b(p);
                  },
                  visible, {}, plus_one, heed::alibi(), heed::softcap(2), heed::causal(), twice,
                  heed::bias(bias)),
              "");
  }
}

TEST(Stages, ShowEveryStepOfTheTextbook) {
  const auto in = random_arguments<double>(5, 7);
  const auto bias = oracle::random_tensor<double, 1>({7}, 5);
  const auto s = heed::naive_attention_stages(
      in.q, in.k, in.v, {.scale = 0.5, .offset = 1}, heed::softcap(1.5),
      [](double x, position) { return 3 * x; }, heed::bias(bias), heed::causal());
  for (index b = 0; b < 2; ++b) {
    for (index h = 0; h < 4; ++h) {
      for (index i = 0; i < 5; ++i) {
        double sum = 0;
        std::vector<double> score;
        for (index j = 0; j < 7; ++j) {
          double dot = 0;
          for (index c = 0; c < 16; ++c) dot += in.q(b, h, i, c) * in.k(b, h / 2, j, c);
          EXPECT_NEAR(s.scaled(b, h, i, j), 0.5 * dot, 1e-14);
          const double capped = 1.5 * std::tanh(0.5 * dot / 1.5);
          EXPECT_NEAR(s.softcapped(b, h, i, j), capped, 1e-14);
          score.push_back(j <= i + 1 ? 3 * capped + bias(j) : -oracle::infinity);
          if (j <= i + 1) {
            EXPECT_NEAR(s.masked(b, h, i, j), score.back(), 1e-14);
          } else {
            EXPECT_EQ(s.masked(b, h, i, j), -oracle::infinity);
          }
          sum += std::exp(score.back());
        }
        EXPECT_NEAR(s.log_sum_exp(b, h, i), std::log(sum), 1e-14);
        for (index j = 0; j < 7; ++j) {
          EXPECT_NEAR(s.probabilities(b, h, i, j),
                      std::exp(score[static_cast<std::size_t>(j)]) / sum, 1e-14);
        }
        for (index c = 0; c < 20; ++c) {
          double total = 0;
          for (index j = 0; j < 7; ++j) {
            total += s.probabilities(b, h, i, j) * in.v(b, h / 2, j, c);
          }
          EXPECT_NEAR(s.output(b, h, i, c), total, 1e-14);
        }
      }
    }
  }
}

TEST(Stages, AChangeOfTheProbabilities) {
  const auto in = random_arguments<double>(5, 7);
  const auto s = heed::naive_attention_stages(in.q, in.k, in.v);
  const auto changed = heed::naive_attention_stages(
      in.q, in.k, in.v, {},
      heed::probability([](double p, position at) { return at.key == 2 ? 0.0 : p * p; }));
  for (index i = 0; i < s.probabilities.size(); ++i) {
    const double p = s.probabilities.data()[i];
    EXPECT_EQ(changed.probabilities.data()[i], i % 7 == 2 ? 0.0 : p * p);
  }
  EXPECT_TRUE(oracle::same_bits(s.log_sum_exp, changed.log_sum_exp));
}

// ------------------------------------------------------------------ scores at the ends of a float

// Scores of any size that a float holds: huge of both signs, all equal and huge, denormal queries.
TEST(ExtremeScores, HugeAndDenormal) {
  for (const index n : {2, 60}) {
    auto in = random_arguments<float>(n, 140);
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {.scale = 1e4}), "");
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {.scale = -1e30}), "");
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {.scale = 1e-45}), "");
    for (index i = 0; i < in.q.size(); ++i) in.q.data()[i] *= 1e-40F;
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}), "");
    for (index i = 0; i < in.v.size(); ++i) in.v.data()[i] *= 1e37F;
    EXPECT_EQ(oracle::check(in.q, in.k, in.v, {}), "");
  }
}

// The first block's scores far below the second's, and the other way round: what was summed before
// vanishes without a trace, or what comes after adds nothing.
TEST(ExtremeScores, OneKeyAboveAllOthers) {
  for (const index n : {2, 60}) {
    for (const index top : {0, 1, 127, 128, 200, 255, 256, 299}) {
      const auto in = random_arguments<float>(n, 300);
      const auto lift = [top](float s, position p) { return p.key == top ? 3e38F : s - 1e5F; };
      const auto got = heed::attention_with_lse(in.q, in.k, in.v, {}, lift);
      for (index i = 0; i < n; ++i) {
        EXPECT_EQ(got.log_sum_exp(1, 3, i), 3e38F);
        for (index c = 0; c < 20; ++c) EXPECT_EQ(got.output(1, 3, i, c), in.v(1, 1, top, c));
      }
    }
  }
}

// Scores of -inf have weight 0, a row of them is empty; a score of +inf has no softmax: NaN.
TEST(ExtremeScores, Infinite) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const index n : {2, 60}) {
    const auto in = random_arguments<float>(n, 140);
    const auto some = [inf](float s, position p) {
      if (p.row == 1) return -inf;
      return p.row == 0 && p.key == 130 ? inf : p.key % 2 == 0 ? -inf : s;
    };
    const auto got = heed::attention_with_lse(in.q, in.k, in.v, {}, some);
    const auto want = heed::naive_attention_with_lse(in.q, in.k, in.v, {}, some);
    for (index i = 0; i < n; ++i) {
      EXPECT_EQ(got.log_sum_exp(0, 0, i) == -inf, i == 1);
      for (index c = 0; c < 20; ++c) {
        const float x = got.output(0, 0, i, c);
        EXPECT_EQ(std::isnan(x), i == 0) << "row " << i;
        EXPECT_EQ(std::isnan(want.output(0, 0, i, c)), i == 0);
        if (i == 1) {
          EXPECT_EQ(x, 0.0F);
        } else if (i > 1) {
          EXPECT_NEAR(x, want.output(0, 0, i, c), 1e-5F);
        }
      }
    }
  }
}

// A NaN in a score reaches its row through softcap and bias too.
TYPED_TEST(Modifier, ANanPassesThroughSoftcap) {
  using T = TypeParam;
  for (const index n : {2, 60}) {
    auto in = random_arguments<T>(n, 140);
    in.q(0, 1, 1, 3) = std::numeric_limits<T>::quiet_NaN();
    const auto got = heed::attention_with_lse(in.q, in.k, in.v, {}, heed::softcap(5));
    for (index i = 0; i < n; ++i) {
      EXPECT_EQ(std::isnan(static_cast<double>(got.output(0, 1, i, 0))), i == 1);
      EXPECT_EQ(std::isnan(static_cast<double>(got.log_sum_exp(0, 1, i))), i == 1);
    }
  }
}

// The sum of the weights is 1: whatever the modifiers, equal values come out as they are.
TEST(ModifierProperty, WeightsSumToOne) {
  EXPECT_TRUE(rc::check("weights sum to one", [] {
    const auto n = *rc::gen::inRange<index>(1, 120);
    const auto m = *rc::gen::inRange<index>(1, 300);
    const auto seed = *rc::gen::arbitrary<unsigned>();
    const auto q = oracle::random_tensor<float, 2>({n, 8}, seed);
    const auto k = oracle::random_tensor<float, 2>({m, 8}, seed + 1, 4.0);
    heed::tensor<float, 2> v({m, 3});
    for (index i = 0; i < v.size(); ++i) v.data()[i] = 0.75F;
    const auto bias = oracle::random_tensor<float, 2>({n, m}, seed + 2, 5.0);
    const auto out = heed::attention(q, k, v, {.offset = m}, heed::softcap(3), heed::alibi(),
                                     heed::bias(bias), heed::causal());
    const double within = 8 * std::sqrt(static_cast<double>(m)) * oracle::unit_roundoff<float>();
    for (index i = 0; i < out.size(); ++i) {
      RC_ASSERT(std::abs(static_cast<double>(out.data()[i]) - 0.75) <= within);
    }
  }));
}

}  // namespace
