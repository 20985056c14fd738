// SPDX-License-Identifier: MIT
// Attention among tokens of one hash bucket: the textbook in double under the mask that buckets and
// chunks make, each pair counted once; and the hashes, against plain loops.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/sparse.hpp"
#include "heed/sparse/lsh/naive.hpp"
#include "support/attention_oracle.hpp"
#include "support/masked_gather.hpp"

namespace {

using heed::index;
using heed::position;
using bucket_tensor = heed::tensor<index, 4>;

struct shapes {
  index batch = 2;
  index heads = 4;
  index kv_heads = 2;
  index queries = 61;
  index keys = 83;
  index bucket_batch = 2;
  index query_heads = 4;  // of the buckets
  index key_heads = 2;
  index rounds = 3;
  index buckets = 4;
  index chunk = 7;
};

bucket_tensor random_buckets(index batch, index heads, index rounds, index tokens, index buckets,
                             unsigned seed) {
  bucket_tensor t({batch, heads, rounds, tokens});
  std::mt19937 draw(seed);
  for (index i = 0; i < t.size(); ++i) {
    // Every tenth token or so is in no bucket.
    t.data()[i] =
        draw() % 10 == 0 ? -1 : static_cast<index>(draw() % static_cast<unsigned>(buckets));
  }
  return t;
}

/// LSH attention as a gather under its mask.
struct lsh_gather {
  const bucket_tensor& query_buckets;
  const bucket_tensor& key_buckets;
  index chunk;
  index heads;

  [[nodiscard]] auto mask() const {
    return heed::lsh_mask<index, index>{as_const_view(query_buckets), as_const_view(key_buckets),
                                        chunk, heads};
  }
  [[nodiscard]] index merges() const { return query_buckets.extent(2); }
  template <class E, class Target, class Q, class K, class V, class... M>
  void operator()(E& exec, Target&& target, const Q& q, const K& k, const V& v,
                  const heed::attention_options& options, const M&... mods) const {
    heed::lsh_attention_into(exec, target, q, k, v, query_buckets, key_buckets, {.chunk = chunk},
                             options, mods...);
  }
  static heed::view<const index, 4> as_const_view(const bucket_tensor& t) {
    return heed::as_view(t);
  }
};

/// f(tokens, gather) of random buckets.
template <class F>
void with_buckets(const shapes& s, F&& f) {
  const auto qb = random_buckets(s.bucket_batch, s.query_heads, s.rounds, s.queries, s.buckets, 4);
  const auto kb = random_buckets(1, s.key_heads, s.rounds, s.keys, s.buckets, 5);
  f(masked_gather::shapes{.batch = s.batch,
                          .heads = s.heads,
                          .kv_heads = s.kv_heads,
                          .queries = s.queries,
                          .keys = s.keys},
    lsh_gather{qb, kb, s.chunk, s.heads});
}

template <class T, class... M>
void check(const shapes& s, const heed::attention_options& options, const M&... mods) {
  with_buckets(s, [&](const auto& tokens, const auto& gather) {
    masked_gather::check<T>(tokens, gather, options, mods...);
  });
}

TEST(Lsh, IsAttentionUnderItsMask) {
  for (const index query_heads : {1, 2, 4}) {
    for (const index key_heads : {1, 2, 4}) {
      shapes s;
      s.query_heads = query_heads;
      s.key_heads = key_heads;
      check<float>(s, {});
      s.bucket_batch = 1;
      check<float>(s, {.scale = 0.5, .offset = 20}, heed::causal());
    }
  }
}

TEST(Lsh, EveryScalar) {
  with_buckets({}, [](const auto&... x) { masked_gather::check_scalars(x...); });
}

TEST(Lsh, ItsOptionsAllApply) {
  with_buckets({}, [](const auto&... x) { masked_gather::check_options(x...); });
}

TEST(Lsh, AnyCountOfTokensRoundsBucketsAndChunk) {
  for (const index queries : {0, 1, 53, 401}) {
    for (const index keys : {1, 131}) {
      for (const index rounds : {0, 1, 2}) {
        for (const index buckets : {1, 11}) {
          for (const index chunk : {1, 16, 1000}) {
            shapes s;
            s.batch = s.bucket_batch = 1;
            s.heads = s.kv_heads = s.query_heads = s.key_heads = 1;
            s.queries = queries;
            s.keys = keys;
            s.rounds = rounds;
            s.buckets = buckets;
            s.chunk = chunk;
            check<float>(s, {});
          }
        }
      }
    }
  }
}

/// Shared queries and keys: a token sees itself where it sees nothing else, and only there.
template <class T, class... M>
void check_shared(index tokens, index buckets, const M&... mods) {
  const auto q = oracle::random_tensor<T, 4>({1, 2, tokens, 18}, 1);
  const auto v = oracle::random_tensor<T, 4>({1, 2, tokens, 21}, 3);
  const auto k = heed::unit_keys(q);
  const auto hashes = random_buckets(1, 2, 2, tokens, buckets, 4);
  const auto reach = lsh_gather{hashes, hashes, 5, 2}.mask();
  // Whether a modifier that is a mask keeps the pair.
  const auto keeps = [](const auto& m, const position& p) {
    if constexpr (heed::mask_function<std::remove_cvref_t<decltype(m)>>) return m(p);
    return true;
  };
  const auto mask = [&](const position& p) {
    if (p.key != p.query) return reach(p);
    for (index j = 0; j < tokens; ++j) {
      position other = p;
      other.key = j;
      if (j != p.query && reach(other) && (keeps(mods, other) && ... && true)) return false;
    }
    return reach(p);
  };
  auto want = oracle::expected(q, k, v, {}, mods..., mask);
  want.sizes.keys += 8;
  heed::tensor<T, 4> out({1, 2, tokens, 21});
  heed::tensor<heed::accumulate_t<T>, 3> lse({1, 2, tokens});
  heed::serial_executor serial;
  const heed::lsh_attention_options lsh{.chunk = 5, .shared_qk = true};
  heed::lsh_attention_into(serial, heed::into(out, lse), q, k, v, hashes, hashes, lsh, {}, mods...);
  EXPECT_EQ(oracle::difference<T>(out, want.output, want.sizes), "");
  EXPECT_EQ(oracle::lse_difference<T>(lse, want.log_sum_exp, want.sizes), "");
}

TEST(Lsh, SharedTokensSeeThemselvesLast) {
  for (const index buckets : {1, 4, 40}) {
    check_shared<float>(67, buckets);
    check_shared<float>(67, buckets, heed::causal());
    check_shared<double>(67, buckets, heed::causal(), heed::window{.left = 9});
  }
  const std::vector<float> sinks{0.5F, -1.0F};
  check_shared<float>(67, 40, heed::causal(), heed::softcap(2.0), heed::alibi(), heed::sink(sinks));
  check_shared<heed::half>(1, 1, heed::causal());
}

TEST(Lsh, UnitKeysHaveLengthOne) {
  auto q = oracle::random_tensor<double, 3>({2, 5, 7}, 1);
  for (index c = 0; c < 7; ++c) q(1, 3, c) = 0;
  const auto k = heed::unit_keys(q);
  for (index h = 0; h < 2; ++h) {
    for (index i = 0; i < 5; ++i) {
      double square = 0;
      double dot = 0;
      double length = 0;
      for (index c = 0; c < 7; ++c) {
        square += k(h, i, c) * k(h, i, c);
        dot += k(h, i, c) * q(h, i, c);
        length += q(h, i, c) * q(h, i, c);
      }
      EXPECT_NEAR(square, length > 0 ? 1 : 0, 1e-14);
      EXPECT_NEAR(dot, std::sqrt(length), 1e-14 * std::sqrt(length));
    }
  }
}

/// argmax over [xR; -xR] in double where the best two are further apart than rounding.
TEST(LshBuckets, AreTheArgmaxOverRotations) {
  heed::thread_pool pool(3);
  for (const index factor : {1, 4}) {
    const auto q = oracle::random_tensor<float, 4>({2, 4, 67, 19}, 1);
    const auto k = oracle::random_tensor<float, 4>({2, 2, 35, 19}, 2);
    const heed::lsh_options o{.rounds = 3, .buckets = 24, .factor = factor, .seed = 5};
    const auto got = heed::lsh_buckets(pool, q, k, o);
    ASSERT_EQ(got.queries.extents(), (oracle::extents4{2, 4, 3, 67}));
    ASSERT_EQ(got.keys.extents(), (oracle::extents4{2, 2, 3, 35}));
    const index first = o.buckets / factor;
    std::vector<heed::tensor<float, 4>> tables;
    tables.push_back(heed::detail::rotations<float>(2, 3, first / 2, 19, 5, 0));
    tables.push_back(heed::detail::rotations<float>(2, 3, factor / 2, 19, 5, 1));
    index sure = 0;
    const auto check = [&](const auto& x, const bucket_tensor& buckets) {
      const index group = x.extent(1) / 2;
      oracle::each_index(buckets.extents(), [&](index b, index h, index r, index i) {
        index want = 0;
        for (const auto& table : tables) {
          const index half = table.extent(2);
          if (half == 0) continue;
          std::vector<std::pair<double, index>> y;
          for (index j = 0; j < half; ++j) {
            double dot = 0;
            for (index c = 0; c < 19; ++c) {
              dot += static_cast<double>(x(b, h, i, c)) *
                     static_cast<double>(table(h / group, r, j, c));
            }
            y.emplace_back(dot, j);
            y.emplace_back(-dot, half + j);
          }
          std::sort(y.begin(), y.end());
          // 19 products of numbers below 5: 1e-4 is far above the rounding of float.
          if (y[y.size() - 1].first - y[y.size() - 2].first < 1e-4) return;
          want = want * 2 * half + y.back().second;
        }
        ++sure;
        EXPECT_EQ(buckets(b, h, r, i), want);
      });
    };
    check(q, got.queries);
    check(k, got.keys);
    EXPECT_GT(sure, 3 * (2 * 4 * 67 + 2 * 2 * 35) * 98 / 100);
  }
}

TEST(LshBuckets, AngleAloneCounts) {
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  auto x = oracle::random_tensor<float, 4>({1, 1, 2000, 32}, 1);
  // Pairs of tokens: the same direction, 0.3 and 1.2 rad apart, opposite.
  for (index i = 0; i < 500; ++i) {
    for (index n = 0; n < 4; ++n) {
      const double angle[] = {0, 0.3, 1.2, std::acos(-1.0)};
      if (n == 0) continue;
      double dot = 0;
      double square = 0;
      double other = 0;
      for (index c = 0; c < 32; ++c) {
        dot += static_cast<double>(x(0, 0, 4 * i, c) * x(0, 0, 4 * i + n, c));
        square += static_cast<double>(x(0, 0, 4 * i, c) * x(0, 0, 4 * i, c));
      }
      std::vector<double> away(32);
      for (index c = 0; c < 32; ++c) {
        away[std::size_t(c)] = static_cast<double>(x(0, 0, 4 * i + n, c)) -
                               dot / square * static_cast<double>(x(0, 0, 4 * i, c));
        other += away[std::size_t(c)] * away[std::size_t(c)];
      }
      for (index c = 0; c < 32; ++c) {
        x(0, 0, 4 * i + n, c) = static_cast<float>(
            3 * (std::cos(angle[n]) * static_cast<double>(x(0, 0, 4 * i, c)) / std::sqrt(square) +
                 std::sin(angle[n]) * away[std::size_t(c)] / std::sqrt(other)));
      }
    }
  }
  const heed::lsh_options o{.rounds = 8, .buckets = 16, .seed = 3};
  const auto buckets = heed::lsh_buckets(pool, x, o);
  EXPECT_TRUE(oracle::same_bits(buckets, heed::lsh_buckets(serial, x, o)));
  std::array<double, 4> together{};
  std::array<double, 16> filled{};
  for (index r = 0; r < 8; ++r) {
    for (index i = 0; i < 500; ++i) {
      for (index n = 1; n < 4; ++n) {
        together[std::size_t(n)] += buckets(0, 0, r, 4 * i) == buckets(0, 0, r, 4 * i + n);
      }
      EXPECT_EQ((buckets(0, 0, r, 4 * i) + 8) % 16, buckets(0, 0, r, 4 * i + 3));
      ++filled[std::size_t(buckets(0, 0, r, 4 * i))];
    }
  }
  // Of 4000: a chance of 1 / 16 would be 250, four deviations 62.
  EXPECT_GT(together[1], 2400);
  EXPECT_LT(together[2], 1200);
  EXPECT_GT(together[2], 300);
  EXPECT_EQ(together[3], 0);
  for (const double n : filled) EXPECT_NEAR(n, 250, 100);
  // More rounds keep the first ones.
  const auto fewer = heed::lsh_buckets(pool, x, {.rounds = 2, .buckets = 16, .seed = 3});
  oracle::each_index(fewer.extents(), [&](index b, index h, index r, index i) {
    EXPECT_EQ(fewer(b, h, r, i), buckets(b, h, r, i));
  });
}

/// What part of the softmax's mass the rounds see: exp(log-sum-exp - that of all pairs).
TEST(Lsh, RecallGrowsWithRounds) {
  heed::thread_pool pool(2);
  auto q = oracle::random_tensor<float, 4>({1, 1, 1024, 32}, 1);
  const auto centre = oracle::random_tensor<float, 2>({32, 32}, 2, 2.0);
  for (index i = 0; i < 1024; ++i) {
    for (index c = 0; c < 32; ++c) q(0, 0, i, c) += centre(i * 7 % 32, c);
  }
  const auto k = heed::unit_keys(q);
  heed::tensor<float, 4> out(q.extents());
  heed::tensor<float, 3> all({1, 1, 1024});
  heed::attention_into(pool, heed::into(out, all), q, k, q, {.scale = 1.0}, heed::causal());
  double before = 0;
  for (const index rounds : {1, 2, 4, 8}) {
    const auto buckets = heed::lsh_buckets(pool, q, {.rounds = rounds, .buckets = 32, .seed = 1});
    heed::tensor<float, 3> lse({1, 1, 1024});
    heed::lsh_attention_into(pool, heed::into(out, lse), q, k, q, buckets, buckets, {.chunk = 64},
                             {.scale = 1.0}, heed::causal());
    double recall = 0;
    for (index i = 0; i < 1024; ++i) {
      recall += static_cast<double>(std::exp(lse(0, 0, i) - all(0, 0, i))) / 1024;
    }
    EXPECT_GT(recall, before);
    EXPECT_LE(recall, 1 + 1e-5);
    before = recall;
  }
  EXPECT_GT(before, 0.9);
}

TEST(Lsh, AnyLayoutAndKeptMemory) {
  const auto q = oracle::random_tensor<float, 4>({2, 4, 45, 18}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 45, 18}, 2);
  const auto v = oracle::random_tensor<float, 4>({2, 2, 45, 21}, 3);
  const auto buckets = random_buckets(2, 1, 2, 45, 4, 4);
  const auto run = [&](const auto& to, const auto& a, const auto& b, const auto& c) {
    heed::lsh_attention_into(to, a, b, c, buckets, buckets, {.chunk = 9}, {}, heed::causal());
  };
  heed::tensor<float, 4> want({2, 4, 45, 21});
  run(heed::as_view(want), q, k, v);
  const oracle::layout odd{{0, 2, 1, 3}, {0, 3, 0, 0}, {false, true, false, false}, 2};
  const oracle::layout permuted{{3, 1, 2, 0}, {0, 0, 0, 1}, {false, false, true, true}, 0};
  const oracle::laid_out<float> q2(q, odd);
  const oracle::laid_out<float> k2(k, permuted);
  const oracle::laid_out<float> v2(v, permuted);
  const oracle::laid_out<float> out({2, 4, 45, 21}, permuted);
  run(out.view(), q2.cview(), k2.cview(), v2.cview());
  EXPECT_EQ(out.overwritten(), 0);
  oracle::each_index(want.extents(), [&](index b, index h, index i, index c) {
    EXPECT_EQ(out.view()(b, h, i, c), want(b, h, i, c));
  });
}

TEST(LshErrors, NameTheOptions) {
  heed::serial_executor serial;
  const auto x = oracle::random_tensor<float, 4>({1, 2, 5, 8}, 1);
  const auto k = oracle::random_tensor<float, 4>({1, 2, 5, 9}, 1);
  EXPECT_THROW((void)heed::lsh_buckets(serial, x, {.buckets = 7}), heed::option_error);
  EXPECT_THROW((void)heed::lsh_buckets(serial, x, {.buckets = 0}), heed::option_error);
  EXPECT_THROW((void)heed::lsh_buckets(serial, x, {.buckets = 16, .factor = 3}),
               heed::option_error);
  EXPECT_THROW((void)heed::lsh_buckets(serial, x, {.buckets = 12, .factor = 4}),
               heed::option_error);
  EXPECT_THROW((void)heed::lsh_buckets(serial, x, {.rounds = -1}), heed::option_error);
  EXPECT_THROW((void)heed::lsh_buckets(serial, x, k, {}), heed::shape_error);
}

TEST(LshErrors, NameTheBuckets) {
  const auto q = oracle::random_tensor<float, 4>({2, 4, 37, 8}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 83, 8}, 2);
  const auto qb = random_buckets(2, 4, 3, 37, 5, 3);
  const auto kb = random_buckets(1, 2, 3, 83, 5, 3);
  EXPECT_NO_THROW((void)heed::lsh_attention(q, k, k, qb, kb, {}));
  EXPECT_THROW((void)heed::lsh_attention(q, k, k, qb, kb, {.chunk = 0}), heed::option_error);
  EXPECT_THROW((void)heed::lsh_attention(q, k, k, kb, kb, {}), heed::shape_error);
  for (const auto& wrong : {bucket_tensor({2, 3, 3, 83}), bucket_tensor({3, 2, 3, 83}),
                            bucket_tensor({2, 2, 2, 83}), bucket_tensor({2, 2, 3, 82})}) {
    EXPECT_THROW((void)heed::lsh_attention(q, k, k, qb, wrong, {}), heed::shape_error);
  }
}

}  // namespace
