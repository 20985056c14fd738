// SPDX-License-Identifier: MIT
// Selections: each against a plain loop over all keys in double, on numbers whose scores are exact,
// so that ties are ties.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"
#include "support/selection_oracle.hpp"

namespace {

using heed::index;

/// Small integers: sums of products are exact in float, and many scores are equal.
template <class T, int R>
heed::tensor<T, R> small_integers(const std::array<index, std::size_t{R}>& extents, unsigned seed) {
  heed::tensor<T, R> t(extents);
  std::mt19937 draw(seed);
  for (index i = 0; i < t.size(); ++i)
    t.data()[i] = static_cast<T>(static_cast<int>(draw() % 5) - 2);
  return t;
}

/// The best by score, ties to the lower index, -1 where there are none left.
std::vector<index> best(std::vector<double> scores, index count) {
  for (double& s : scores) s = std::isnan(s) ? -oracle::infinity : s;
  std::vector<index> order(scores.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<index>(i);
  std::stable_sort(order.begin(), order.end(), [&](index a, index b) {
    return scores[static_cast<std::size_t>(a)] > scores[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(count), -1);
  return order;
}

/// Rows of scores as they are handed over, a group of keys at a time; row r sees its first
/// `seen(r)` keys.
template <class A, class Seen>
void check_running(index rows, index n, index count, const Seen& seen, unsigned values) {
  using lists_of = heed::kernel::running_largest<A>;
  constexpr index step = lists_of::step;
  std::mt19937 draw(static_cast<unsigned>(n + count));
  const index row = heed::round_up(n, step);
  std::vector<A> scores(static_cast<std::size_t>(rows * row));
  for (A& a : scores) a = static_cast<A>(draw() % values) - 4;
  for (std::size_t i = 3; i < scores.size(); i += 1 + draw() % 200) {
    scores[i] = std::array{std::numeric_limits<A>::quiet_NaN(), std::numeric_limits<A>::infinity(),
                           -std::numeric_limits<A>::infinity()}[draw() % 3];
  }
  heed::workspace memory;
  lists_of lists;
  heed::arena measure;
  lists.allocate(measure, rows, count);
  heed::arena c(memory.reserve(measure.used()));
  lists.allocate(c, rows, count);
  lists.start(rows);
  for (index j = 0; j < n; j += step) {
    for (index r = 0; r < rows; ++r) {
      lists.take(r, scores.data() + r * row + j, j, std::min({n, j + step, seen(r)}) - j);
    }
  }
  for (index r = 0; r < rows; ++r) {
    const A* const own = scores.data() + r * row;
    auto want = best(std::vector<double>(own, own + std::clamp<index>(seen(r), 0, n)), count);
    std::vector<index> got(want.size());
    if (r % 2 == 0) {
      lists.descending(r, got.data());
    } else {
      lists.ascending(r, got.data());
      std::sort(want.begin(), std::find(want.begin(), want.end(), -1));
    }
    EXPECT_EQ(got, want) << "row " << r << " of " << rows << ", " << n << " keys, " << count;
  }
}

TEST(RunningLargest, AreTheLargestOfWhatEachRowSees) {
  for (const index n : {0, 1, 16, 47, 48, 49, 700, 5000}) {
    for (const index count : {0, 1, 7, 16, 17, 200, 6000}) {
      for (const unsigned values : {1U, 9U, 100'000U}) {
        check_running<float>(5, n, count, [n](index) { return n; }, values);
        check_running<double>(6, n, count, [n](index r) { return n / 2 + 9 * r - 3; }, values);
      }
    }
  }
}

// Spread, alike, side by side with one far away, where no two bytes tell them apart.
template <class A>
void check_sort_by_size(index n) {
  using entry = heed::kernel::sized_entry<A>;
  constexpr A infinity = std::numeric_limits<A>::infinity();
  constexpr A eps = std::numeric_limits<A>::epsilon();
  std::mt19937 draw(static_cast<unsigned>(n));
  for (int kind = 0; kind < 6; ++kind) {
    std::vector<A> x;
    std::vector<entry> from, other(static_cast<std::size_t>(n));
    for (index i = 0; i < n; ++i) {
      const A r = static_cast<A>(draw() % 1000);
      const A values[] = {r - 500,        A(draw() % 3),
                          A(1) + eps * r, i == n / 2 ? -infinity : A(1) + eps * r,
                          A(-1),          i % 2 == 0 ? infinity : -eps * r};
      x.push_back(values[kind]);
      from.push_back({entry::falling(x.back()), static_cast<std::int32_t>(i)});
    }
    const entry* const got = heed::kernel::sort_by_size(from.data(), other.data(), n);
    const auto want = best(std::vector<double>(x.begin(), x.end()), n);
    for (index i = 0; i < n; ++i) {
      EXPECT_EQ(got[i].key, want[static_cast<std::size_t>(i)]) << n << " " << kind << " " << i;
    }
  }
}

TEST(SortBySize, LargestFirstEqualsAsTheyStood) {
  for (const index n : {0, 1, 2, 3, 17, 300, 3000}) {
    check_sort_by_size<float>(n);
    check_sort_by_size<double>(n);
  }
}

// All equal but a few, in order and against it: bounds that no halving finds.
TEST(RunningLargest, BoundsOfAnyList) {
  for (const index n : {1, 15, 16, 17, 100}) {
    for (index k = 1; k <= n; k += 7) {
      for (const double step : {0.0, 1.0, -1.0, 1e-40, 1e30}) {
        std::vector<float> v;
        for (index i = 0; i < n; ++i) v.push_back(static_cast<float>(step * double(i / 3)));
        const std::vector<float> kept = v;
        v.resize(static_cast<std::size_t>(n + 16));
        const float bound = heed::kernel::largest_bound(v.data(), n, k);
        const auto above =
            std::count_if(kept.begin(), kept.end(), [=](float x) { return x > bound; });
        const auto equal = std::count(kept.begin(), kept.end(), bound);
        EXPECT_LE(above, k);
        EXPECT_GE(above + equal, k);
      }
    }
  }
}

template <class T>
class Selection : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(Selection, scalars);

/// Exact scores are wanted.
template <class T>
void check_top_keys(const heed::tensor<T, 4>& q, const heed::tensor<T, 4>& k,
                    const heed::selection_options& o) {
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  const auto got = heed::top_k_keys(pool, q, k, o);
  EXPECT_TRUE(oracle::same_bits(got, heed::top_k_keys(serial, q, k, o)));
  heed::selection_options by_key = o;
  by_key.order = heed::index_order::ascending;
  EXPECT_TRUE(oracle::same_bits(selections::ascending(got), heed::top_k_keys(pool, q, k, by_key)));
  const index keys = k.extent(2);
  const index group = q.extent(1) / k.extent(1);
  oracle::each_index(
      {q.extent(0), q.extent(1), q.extent(2), 1}, [&](index b, index h, index i, index) {
        std::vector<double> scores;
        for (index j = 0; j < (o.causal ? std::min(keys, o.offset + i + 1) : keys); ++j) {
          double s = 0;
          for (index c = 0; c < q.extent(3); ++c) {
            s += static_cast<double>(q(b, h, i, c)) * static_cast<double>(k(b, h / group, j, c));
          }
          scores.push_back(s);
        }
        const auto want = best(scores, o.count);
        for (index c = 0; c < o.count; ++c) {
          EXPECT_EQ(got(b, h, i, c), want[static_cast<std::size_t>(c)]) << b << h << i << c;
        }
      });
}

// Few queries, which meet all keys at once, and many, which meet them group by group.
TYPED_TEST(Selection, TopKeys) {
  for (const index keys : {1, 30, 600}) {
    auto k = small_integers<TypeParam, 4>({2, 2, keys, 17}, 2);
    if (keys > 5) k(0, 1, 3, 2) = static_cast<TypeParam>(oracle::not_a_number);
    for (const index queries : {1, 9, 150}) {
      const auto q = small_integers<TypeParam, 4>({2, 4, queries, 17}, 1);
      for (const index count : {0, 1, 7, 40}) {
        for (const bool causal : {false, true}) {
          check_top_keys(q, k,
                         {.count = count, .causal = causal, .offset = queries == 150 ? -3 : 5});
        }
      }
    }
  }
}

// Of many keys some are looked at first, and what they say of the others is wrong: they are the
// largest of all for every row, or for some rows, or all keys are alike, or no numbers.
TYPED_TEST(Selection, TopKeysWhereTheSampleMisleads) {
  constexpr index keys = 1500;
  constexpr index step = heed::kernel::key_sample::step;
  const auto random_q = small_integers<TypeParam, 4>({1, 2, 140, 9}, 1);
  const auto random_k = small_integers<TypeParam, 4>({1, 1, keys, 9}, 2);
  for (int kind = 0; kind < 5; ++kind) {
    auto q = random_q;
    auto k = random_k;
    oracle::each_index({1, 2, 140, 1}, [&](index, index h, index i, index) {
      const bool misled = kind == 0 || (kind == 1 && i % 50 > 46) || (kind == 2 && i == 99);
      q(0, h, i, 0) = static_cast<TypeParam>(misled ? 50 : 0);
    });
    for (index j = 0; j < keys; ++j) {
      k(0, 0, j, 0) = static_cast<TypeParam>(j % step == 0 ? 2 : 0);
      for (index c = 0; kind == 3 && c < 9; ++c) k(0, 0, j, c) = static_cast<TypeParam>(1);
      const bool number = kind != 4 || j % step == 0 || j % 90 == 1;
      if (!number) k(0, 0, j, 1) = static_cast<TypeParam>(oracle::not_a_number);
    }
    check_top_keys(q, k, {.count = 40, .causal = false});
    check_top_keys(q, k, {.count = 100, .causal = true, .offset = keys - 70});
  }
}

TYPED_TEST(Selection, MixtureOfBlocks) {
  heed::thread_pool pool(2);
  // Blocks of 4: a mean of small integers is exact.
  const auto q = small_integers<TypeParam, 4>({1, 4, 50, 8}, 1);
  const auto k = small_integers<TypeParam, 4>({1, 2, 53, 8}, 2);
  for (const index count : {0, 1, 3, 20}) {
    heed::selection_options o{.count = count, .block = 4, .offset = 3};
    const auto got = heed::mixture_of_blocks(pool, q, k, o);
    o.order = heed::index_order::ascending;
    EXPECT_TRUE(
        oracle::same_bits(selections::ascending(got), heed::mixture_of_blocks(pool, q, k, o)));
    oracle::each_index({1, 4, 50, 1}, [&](index b, index h, index i, index) {
      const index own = (3 + i) / 4;
      std::vector<double> scores;
      for (index n = 0; n < own; ++n) {
        double s = 0;
        for (index c = 0; c < 8; ++c) {
          double mean = 0;
          for (index j = 4 * n; j < 4 * n + 4; ++j) {
            mean += static_cast<double>(k(b, h / 2, j, c)) / 4;
          }
          s += static_cast<double>(q(b, h, i, c)) * mean;
        }
        scores.push_back(s);
      }
      if (count == 0) return;
      EXPECT_EQ(got(b, h, i, 0), own);
      const auto want = best(scores, count - 1);
      for (index c = 1; c < count; ++c) {
        EXPECT_EQ(got(b, h, i, c), want[static_cast<std::size_t>(c - 1)]) << h << i << c;
      }
    });
  }
}

struct indexer_case {
  index heads = 3;
  index queries = 20;
  index keys = 20;
  bool with_nans = false;
};

/// indexer_keys against its definition; queries come channels first and backwards.
template <class T>
void check_indexer(const indexer_case& c, const heed::selection_options& o) {
  heed::thread_pool pool(3);
  heed::serial_executor serial;
  auto qi = small_integers<T, 4>({2, c.heads, c.queries, 8}, 1);
  auto ki = small_integers<T, 4>({2, 1, c.keys, 8}, 2);
  auto w = small_integers<T, 3>({2, c.heads, c.queries}, 3);
  if (c.with_nans) {
    const auto nan = static_cast<T>(oracle::not_a_number);
    ki(1, 0, c.keys / 2, 5) = nan;
    qi(0, c.heads - 1, c.queries / 2, 1) = nan;
    w(0, 0, c.queries / 3) = nan;
  }
  const oracle::laid_out<T> permuted(qi, {.order = {3, 1, 0, 2}, .backwards = {0, 0, 1, 1}});
  const auto got = heed::indexer_keys(pool, permuted.cview(), ki, w, o);
  EXPECT_TRUE(oracle::same_bits(got, heed::indexer_keys(serial, qi, ki, w, o)));
  heed::selection_options by_key = o;
  by_key.order = heed::index_order::ascending;
  EXPECT_TRUE(
      oracle::same_bits(selections::ascending(got), heed::indexer_keys(serial, qi, ki, w, by_key)));
  oracle::each_index({2, 1, c.queries, 1}, [&](index b, index, index i, index) {
    std::vector<double> scores;
    for (index j = 0; j < (o.causal ? std::min(c.keys, o.offset + i + 1) : c.keys); ++j) {
      double sum = 0;
      for (index h = 0; h < c.heads; ++h) {
        double s = 0;
        for (index x = 0; x < 8; ++x) {
          s += static_cast<double>(qi(b, h, i, x)) * static_cast<double>(ki(b, 0, j, x));
        }
        sum += static_cast<double>(w(b, h, i)) * (s > 0 ? s : 0.0);
      }
      scores.push_back(sum);
    }
    const auto want = best(scores, o.count);
    for (index n = 0; n < o.count; ++n) {
      EXPECT_EQ(got(b, 0, i, n), want[static_cast<std::size_t>(n)])
          << c.heads << " heads " << c.keys << " keys " << b << i << n;
    }
  });
}

TYPED_TEST(Selection, IndexerKeys) {
  constexpr index group = heed::kernel::tile_plan<heed::accumulate_t<TypeParam>>::group;
  for (const index count : {0, 6, 40}) {
    for (const index keys : {index{1}, group - 1, group, group + 1, index{101}}) {
      check_indexer<TypeParam>({.keys = keys}, {.count = count, .causal = true});
      check_indexer<TypeParam>({.keys = keys}, {.count = count});
    }
    check_indexer<TypeParam>({.keys = 60, .with_nans = true},
                             {.count = count, .causal = true, .offset = 30});
    check_indexer<TypeParam>({.heads = 4, .queries = 150, .keys = 160},
                             {.count = count, .causal = true, .offset = -3});
  }
  check_indexer<TypeParam>({.queries = 100, .keys = 900},
                           {.count = 40, .causal = true, .offset = 820});
  for (const index heads : {0, 1, 64, 257}) {
    for (const index queries : {0, 1, 5}) {
      check_indexer<TypeParam>({.heads = heads, .queries = queries, .keys = 70},
                               {.count = 9, .causal = false});
    }
  }
}

// All keys selected is attention itself.
TYPED_TEST(Selection, OfEverythingIsAttention) {
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<TypeParam, 4>({1, 4, 40, 16}, 1);
  const auto k = oracle::random_tensor<TypeParam, 4>({1, 2, 40, 16}, 2);
  const auto want = oracle::expected(q, k, k, {}, heed::causal());
  const auto all = heed::top_k_keys(serial, q, k, {.count = 40, .causal = true});
  EXPECT_EQ(oracle::difference<TypeParam>(heed::selected_attention(q, k, k, all, 1), want.output,
                                          want.sizes),
            "");
  const auto blocks = heed::mixture_of_blocks(serial, q, k, {.count = 10, .block = 4});
  EXPECT_EQ(oracle::difference<TypeParam>(
                heed::selected_attention(q, k, k, blocks, 4, {}, heed::causal()), want.output,
                want.sizes),
            "");
}

/// What a form that writes into the caller's memory writes, with 32 bits for each choice, or
/// nothing.
template <class Into>
void check_into(const heed::tensor<index, 4>& want, const Into& into) {
  const auto e = want.extents();
  heed::tensor<std::int32_t, 4> got(e);
  into(got);
  EXPECT_TRUE(std::equal(want.data(), want.data() + want.size(), got.data()));
  // Rows apart, in memory that holds more.
  std::vector<index> cells(static_cast<std::size_t>(want.size() * 2 + 1), 7);
  const heed::view<index, 4> apart(cells.data(), e,
                                   {2 * e[1] * e[2] * e[3], 2 * e[2] * e[3], 2 * e[3], 1});
  into(apart);
  oracle::each_index(e, [&](index b, index h, index i, index c) {
    EXPECT_EQ(apart(b, h, i, c), want(b, h, i, c));
  });
  EXPECT_EQ(std::count(cells.begin(), cells.end(), 7),
            want.size() + 1 + std::count(want.data(), want.data() + want.size(), 7));

  heed::tensor<index, 4> one_more({e[0], e[1], e[2], e[3] + 1});
  EXPECT_THROW(into(one_more), heed::shape_error);
  const heed::view<index, 4> choices_apart(cells.data(), e,
                                           {2 * e[1] * e[2] * e[3], 2 * e[2] * e[3], 2 * e[3], 2});
  EXPECT_THROW(into(choices_apart), heed::shape_error);
}

TEST(Selection, IntoTheCallersMemory) {
  heed::serial_executor serial;
  const auto q = small_integers<float, 4>({2, 4, 50, 8}, 1);
  const auto k = small_integers<float, 4>({2, 2, 53, 8}, 2);
  for (const auto order : {heed::index_order::best_first, heed::index_order::ascending}) {
    for (const index count : {3, 30}) {
      const heed::selection_options o{.count = count, .block = 4, .order = order};
      check_into(heed::top_k_keys(serial, q, k, o),
                 [&](auto& chosen) { heed::top_k_keys_into(serial, chosen, q, k, o); });
      check_into(heed::mixture_of_blocks(serial, q, k, o),
                 [&](auto& chosen) { heed::mixture_of_blocks_into(serial, chosen, q, k, o); });
      const auto one = small_integers<float, 4>({2, 1, 53, 8}, 3);
      const auto w = small_integers<float, 3>({2, 4, 50}, 4);
      check_into(heed::indexer_keys(serial, q, one, w, o),
                 [&](auto& chosen) { heed::indexer_keys_into(serial, chosen, q, one, w, o); });
    }
  }
}

// A block of a million keys: one float sum of positive numbers is 3e-5 off. The last block has what is
// left, and every stride gives the same bits.
TEST(BlockMeans, OfLongBlocksLoseNoDigits) {
  constexpr index n = 1'000'000, d = 3, block = 999'000;
  heed::tensor<float, 4> k({1, 1, n, d}), turned({1, 1, d, n});
  std::mt19937 draw(3);
  for (index j = 0; j < n; ++j) {
    for (index c = 0; c < d; ++c) {
      k(0, 0, j, c) = turned(0, 0, c, j) = 0.5f + static_cast<float>(draw() >> 8) / 33554432.0f;
    }
  }
  const auto means = heed::block_means(k, block);
  const auto same = heed::block_means(heed::as_view(turned).swap_axes(2, 3), block);
  ASSERT_EQ(means.extent(2), 2);
  for (index b = 0; b < 2; ++b) {
    for (index c = 0; c < d; ++c) {
      double sum = 0;
      const index end = std::min(n, (b + 1) * block);
      for (index j = b * block; j < end; ++j) sum += static_cast<double>(k(0, 0, j, c));
      const double mean = sum / static_cast<double>(end - b * block);
      EXPECT_NEAR(means(0, 0, b, c), mean, 2e-6 * mean);
      EXPECT_EQ(means(0, 0, b, c), same(0, 0, b, c));
    }
  }
}

TEST(SelectionErrors, NameTheArgument) {
  heed::serial_executor serial;
  const heed::tensor<float, 4> q({1, 3, 4, 8});
  const heed::tensor<float, 4> k({1, 2, 4, 8});
  const heed::tensor<float, 4> narrow({1, 1, 4, 7});
  EXPECT_THROW((void)heed::top_k_keys(serial, q, k), heed::shape_error);
  EXPECT_THROW((void)heed::top_k_keys(serial, q, narrow), heed::shape_error);
  EXPECT_THROW((void)heed::mixture_of_blocks(serial, k, k, {.block = 0}), heed::option_error);
}

}  // namespace
