// SPDX-License-Identifier: MIT
// Native sparse attention: every branch, the selection and the gates against plain loops in double.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"

namespace {

using heed::compressed_blocks;
using heed::index;

/// Means of whole blocks, by their definition.
heed::tensor<double, 4> means_of(const heed::tensor<double, 4>& x, index length, index stride) {
  index count = 0;
  while (count * stride + length <= x.extent(2)) ++count;
  heed::tensor<double, 4> means({x.extent(0), x.extent(1), count, x.extent(3)});
  oracle::each_index(means.extents(), [&](index b, index h, index i, index c) {
    for (index j = i * stride; j < i * stride + length; ++j) {
      means(b, h, i, c) += x(b, h, j, c) / static_cast<double>(length);
    }
  });
  return means;
}

// ---------------------------------------------------------------------------------- the blocks

TEST(CompressedBlocks, AreVisibleOnceComplete) {
  for (const index length : {1, 2, 5, 16}) {
    for (index stride = 1; stride <= length; ++stride) {
      const compressed_blocks mask{.length = length, .stride = stride};
      for (index p = -3; p < 40; ++p) {
        index seen = 0;
        for (index i = 0; i < 45; ++i) {
          const bool complete = i * stride + length - 1 <= p;
          seen += complete ? 1 : 0;
          EXPECT_EQ(mask({.query = p, .key = i}), complete);
        }
        EXPECT_EQ(mask.whole(p + 1), seen);
      }
    }
  }
  const compressed_blocks only_length{.length = 7};
  EXPECT_EQ(only_length.stride, 7);
}

TEST(CompressedBlocks, TheirTilesHoldWhatTheirPairsDo) {
  for (const auto& mask :
       {compressed_blocks{.length = 4}, compressed_blocks{.length = 5, .stride = 2}}) {
    for (index q0 = -4; q0 < 30; ++q0) {
      for (const index rows : {1, 3, 11}) {
        for (index k0 = 0; k0 < 12; ++k0) {
          for (const index keys : {1, 2, 6}) {
            const heed::tile t{0, 0, 0, {q0, q0 + rows}, {k0, k0 + keys}, 0};
            index seen = 0;
            const heed::range r = mask.visible_keys(t);
            for (index q = q0; q < q0 + rows; ++q) {
              for (index k = k0; k < k0 + keys; ++k) {
                const bool visible = mask({.query = q, .key = k});
                seen += visible ? 1 : 0;
                EXPECT_TRUE(!visible || (r.begin <= k && k < r.end));
              }
            }
            EXPECT_EQ(mask.coverage(t), seen == 0             ? heed::coverage::empty
                                        : seen == rows * keys ? heed::coverage::full
                                                              : heed::coverage::partial);
          }
        }
      }
    }
  }
}

TEST(CompressedBlocks, MeansOfWholeBlocks) {
  heed::thread_pool pool(3);
  for (const index tokens : {0, 1, 4, 31, 97}) {
    for (const auto& blocks :
         {compressed_blocks{.length = 4}, compressed_blocks{.length = 7, .stride = 3}}) {
      const auto x = oracle::random_tensor<float, 4>({2, 3, tokens, 5}, 1);
      const auto want = means_of(oracle::widened(x), blocks.length, blocks.stride);
      const auto got = heed::block_compression(pool, x, blocks);
      ASSERT_EQ(got.extents(), want.extents());
      // A sum of at most 7 terms of size at most 5, and a division.
      for (index i = 0; i < want.size(); ++i)
        EXPECT_NEAR(got.data()[i], want.data()[i], 8 * 5 * 6e-8);
      // Channels that are not next to each other.
      const heed::tensor<float, 4> transposed({2, 3, 5, tokens});
      heed::tensor<float, 4> y = transposed;
      oracle::each_index(
          x.extents(), [&](index b, index h, index i, index c) { y(b, h, c, i) = x(b, h, i, c); });
      EXPECT_TRUE(oracle::same_bits(
          got, heed::block_compression(heed::as_view(y).swap_axes(2, 3), blocks)));
    }
  }
}

// ------------------------------------------------------------------------------- the selection

struct shapes {
  index batch = 2;
  index heads = 6;
  index kv_heads = 2;
  index queries = 101;
  index keys = 101;
  index head_dim = 16;
};

/// Importance of every block a row may choose, [batch, kv heads, queries, blocks] in double by its
/// definition: the shared tokens counted one by one.
heed::tensor<double, 4> importance_of(const heed::tensor<double, 4>& q,
                                      const heed::tensor<double, 4>& kc, index tokens,
                                      const heed::compressed_selection_options& o) {
  const index group = q.extent(1) / kc.extent(1);
  const index blocks = (tokens + o.block - 1) / o.block;
  heed::tensor<double, 4> all({q.extent(0), kc.extent(1), q.extent(2), blocks});
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.extent(3))));
  oracle::each_index({q.extent(0), q.extent(1), q.extent(2), 1}, [&](index b, index h, index i,
                                                                     index) {
    std::vector<double> e;
    double sum = 0;
    for (index n = 0; n < kc.extent(2); ++n) {
      if (n * o.compression.stride + o.compression.length - 1 > o.offset + i) break;
      double dot = 0;
      for (index c = 0; c < q.extent(3); ++c) dot += q(b, h, i, c) * kc(b, h / group, n, c);
      e.push_back(std::exp(dot * scale));
      sum += e.back();
    }
    for (std::size_t n = 0; n < e.size(); ++n) {
      const index from = static_cast<index>(n) * o.compression.stride;
      for (index j = from; j < from + o.compression.length; ++j) {
        all(b, h / group, i, j / o.block) += e[n] / sum / static_cast<double>(o.compression.stride);
      }
    }
  });
  return all;
}

/// "" where the choices are the fixed blocks and then blocks of falling importance, none left out
/// that is more important by more than `within`.
std::string check_choices(const heed::tensor<index, 4>& got, const heed::tensor<double, 4>& weight,
                          const heed::compressed_selection_options& o, double within) {
  std::string text;
  const auto say = [&](index b, index h, index i, const std::string& what) {
    if (text.empty()) {
      text = "row " + heed::format_extents(std::vector<index>{b, h, i}) + ": " + what;
    }
  };
  oracle::each_index(
      {got.extent(0), got.extent(1), got.extent(2), 1}, [&](index b, index h, index i, index) {
        const index p = o.offset + i;
        const index candidates = p < 0 ? 0 : std::min(weight.extent(3), p / o.block + 1);
        std::vector<bool> taken(static_cast<std::size_t>(candidates), false);
        index at = 0;
        for (index j = 0; j < candidates; ++j) {
          if (j >= o.initial && j < candidates - o.local) continue;
          if (got(b, h, i, at++) != j) say(b, h, i, "a fixed block is missing");
          taken[static_cast<std::size_t>(j)] = true;
        }
        double last = 1e300;
        for (; at < std::min(o.count, candidates); ++at) {
          const index j = got(b, h, i, at);
          if (j < 0 || j >= candidates || taken[static_cast<std::size_t>(j)]) {
            return say(b, h, i, "block " + std::to_string(j) + " is no new candidate");
          }
          taken[static_cast<std::size_t>(j)] = true;
          if (weight(b, h, i, j) > last + within) say(b, h, i, "not by falling importance");
          last = weight(b, h, i, j);
        }
        for (; at < o.count; ++at) {
          if (got(b, h, i, at) != -1) say(b, h, i, "more than the candidates");
        }
        for (index j = 0; j < candidates; ++j) {
          if (!taken[static_cast<std::size_t>(j)] && o.count < candidates &&
              weight(b, h, i, j) > last + within) {
            say(b, h, i, "block " + std::to_string(j) + " was left out");
          }
        }
      });
  return text;
}

/// How far a probability summed over a group may be off: that of the weights of exact attention.
template <class T>
double importance_error(const heed::tensor<double, 4>& q, const heed::tensor<double, 4>& kc,
                        const heed::compressed_selection_options& o) {
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(q.extent(3))));
  const double product = scale * oracle::largest_row_norm(q) * oracle::largest_row_norm(kc);
  const oracle::magnitudes m{q.extent(3), kc.extent(2), product, product, 1};
  // Of each head's probabilities; blocks that overlap count length / stride times; ordinary sums.
  const double heads = static_cast<double>(q.extent(1) / kc.extent(1));
  const double each = oracle::tolerance<heed::accumulate_t<T>>(m).output(1);
  return heads * each *
         (1 +
          static_cast<double>(o.compression.length) / static_cast<double>(o.compression.stride));
}

template <class T>
void check_selection(const shapes& s, const heed::compressed_selection_options& o) {
  const auto q = oracle::random_tensor<T, 4>({s.batch, s.heads, s.queries, s.head_dim}, 1);
  const auto k = oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, s.head_dim}, 2, 2.0);
  heed::thread_pool pool(2);
  const auto kc = heed::block_compression(pool, k, o.compression);
  const auto want = importance_of(oracle::widened(q), oracle::widened(kc), s.keys, o);
  const double within = importance_error<T>(oracle::widened(q), oracle::widened(kc), o);
  const auto got = heed::compressed_block_selection(pool, q, kc, s.keys, o);
  ASSERT_EQ(got.extents(), (std::array<index, 4>{s.batch, s.kv_heads, s.queries, o.count}));
  EXPECT_EQ(check_choices(got, want, o, 2 * within), "") << s.queries << " rows, block " << o.block;
  // The same with the log-sum-exp given.
  heed::tensor<heed::accumulate_t<T>, 4> out({s.batch, s.heads, s.queries, s.head_dim});
  heed::tensor<heed::accumulate_t<T>, 3> lse({s.batch, s.heads, s.queries});
  heed::attention_into(pool, heed::into(out, lse), q, kc, kc,
                       {.scale = o.scale, .offset = o.offset}, o.compression);
  const auto given = heed::compressed_block_selection(pool, q, kc, s.keys, o, lse);
  EXPECT_EQ(check_choices(given, want, o, 2 * within), "")
      << s.queries << " rows, block " << o.block;
  heed::serial_executor serial;
  heed::thread_pool seven(7);
  EXPECT_TRUE(oracle::same_bits(got, heed::compressed_block_selection(serial, q, kc, s.keys, o)));
  EXPECT_TRUE(oracle::same_bits(got, heed::compressed_block_selection(seven, q, kc, s.keys, o)));
}

template <class T>
class CompressedSelection : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(CompressedSelection, scalars);

TYPED_TEST(CompressedSelection, TakesTheMostImportantBlocks) {
  const std::vector<compressed_blocks> compressions{{.length = 4},
                                                    {.length = 8, .stride = 4},
                                                    {.length = 7, .stride = 3},
                                                    {.length = 33, .stride = 5}};
  for (const auto& c : compressions) {
    for (const index block : {1, 4, 8, 13}) {
      check_selection<TypeParam>({}, {.count = 6, .block = block, .compression = c});
    }
  }
  check_selection<TypeParam>({}, {.count = 5,
                                  .block = 4,
                                  .initial = 0,
                                  .local = 0,
                                  .compression = {.length = 4},
                                  .scale = 0.7});
  check_selection<TypeParam>(
      {}, {.count = 5, .block = 4, .initial = 3, .local = 2, .compression = {.length = 4}});
}

TYPED_TEST(CompressedSelection, AnyCountOfRowsAndTokens) {
  for (const index queries : {0, 1, 47, 48, 49}) {
    for (const index keys : {0, 1, 5, 300}) {
      for (const index offset : {index{-5}, index{0}, keys}) {
        shapes s;
        s.queries = queries;
        s.keys = keys;
        check_selection<TypeParam>(
            s, {.count = 4, .block = 8, .compression = {.length = 4}, .offset = offset});
      }
    }
  }
  // Several blocks of compressed keys, and one head for all.
  shapes s;
  s.kv_heads = 1;
  s.queries = 20;
  s.keys = 1200;
  check_selection<TypeParam>(
      s, {.count = 9, .block = 16, .compression = {.length = 4}, .offset = 1180});
}

// Queries of zero: every visible compressed block has the same weight, whatever the keys, and so
// does every block that is covered alike. Ties go to the lower index.
TYPED_TEST(CompressedSelection, TiesGoToTheLowerIndex) {
  const heed::tensor<TypeParam, 4> q({1, 2, 70, 8});
  const auto kc = oracle::random_tensor<TypeParam, 4>({1, 1, 35, 8}, 2);
  heed::serial_executor serial;
  const heed::compressed_selection_options o{
      .count = 5, .block = 4, .initial = 1, .local = 1, .compression = {.length = 2}};
  const auto got = heed::compressed_block_selection(serial, q, kc, 70, o);
  for (index i = 0; i < 70; ++i) {
    const index own = i / 4;
    std::vector<index> want{0};
    if (own > 0) want.push_back(own);
    for (index j = 1; j < own && want.size() < 5; ++j) want.push_back(j);
    want.resize(5, -1);
    for (index c = 0; c < 5; ++c)
      EXPECT_EQ(got(0, 0, i, c), want[static_cast<std::size_t>(c)]) << i;
  }
}

// What a row does not see changes nothing; a NaN it sees is never preferred.
TYPED_TEST(CompressedSelection, NotANumber) {
  const auto q = oracle::random_tensor<TypeParam, 4>({1, 2, 64, 8}, 1);
  auto kc = oracle::random_tensor<TypeParam, 4>({1, 1, 16, 8}, 2);
  const heed::compressed_selection_options o{
      .count = 3, .block = 4, .initial = 0, .local = 0, .compression = {.length = 4}};
  heed::serial_executor serial;
  const auto clean = heed::compressed_block_selection(serial, q, kc, 64, o);
  for (index c = 0; c < 8; ++c) kc(0, 0, 9, c) = static_cast<TypeParam>(oracle::not_a_number);
  const auto got = heed::compressed_block_selection(serial, q, kc, 64, o);
  for (index i = 0; i < 64; ++i) {
    for (index c = 0; c < 3; ++c) {
      // Block 9 is complete at token 39. From there on no complete block has a number, and the
      // row's own has one, 0, until it is complete.
      const index first = i % 4 == 3 ? 0 : c == 0 ? i / 4 : -1;
      const index want = i < 39 ? clean(0, 0, i, c) : first + c;
      EXPECT_EQ(got(0, 0, i, c), want) << i;
    }
  }
}

TEST(CompressedSelectionErrors, NameTheArgument) {
  heed::serial_executor serial;
  const auto q = oracle::random_tensor<float, 4>({2, 4, 9, 8}, 1);
  const auto kc = oracle::random_tensor<float, 4>({2, 2, 5, 8}, 2);
  const heed::compressed_selection_options o{.count = 4, .block = 4, .compression = {.length = 4}};
  EXPECT_NO_THROW((void)heed::compressed_block_selection(serial, q, kc, 23, o));
  EXPECT_THROW((void)heed::compressed_block_selection(serial, q, kc, 24, o), heed::shape_error);
  EXPECT_THROW((void)heed::compressed_block_selection(serial, q, kc, -1, o), heed::shape_error);
  const auto other = [&](auto change) {
    auto changed = o;
    change(changed);
    EXPECT_THROW((void)heed::compressed_block_selection(serial, q, kc, 20, changed),
                 heed::option_error);
  };
  other([](auto& x) { x.count = 2; });
  other([](auto& x) { x.block = 0; });
  other([](auto& x) { x.initial = -1; });
  other([](auto& x) { x.local = -1; });
  other([](auto& x) { x.compression.stride = 0; });
  other([](auto& x) { x.compression.stride = 5; });
  other([](auto& x) { x.compression.length = 0; });
  EXPECT_THROW((void)heed::block_compression(kc, {.length = 3, .stride = 4}), heed::option_error);
  const heed::tensor<float, 4> heads({2, 3, 5, 8});
  EXPECT_THROW((void)heed::compressed_block_selection(serial, q, heads, 20, o), heed::shape_error);
  const heed::tensor<float, 4> batch({1, 2, 5, 8});
  EXPECT_THROW((void)heed::compressed_block_selection(serial, q, batch, 20, o), heed::shape_error);
  const heed::tensor<float, 4> channels({2, 2, 5, 7});
  EXPECT_THROW((void)heed::compressed_block_selection(serial, q, channels, 20, o),
               heed::shape_error);
  const heed::tensor<float, 3> lse({2, 4, 8});
  EXPECT_THROW((void)heed::compressed_block_selection(serial, q, kc, 20, o, lse),
               heed::shape_error);
}

// ------------------------------------------------------------------------------ the whole method

/// The arguments of a call; every branch has tokens of its own.
template <class T>
struct inputs {
  heed::tensor<T, 4> q, k, v, ck, cv, wk, wv, gates;
  explicit inputs(const shapes& s)
      : q(oracle::random_tensor<T, 4>({s.batch, s.heads, s.queries, s.head_dim}, 1)),
        k(oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, s.head_dim}, 2)),
        v(oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, 9}, 3)),
        ck(oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, s.head_dim}, 4)),
        cv(oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, 9}, 5)),
        wk(oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, s.head_dim}, 6)),
        wv(oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, 9}, 7)),
        gates(oracle::random_tensor<T, 4>({s.batch, s.heads, s.queries, 3}, 8)) {}
};

struct branch {
  heed::tensor<double, 4> output;
  double value_error = 0;  // of every number, besides what it errs in proportion
};

/// A branch by its definition, and how far the library's may be from it.
template <class T, class K, class V, class Visible>
branch branch_of(const heed::tensor<T, 4>& q, const K& k, const V& v,
                 const heed::native_sparse_options& o, const Visible& visible) {
  const auto qd = oracle::widened(q);
  const auto kd = oracle::widened(k);
  const auto vd = oracle::widened(v);
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(qd.extent(3))));
  const std::vector<index> offsets(static_cast<std::size_t>(qd.extent(0)), o.offset);
  auto r = oracle::by_definition(
      qd, kd, vd, scale, offsets, [](double x, const heed::position&) { return x; }, visible);
  const double product = scale * oracle::largest_row_norm(qd) * oracle::largest_row_norm(kd);
  const oracle::magnitudes m{qd.extent(3), kd.extent(2), product, product, oracle::largest(vd)};
  return {std::move(r.output), oracle::tolerance<heed::accumulate_t<T>>(m).output(0) +
                                   oracle::weight_rounding<T>() * m.value};
}

/// "" where `got` is the gated sum of the branches, by plain loops, under the given selection; an
/// absent `gates` is all 1. Selections have the KV heads or fewer, tokens are those of `in`.
template <class T, class Out, class CK, class CV>
std::string check_sum(const Out& got, const heed::tensor<T, 4>& q, const CK& kc, const CV& vc,
                      const heed::tensor<T, 4>& k, const heed::tensor<T, 4>& v,
                      const heed::tensor<T, 4>& wk, const heed::tensor<T, 4>& wv,
                      const heed::tensor<T, 4>* gates, const heed::tensor<index, 4>& selection,
                      const heed::native_sparse_options& o) {
  using heed::position;
  const branch parts[3] = {
      branch_of(q, kc, vc, o,
                [&](const position& p) {
                  return p.key * o.compression.stride + o.compression.length <= p.query + 1;
                }),
      branch_of(q, k, v, o,
                [&](const position& p) {
                  for (index c = 0; c < selection.extent(3); ++c) {
                    const index chosen = selection(p.batch, p.kv_head, p.row, c);
                    if (chosen >= 0 && p.key / o.block == chosen && p.key <= p.query) return true;
                  }
                  return false;
                }),
      branch_of(q, wk, wv, o,
                [&](const position& p) { return p.key <= p.query && p.query - p.key < o.window; })};
  std::string text;
  const double u = oracle::unit_roundoff<heed::accumulate_t<T>>();
  oracle::each_index(parts[0].output.extents(), [&](index b, index h, index i, index c) {
    double want = 0;
    double within = oracle::denormal_step<T>();
    for (index n = 0; n < 3; ++n) {
      const double g = gates == nullptr ? 1 : static_cast<double>((*gates)(b, h, i, n));
      const double x = parts[n].output(b, h, i, c);
      want += g * x;
      // Each branch, its rounding, and three roundings of the sum; double errs as much itself.
      within += std::abs(g) * (parts[n].value_error + 8 * u * std::abs(x));
    }
    within += oracle::unit_roundoff<T>() * std::abs(want);
    const auto x = static_cast<double>(got(b, h, i, c));
    if (text.empty() && !oracle::agrees(x, want, within)) {
      text = "out" + heed::format_extents(std::vector<index>{b, h, i, c}) + " is " +
             std::to_string(x) + ", not " + std::to_string(want) + " within " +
             std::to_string(within);
    }
  });
  return text;
}

heed::tensor<index, 4> random_selection(const shapes& s, index heads, index blocks) {
  heed::tensor<index, 4> t({s.batch, heads, s.queries, 5});
  std::mt19937 draw(11);
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = static_cast<index>(draw() % static_cast<unsigned>(blocks + 1)) - 1;
  }
  return t;
}

template <class T>
class NativeSparse : public testing::Test {
 protected:
  static void check(const shapes& s, const heed::native_sparse_options& o) {
    const inputs<T> in(s);
    heed::thread_pool pool(2);
    // The selection made, which the oracle then takes over once it is found to be one.
    const auto kc = heed::block_compression(pool, in.k, o.compression);
    const auto vc = heed::block_compression(pool, in.v, o.compression);
    const auto got =
        heed::native_sparse_attention_with_selection(pool, in.q, in.k, in.v, in.gates, o);
    const heed::compressed_selection_options so{o.count,       o.block, o.initial, o.local,
                                                o.compression, o.scale, o.offset};
    const auto qd = oracle::widened(in.q);
    const auto kcd = oracle::widened(kc);
    EXPECT_EQ(check_choices(got.selection, importance_of(qd, kcd, s.keys, so), so,
                            2 * importance_error<T>(qd, kcd, so)),
              "");
    EXPECT_EQ(
        check_sum(got.output, in.q, kc, vc, in.k, in.v, in.k, in.v, &in.gates, got.selection, o),
        "")
        << s.queries << " rows, " << s.keys << " keys, offset " << o.offset;
    for (const index threads : {1, 7}) {
      heed::thread_pool other(threads);
      const auto again =
          heed::native_sparse_attention_with_selection(other, in.q, in.k, in.v, in.gates, o);
      EXPECT_TRUE(oracle::same_bits(again.output, got.output));
      EXPECT_TRUE(oracle::same_bits(again.selection, got.selection));
    }
  }
};
TYPED_TEST_SUITE(NativeSparse, scalars);

TYPED_TEST(NativeSparse, IsTheGatedSumOfItsBranches) {
  const heed::native_sparse_options o{
      .compression = {.length = 4}, .block = 8, .count = 5, .window = 11};
  this->check({}, o);
  auto overlapping = o;
  overlapping.compression = {.length = 8, .stride = 3};
  overlapping.scale = 0.4;
  this->check({}, overlapping);
  auto only_fixed = o;
  only_fixed.count = 3;
  only_fixed.window = 0;
  this->check({}, only_fixed);
}

TYPED_TEST(NativeSparse, AnyCountOfRowsAndTokens) {
  for (const index queries : {0, 1, 5, 53}) {
    for (const index keys : {0, 1, 3, 97}) {
      for (const index offset : {index{0}, keys - queries}) {
        shapes s;
        s.batch = 1;
        s.heads = 4;
        s.kv_heads = offset == 0 ? 4 : 1;
        s.queries = queries;
        s.keys = keys;
        this->check(
            s,
            {.compression = {.length = 4}, .block = 8, .count = 4, .window = 6, .offset = offset});
      }
    }
  }
}

TYPED_TEST(NativeSparse, EachBranchMayHaveItsOwnTokens) {
  using T = TypeParam;
  const shapes s;
  const inputs<T> in(s);
  const heed::native_sparse_options o{
      .compression = {.length = 6, .stride = 2}, .block = 8, .count = 5, .window = 11};
  heed::thread_pool pool(2);
  const auto kc = heed::block_compression(pool, in.ck, o.compression);
  const auto vc = heed::block_compression(pool, in.cv, o.compression);
  const auto selection = random_selection(s, s.kv_heads, 13);
  namespace nsa = heed::nsa;
  const auto got =
      heed::native_sparse_attention(pool, in.q, in.k, in.v, in.gates, o, nsa::window(in.wk, in.wv),
                                    nsa::selection(selection), nsa::to_compress(in.ck, in.cv));
  EXPECT_EQ(check_sum(got, in.q, kc, vc, in.k, in.v, in.wk, in.wv, &in.gates, selection, o), "");
  // Compressed by the caller, who made one block more; the tokens of the selected branch apart.
  heed::tensor<heed::accumulate_t<T>, 4> more_k({2, 2, kc.extent(2) + 1, 16});
  heed::tensor<heed::accumulate_t<T>, 4> more_v({2, 2, kc.extent(2) + 1, 9});
  oracle::each_index(kc.extents(), [&](index b, index h, index i, index c) {
    more_k(b, h, i, c) = kc(b, h, i, c);
    if (c < 9) more_v(b, h, i, c) = vc(b, h, i, c);
  });
  const auto other = heed::native_sparse_attention(
      pool, in.q, in.ck, in.cv, in.gates, o, nsa::selection(selection),
      nsa::compressed(more_k, more_v), nsa::selected(in.k, in.v), nsa::window(in.wk, in.wv));
  EXPECT_TRUE(oracle::same_bits(got, other));
}

TYPED_TEST(NativeSparse, GatesAreOneTensorOrThreeOrNone) {
  using T = TypeParam;
  shapes s;
  s.batch = 1;
  const inputs<T> in(s);
  const heed::native_sparse_options o{
      .compression = {.length = 4}, .block = 8, .count = 5, .window = 11};
  heed::serial_executor serial;
  const auto want = heed::native_sparse_attention(serial, in.q, in.k, in.v, in.gates, o);
  heed::tensor<T, 3> g[3] = {heed::tensor<T, 3>({1, 6, 101}), heed::tensor<T, 3>({1, 6, 101}),
                             heed::tensor<T, 3>({1, 6, 101})};
  for (index n = 0; n < 3; ++n) {
    for (index r = 0; r < 6 * 101; ++r) g[n].data()[r] = in.gates.data()[3 * r + n];
  }
  EXPECT_TRUE(oracle::same_bits(
      want, heed::native_sparse_attention(serial, in.q, in.k, in.v,
                                          heed::nsa::gates(g[0], g[1], g[2]), o)));
  const auto free =
      heed::native_sparse_attention_with_selection(serial, in.q, in.k, in.v, heed::nsa::ungated, o);
  const auto kc = heed::block_compression(in.k, o.compression);
  const auto vc = heed::block_compression(in.v, o.compression);
  const heed::tensor<T, 4>* const none = nullptr;
  EXPECT_EQ(check_sum(free.output, in.q, kc, vc, in.k, in.v, in.k, in.v, none, free.selection, o),
            "");
  // Rank 3, a result elsewhere and token by token, scratch kept.
  const auto one = [](const auto& t) { return heed::as_view(t)[0]; };
  heed::workspace scratch;
  auto kept = o;
  kept.scratch = &scratch;
  heed::tensor<T, 3> tokens_first({101, 6, 9});
  for (int twice = 0; twice < 2; ++twice) {
    heed::native_sparse_attention_into(heed::as_view(tokens_first).swap_axes(0, 1), one(in.q),
                                       one(in.k), one(in.v), one(in.gates), kept);
    oracle::each_index(want.extents(), [&](index, index h, index i, index c) {
      EXPECT_EQ(static_cast<double>(tokens_first(i, h, c)), static_cast<double>(want(0, h, i, c)));
    });
  }
}

// A NaN in tokens ahead of a row reaches none of its branches; one it sees propagates.
TYPED_TEST(NativeSparse, NotANumberBehindTheMask) {
  using T = TypeParam;
  shapes s;
  s.batch = 1;
  inputs<T> in(s);
  const heed::native_sparse_options o{
      .compression = {.length = 4}, .block = 32, .count = 4, .window = 11};
  heed::serial_executor serial;
  const auto clean = heed::native_sparse_attention(serial, in.q, in.k, in.v, in.gates, o);
  for (index h = 0; h < 2; ++h) {
    for (index j = 70; j < 101; ++j) {
      in.k(0, h, j, 3) = static_cast<T>(oracle::not_a_number);
      in.v(0, h, j, 3) = static_cast<T>(oracle::not_a_number);
    }
  }
  const auto got = heed::native_sparse_attention(serial, in.q, in.k, in.v, in.gates, o);
  const auto close = static_cast<double>(oracle::unit_roundoff<T>()) * 64;
  oracle::each_index(got.extents(), [&](index b, index h, index i, index c) {
    const auto x = static_cast<double>(got(b, h, i, c));
    const auto y = static_cast<double>(clean(b, h, i, c));
    // The sums beside a hidden NaN are made pair by pair, in another order.
    if (i < 70) {
      EXPECT_NEAR(x, y, close * (1 + std::abs(y)));
    } else {
      EXPECT_TRUE(std::isnan(x));
    }
  });
}

TEST(NativeSparseErrors, NameTheArgumentAndWriteNothing) {
  const shapes s;
  const inputs<float> in(s);
  const heed::native_sparse_options o{
      .compression = {.length = 4}, .block = 8, .count = 5, .window = 11};
  heed::tensor<float, 4> out({2, 6, 101, 9});
  std::fill_n(out.data(), out.size(), 7.0F);
  namespace nsa = heed::nsa;
  using heed::shape_error;
  const auto message = [&](const auto& q, const auto& k, const auto& v, const auto& gates,
                           const heed::native_sparse_options& options, const auto&... arguments) {
    try {
      heed::native_sparse_attention_into(out, q, k, v, gates, options, arguments...);
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto shaped = [](index a, index b, index c, index d) {
    return heed::tensor<float, 4>({a, b, c, d});
  };
  const auto refused = [&](const std::string& text, const std::string& name) {
    EXPECT_NE(text.find(name), std::string::npos) << "'" << text << "' does not name " << name;
  };
  refused(message(in.q, shaped(2, 4, 101, 16), in.v, in.gates, o), "q has 6 heads");
  refused(message(in.q, shaped(2, 2, 100, 16), in.v, in.gates, o), "tokens 101");
  refused(message(in.q, shaped(2, 2, 101, 15), in.v, in.gates, o), "head dim 15");
  refused(message(in.q, in.k, shaped(2, 2, 101, 8), in.gates, o), "out has extents");
  refused(message(in.q, in.k, in.v, shaped(2, 6, 101, 2), o), "gates has branches 2");
  refused(message(in.q, in.k, in.v, shaped(2, 6, 100, 3), o), "queries 100");
  refused(message(in.q, in.k, in.v, in.gates, o,
                  nsa::window(shaped(2, 2, 90, 16), shaped(2, 2, 90, 9))),
          "k of the window branch has tokens 90");
  refused(message(in.q, in.k, in.v, in.gates, o, nsa::selected(in.k, shaped(2, 2, 101, 8))),
          "v of the selected branch has value dim 8");
  refused(message(in.q, in.k, in.v, in.gates, o,
                  nsa::compressed(shaped(2, 2, 24, 16), shaped(2, 2, 24, 9))),
          "k of the compressed branch has 24 blocks");
  const heed::tensor<index, 4> few({2, 2, 100, 3});
  refused(message(in.q, in.k, in.v, in.gates, o, nsa::selection(few)), "selection has extents");
  const auto with = [&](auto change) {
    auto changed = o;
    change(changed);
    return message(in.q, in.k, in.v, in.gates, changed);
  };
  refused(with([](auto& x) { x.window = -1; }), "window is -1");
  refused(with([](auto& x) { x.count = 2; }), "count is 2");
  refused(with([](auto& x) { x.block = 0; }), "block is 0");
  refused(with([](auto& x) { x.compression.stride = 5; }), "stride 5");
  for (index i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], 7.0F);
}

}  // namespace
