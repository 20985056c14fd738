// SPDX-License-Identifier: MIT
// Exact attention without modifiers: any shape, scalar and layout against the textbook in double,
// and the algebra of softmax.
#include "heed/attention.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using oracle::extents4;

// The tiled kernel's queries go in groups of 3 packets, its keys in blocks of 128; the few-query
// kernel's keys in blocks of 256. Each size of a machine comes with its two neighbours.
const std::vector<index> token_counts = {
    0,  1,  2,  3,  4,  5,   7,   8,   9,   11,  13,  15,  16,  17,  23,  24,  25,  31, 32,
    33, 47, 48, 49, 97, 127, 128, 129, 143, 144, 145, 191, 192, 193, 211, 255, 256, 257};
const std::vector<index> channel_counts = {0,  1,  2,  3,  4,  5,  7,  8,  9,  12, 15, 16, 17,
                                           24, 31, 32, 33, 40, 47, 48, 49, 63, 64, 65, 80};

template <class T>
T pick(const std::vector<T>& from) {
  return *rc::gen::elementOf(from);
}

/// The extents of a call.
struct shape {
  index batch = 1;
  index kv_heads = 1;
  index group = 1;
  index queries = 1;
  index keys = 1;
  index head_dim = 1;
  index value_dim = 1;

  [[nodiscard]] extents4 q() const { return {batch, kv_heads * group, queries, head_dim}; }
  [[nodiscard]] extents4 k() const { return {batch, kv_heads, keys, head_dim}; }
  [[nodiscard]] extents4 v() const { return {batch, kv_heads, keys, value_dim}; }
  [[nodiscard]] extents4 out() const { return {batch, kv_heads * group, queries, value_dim}; }
};

std::ostream& operator<<(std::ostream& out, const shape& s) {
  return out << "batch " << s.batch << " kv_heads " << s.kv_heads << " group " << s.group
             << " queries " << s.queries << " keys " << s.keys << " head_dim " << s.head_dim
             << " value_dim " << s.value_dim;
}

shape any_shape() {
  shape s;
  s.batch = pick<index>({1, 1, 1, 2, 3, 0});
  s.kv_heads = pick<index>({1, 1, 2, 3, 0});
  s.group = pick<index>({1, 1, 2, 4, 7});
  s.queries = pick(token_counts);
  s.keys = pick(token_counts);
  s.head_dim = pick(channel_counts);
  s.value_dim = *rc::gen::arbitrary<bool>() ? s.head_dim : pick(channel_counts);
  return s;
}

oracle::layout any_layout() {
  oracle::layout l;
  std::vector<int> order = {0, 1, 2, 3};
  for (std::size_t n = 4; n-- > 1;) {
    std::swap(order[n], order[static_cast<std::size_t>(*rc::gen::inRange(0, int(n) + 1))]);
  }
  std::copy(order.begin(), order.end(), l.order.begin());
  for (std::size_t a = 0; a < 4; ++a) {
    l.gap[a] = pick<index>({0, 0, 0, 1, 3});
    l.backwards[a] = *rc::gen::weightedElement<bool>({{3, false}, {1, true}});
  }
  l.shift = pick<index>({0, 1, 2, 5});
  return l;
}

template <class T>
class Attention : public testing::Test {};
using scalars = test_scalars::all;
TYPED_TEST_SUITE(Attention, scalars);

TYPED_TEST(Attention, AnyShapeAgreesWithTheTextbook) {
  using T = TypeParam;
  EXPECT_TRUE(rc::check("any shape", [] {
    const shape s = any_shape();
    RC_TAG(s.queries < 9 ? "few queries" : "many queries");
    const auto seed = *rc::gen::arbitrary<unsigned>();
    const double size = pick<double>({0.25, 1.0, 3.0});
    heed::attention_options options;
    if (*rc::gen::arbitrary<bool>()) options.scale = pick<double>({0.0, 1.0, -0.5, 0.3});
    RC_LOG() << s << " seed " << seed << " size " << size << "\n";
    const auto q = oracle::random_tensor<T, 4>(s.q(), seed, size);
    const auto k = oracle::random_tensor<T, 4>(s.k(), seed + 1);
    const auto v = oracle::random_tensor<T, 4>(s.v(), seed + 2);
    RC_ASSERT(oracle::check(q, k, v, options) == "");
  }));
}

// Any order of axes, gaps, directions and alignment, of every argument and of both results.
TYPED_TEST(Attention, AnyLayoutAgreesAndWritesNothingElse) {
  using T = TypeParam;
  using A = heed::accumulate_t<T>;
  EXPECT_TRUE(rc::check("any layout", [] {
    const shape s = any_shape();
    const auto seed = *rc::gen::arbitrary<unsigned>();
    RC_LOG() << s << " seed " << seed << "\n";
    const oracle::laid_out<T> q(oracle::random_tensor<T, 4>(s.q(), seed), any_layout());
    const oracle::laid_out<T> k(oracle::random_tensor<T, 4>(s.k(), seed + 1), any_layout());
    const oracle::laid_out<T> v(oracle::random_tensor<T, 4>(s.v(), seed + 2), any_layout());
    const oracle::laid_out<T> out(s.out(), any_layout());
    const oracle::laid_out<A> lse({s.batch, s.kv_heads * s.group, s.queries, 1}, any_layout());
    const heed::view<A, 3> rows(lse.view().data(), {s.batch, s.kv_heads * s.group, s.queries},
                                {lse.view().stride(0), lse.view().stride(1), lse.view().stride(2)});
    heed::attention_into(heed::into(out.view(), rows), q.cview(), k.cview(), v.cview());
    const auto e = oracle::expected(q.cview(), k.cview(), v.cview(), {});
    RC_ASSERT(oracle::difference<T>(out.cview(), e.output, e.sizes) == "");
    RC_ASSERT(oracle::lse_difference<T>(rows, e.log_sum_exp, e.sizes) == "");
    RC_ASSERT(out.overwritten() == 0);
    RC_ASSERT(lse.overwritten() == 0);
    RC_ASSERT(q.overwritten() + k.overwritten() + v.overwritten() == 0);
  }));
}

// The textbook itself against the definition, written out once more in the tests.
TYPED_TEST(Attention, TheTextbookIsTheDefinition) {
  using T = TypeParam;
  const auto q = oracle::random_tensor<T, 4>({2, 6, 5, 7}, 1);
  const auto k = oracle::random_tensor<T, 4>({2, 3, 11, 7}, 2);
  const auto v = oracle::random_tensor<T, 4>({2, 3, 11, 4}, 3);
  const auto want = oracle::by_definition(
      oracle::widened(q), oracle::widened(k), oracle::widened(v), 0.7, {0, 0},
      [](double s, const heed::position&) { return s; },
      [](const heed::position&) { return true; });
  const auto e = oracle::expected(q, k, v, {.scale = 0.7});
  EXPECT_EQ(oracle::difference<double>(e.output, want.output, e.sizes), "");
  EXPECT_EQ(oracle::lse_difference<double>(e.log_sum_exp, want.log_sum_exp, e.sizes), "");
  const auto naive = heed::naive_attention_with_lse(q, k, v, {.scale = 0.7});
  EXPECT_EQ(oracle::difference<T>(naive.output, want.output, e.sizes), "");
  EXPECT_EQ(oracle::lse_difference<T>(naive.log_sum_exp, want.log_sum_exp, e.sizes), "");
}

// What a result or scratch held before does not matter, NaN included.
TYPED_TEST(Attention, NothingOfWhatWasThereBeforeRemains) {
  using T = TypeParam;
  using A = heed::accumulate_t<T>;
  heed::workspace scratch(1 << 20);
  std::fill_n(scratch.reserve(1 << 20), 1 << 20, std::byte{0xFF});  // NaN in every scalar
  for (const index queries : {3, 100}) {
    const auto q = oracle::random_tensor<T, 4>({1, 2, queries, 19}, 1);
    const auto k = oracle::random_tensor<T, 4>({1, 1, 70, 19}, 2);
    const auto v = oracle::random_tensor<T, 4>({1, 1, 70, 21}, 3);
    heed::tensor<T, 4> out({1, 2, queries, 21});
    heed::tensor<A, 3> lse({1, 2, queries});
    std::fill_n(out.data(), out.size(), std::numeric_limits<T>::quiet_NaN());
    std::fill_n(lse.data(), lse.size(), std::numeric_limits<A>::quiet_NaN());
    heed::attention_into(heed::into(out, lse), q, k, v, {.scratch = &scratch});
    const auto fresh = heed::attention_with_lse(q, k, v);
    EXPECT_TRUE(oracle::same_bits(out, fresh.output));
    EXPECT_TRUE(oracle::same_bits(lse, fresh.log_sum_exp));
    EXPECT_EQ(oracle::check(q, k, v, {.scratch = &scratch}), "");
  }
}

TYPED_TEST(Attention, OneWorkspaceServesCallsOfEveryShape) {
  using T = TypeParam;
  heed::workspace scratch;
  EXPECT_TRUE(rc::check("one workspace", [&] {
    const shape s = any_shape();
    const auto seed = *rc::gen::arbitrary<unsigned>();
    const auto q = oracle::random_tensor<T, 4>(s.q(), seed);
    const auto k = oracle::random_tensor<T, 4>(s.k(), seed + 1);
    const auto v = oracle::random_tensor<T, 4>(s.v(), seed + 2);
    RC_ASSERT(oracle::same_bits(heed::attention(q, k, v, {.scratch = &scratch}),
                                heed::attention(q, k, v)));
  }));
}

// A single key has weight 1 exactly: the output is the value, the log-sum-exp the score.
TYPED_TEST(Attention, OneKeyReturnsItsValue) {
  using T = TypeParam;
  for (const index queries : {1, 5, 49}) {
    const auto q = oracle::random_tensor<T, 2>({queries, 20}, 1);
    const auto k = oracle::random_tensor<T, 2>({1, 20}, 2);
    const auto v = oracle::random_tensor<T, 2>({1, 35}, 3);
    const auto got = heed::attention(q, k, v);
    for (index i = 0; i < queries; ++i) {
      for (index c = 0; c < 35; ++c) {
        EXPECT_EQ(static_cast<double>(got(i, c)), static_cast<double>(v(0, c)));
      }
    }
  }
}

TYPED_TEST(Attention, WithoutKeysTheResultIsEmpty) {
  using T = TypeParam;
  for (const index queries : {1, 100}) {
    const auto q = oracle::random_tensor<T, 3>({2, queries, 4}, 1);
    const heed::tensor<T, 3> nothing({2, 0, 4});
    const auto got = heed::attention_with_lse(q, nothing, nothing);
    EXPECT_EQ(oracle::largest(got.output), 0.0);
    for (index i = 0; i < got.log_sum_exp.size(); ++i) {
      EXPECT_EQ(static_cast<double>(got.log_sum_exp.data()[i]), -oracle::infinity);
    }
  }
}

// Rows a multiple of 4 KiB apart fall into few sets of the cache and are copied before use; a
// stride of 0 repeats one row.
TYPED_TEST(Attention, RowsFarApartAndRowsRepeated) {
  using T = TypeParam;
  const index apart = static_cast<index>(4096 / sizeof(T));
  const auto q = oracle::random_tensor<T, 2>({60, 8}, 1);
  const auto values = oracle::random_tensor<T, 2>({130, apart}, 2);
  const heed::view<const T, 2> k(values.data(), {130, 8}, {apart, 1});
  const heed::view<const T, 2> v(values.data() + 8, {130, 5}, {apart, 1});
  EXPECT_EQ(oracle::check(q, k, v, {}), "");
  const heed::view<const T, 2> one_key(values.data(), {130, 8}, {0, 1});
  EXPECT_EQ(oracle::check(q, one_key, v, {}), "");
  EXPECT_EQ(oracle::check(heed::as_view(q).slice(0, 0, 2), one_key, v, {}), "");
  const heed::view<const T, 2> one_number(values.data(), {130, 8}, {0, 0});
  EXPECT_EQ(oracle::check(q, one_number, one_number, {}), "");
}

// Blocks and splits of keys end at fixed keys: each count around the ends.
TYPED_TEST(Attention, ManyKeys) {
  using T = TypeParam;
  for (const index queries : {1, 2, 50}) {
    for (const index keys : {1023, 1024, 1025, 2047, 2049, 5000}) {
      const auto q = oracle::random_tensor<T, 4>({1, 4, queries, 24}, 1);
      const auto k = oracle::random_tensor<T, 4>({1, 2, keys, 24}, 2);
      const auto v = oracle::random_tensor<T, 4>({1, 2, keys, 24}, 3);
      EXPECT_EQ(oracle::check(q, k, v, {}), "") << queries << " queries, " << keys << " keys";
    }
  }
}

// A wide head and a wide value.
TYPED_TEST(Attention, ManyChannels) {
  using T = TypeParam;
  for (const index queries : {2, 50}) {
    const auto q = oracle::random_tensor<T, 2>({queries, 576}, 1);
    const auto k = oracle::random_tensor<T, 2>({140, 576}, 2);
    const auto v = oracle::random_tensor<T, 2>({140, 513}, 3);
    EXPECT_EQ(oracle::check(q, k, v, {}), "");
  }
}

// ------------------------------------------------------------------------------------- layouts

// batch x tokens x (heads x channels) and batch x tokens x heads x channels, in and out.
// The header's promise for numbers in [-1, 1], and twice that for normal ones; the textbook, which
// sums in double, errs by its rounded scores and result alone.
TEST(AttentionAccuracy, OfTheWholeOutput) {
  for (const bool normal : {false, true}) {
    for (const index d : {64, 128}) {
      const extents4 e{1, 1, 700, d};
      auto q = oracle::random_tensor<float, 4>(e, 1);
      auto k = oracle::random_tensor<float, 4>(e, 2);
      auto v = oracle::random_tensor<float, 4>(e, 3);
      for (auto* t : {&q, &k, &v}) {
        for (index i = 0; i < t->size() && !normal; ++i) t->data()[i] = std::erf(t->data()[i]);
      }
      const auto exact =
          heed::naive_attention(oracle::widened(q), oracle::widened(k), oracle::widened(v));
      const auto got = heed::attention(q, k, v);
      const auto textbook = heed::naive_attention(q, k, v);
      double most = 0;
      double of_textbook = 0;
      for (index i = 0; i < got.size(); ++i) {
        most = std::max(most, std::abs(static_cast<double>(got.data()[i]) - exact.data()[i]));
        of_textbook = std::max(of_textbook,
                               std::abs(static_cast<double>(textbook.data()[i]) - exact.data()[i]));
      }
      EXPECT_LE(most, normal ? 6e-7 : 3e-7) << "head dim " << d;
      EXPECT_LE(of_textbook, 1.5e-7) << "head dim " << d;
    }
  }
}

TEST(AttentionLayout, PackedProjectionsAndTokenMajor) {
  constexpr index heads = 6;
  constexpr index d = 20;
  for (const index n : {4, 70}) {
    const auto packed_q = oracle::random_tensor<float, 3>({2, n, heads * d}, 1);
    const auto packed_k = oracle::random_tensor<float, 3>({2, n, heads / 2 * d}, 2);
    const auto major_v = oracle::random_tensor<float, 4>({2, n, heads / 2, d}, 3);
    const auto q = heed::split_heads(packed_q, heads);
    const auto k = heed::split_heads(packed_k, heads / 2);
    const auto v = heed::heads_first(major_v);
    const auto e = oracle::expected(q, k, v, {});
    heed::tensor<float, 3> packed_out({2, n, heads * d});
    heed::attention_into(heed::split_heads(packed_out, heads), q, k, v);
    EXPECT_EQ(oracle::difference<float>(heed::split_heads(packed_out, heads), e.output, e.sizes),
              "");
    heed::tensor<float, 4> major_out({2, n, heads, d});
    heed::attention_into(heed::heads_first(major_out), q, k, v);
    EXPECT_EQ(oracle::difference<float>(heed::heads_first(major_out), e.output, e.sizes), "");
  }
}

template <class Matrix>
Matrix random_matrix(index rows, index columns, unsigned seed) {
  Matrix m(rows, columns);
  const auto t = oracle::random_tensor<typename Matrix::Scalar, 2>({rows, columns}, seed);
  for (index i = 0; i < rows; ++i) {
    for (index c = 0; c < columns; ++c) m(i, c) = t(i, c);
  }
  return m;
}

TEST(AttentionLayout, EigenInEigenOut) {
  using column_major = Eigen::MatrixXf;
  using row_major = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  for (const index n : {3, 90}) {
    const auto q = random_matrix<column_major>(n, 12, 1);
    const auto k = random_matrix<row_major>(77, 12, 2);
    const auto v = random_matrix<column_major>(77, 9, 3);
    const auto e = oracle::expected(q, k, v, {});
    const auto out = heed::attention(q, k, v);
    static_assert(std::is_same_v<decltype(out), const column_major>);
    EXPECT_EQ(oracle::difference<float>(out, e.output, e.sizes), "");

    const row_major q_rows = q;
    const auto out_rows = heed::attention(q_rows, k, v);
    static_assert(std::is_same_v<decltype(out_rows), const row_major>);
    EXPECT_EQ(oracle::difference<float>(out_rows, e.output, e.sizes), "");

    // A block of a larger matrix, a map, a reference, a transposed matrix; written in place.
    column_major larger = column_major::Constant(n + 2, 20, 7.0F);
    larger.block(1, 3, n, 12) = q;
    const Eigen::Map<const row_major> mapped(k.data(), 77, 12);
    const Eigen::MatrixXf v_transposed = v.transpose();
    heed::tensor<float, 1> lse({n});
    column_major target = column_major::Constant(n + 2, 20, 7.0F);
    heed::attention_into(heed::into(target.block(2, 5, n, 9), lse), larger.block(1, 3, n, 12),
                         mapped, v_transposed.transpose());
    EXPECT_EQ(oracle::difference<float>(target.block(2, 5, n, 9), e.output, e.sizes), "");
    EXPECT_EQ(oracle::lse_difference<float>(lse, e.log_sum_exp, e.sizes), "");
    target.block(2, 5, n, 9).setConstant(7.0F);
    EXPECT_EQ(target, column_major::Constant(n + 2, 20, 7.0F)) << "written outside the block";
  }
}

TEST(AttentionLayout, TheRankOfTheArgumentsIsThatOfTheResults) {
  const auto q = oracle::random_tensor<float, 3>({4, 10, 8}, 1);
  const auto k = oracle::random_tensor<float, 3>({2, 12, 8}, 2);
  const auto got = heed::attention_with_lse(q, k, k);
  static_assert(decltype(got.output)::rank == 3 && decltype(got.log_sum_exp)::rank == 2);
  const auto e = oracle::expected(q, k, k, {});
  EXPECT_EQ(oracle::difference<float>(got.output, e.output, e.sizes), "");
  EXPECT_EQ(oracle::lse_difference<float>(got.log_sum_exp, e.log_sum_exp, e.sizes), "");
  for (index h = 0; h < 4; ++h) {
    const auto head = heed::attention_with_lse(heed::as_view(q)[h], heed::as_view(k)[h / 2],
                                               heed::as_view(k)[h / 2]);
    static_assert(decltype(head.output)::rank == 2 && decltype(head.log_sum_exp)::rank == 1);
    for (index i = 0; i < 10; ++i) {
      EXPECT_EQ(head.log_sum_exp(i), got.log_sum_exp(h, i));
      for (index c = 0; c < 8; ++c) EXPECT_EQ(head.output(i, c), got.output(h, i, c));
    }
  }
}

// Queries, keys, values and output each of a scalar of their own: the sums are float throughout.
TEST(AttentionLayout, MixedScalars) {
  for (const index n : {2, 60}) {
    const auto q = oracle::random_tensor<float, 3>({4, n, 33}, 1);
    const auto k = oracle::random_tensor<heed::half, 3>({2, 150, 33}, 2);
    const auto v = oracle::random_tensor<heed::bfloat16, 3>({2, 150, 18}, 3);
    EXPECT_EQ(oracle::check(q, k, v, {}), "");
    const auto e = oracle::expected(q, k, v, {});
    heed::tensor<heed::half, 3> narrow({4, n, 18});
    heed::attention_into(narrow, q, k, v);
    EXPECT_EQ(oracle::difference<heed::half>(narrow, e.output, e.sizes), "");

    const auto q_half = oracle::random_tensor<heed::half, 3>({4, n, 33}, 1);
    heed::tensor<float, 3> wide({4, n, 18});
    heed::attention_into(wide, q_half, k, v);
    const auto eh = oracle::expected(q_half, k, v, {});
    EXPECT_EQ(oracle::difference<float>(wide, eh.output, eh.sizes), "");

    const auto q_double = oracle::random_tensor<double, 3>({4, n, 33}, 1);
    const auto k_double = oracle::random_tensor<double, 3>({2, 150, 33}, 2);
    heed::tensor<float, 3> rounded({4, n, 33});
    heed::attention_into(rounded, q_double, k_double, k_double);
    const auto ed = oracle::expected(q_double, k_double, k_double, {});
    EXPECT_EQ(oracle::difference<float>(rounded, ed.output, ed.sizes), "");
  }
}

// --------------------------------------------------------------------------- algebra of softmax

/// Rows of k and v in another order.
template <class T>
heed::tensor<T, 3> gathered(const heed::tensor<T, 3>& t, const std::vector<index>& rows) {
  heed::tensor<T, 3> out({t.extent(0), static_cast<index>(rows.size()), t.extent(2)});
  for (index h = 0; h < t.extent(0); ++h) {
    for (index j = 0; j < out.extent(1); ++j) {
      for (index c = 0; c < t.extent(2); ++c) {
        out(h, j, c) = t(h, rows[static_cast<std::size_t>(j)], c);
      }
    }
  }
  return out;
}

std::vector<index> ascending(index count) {
  std::vector<index> rows(static_cast<std::size_t>(count));
  std::iota(rows.begin(), rows.end(), index{0});
  return rows;
}

TEST(AttentionAlgebra, TheOrderOfKeysDoesNotMatter) {
  for (const index n : {5, 60}) {
    const auto q = oracle::random_tensor<float, 3>({2, n, 16}, 1);
    const auto k = oracle::random_tensor<float, 3>({2, 300, 16}, 2);
    const auto v = oracle::random_tensor<float, 3>({2, 300, 16}, 3);
    auto rows = ascending(300);
    std::shuffle(rows.begin(), rows.end(), std::mt19937(4));
    const auto e = oracle::expected(q, k, v, {});
    const auto got = heed::attention_with_lse(q, gathered(k, rows), gathered(v, rows));
    EXPECT_EQ(oracle::difference<float>(got.output, e.output, e.sizes), "");
    EXPECT_EQ(oracle::lse_difference<float>(got.log_sum_exp, e.log_sum_exp, e.sizes), "");
  }
}

// Twice the same keys: the same output, the log-sum-exp larger by log 2.
TEST(AttentionAlgebra, RepeatedKeysShiftTheLogSumExp) {
  for (const index n : {5, 60}) {
    const auto q = oracle::random_tensor<float, 3>({2, n, 16}, 1);
    const auto k = oracle::random_tensor<float, 3>({2, 100, 16}, 2);
    const auto v = oracle::random_tensor<float, 3>({2, 100, 16}, 3);
    auto rows = ascending(100);
    rows.insert(rows.end(), rows.begin(), rows.begin() + 100);
    auto e = oracle::expected(q, k, v, {});
    for (index i = 0; i < e.log_sum_exp.size(); ++i) e.log_sum_exp.data()[i] += std::log(2.0);
    e.sizes.keys = 200;
    const auto got = heed::attention_with_lse(q, gathered(k, rows), gathered(v, rows));
    EXPECT_EQ(oracle::difference<float>(got.output, e.output, e.sizes), "");
    EXPECT_EQ(oracle::lse_difference<float>(got.log_sum_exp, e.log_sum_exp, e.sizes), "");
  }
}

// A constant added to every score cancels in the weights.
TEST(AttentionAlgebra, AConstantOnAllScoresShiftsTheLogSumExpAlone) {
  for (const index n : {5, 60}) {
    const auto q = oracle::random_tensor<double, 3>({2, n, 16}, 1);
    const auto k = oracle::random_tensor<double, 3>({2, 150, 16}, 2);
    for (const double shift : {-1000.0, -1.0, 0.5, 700.0}) {
      auto e = oracle::expected(q, k, k, {});
      for (index i = 0; i < e.log_sum_exp.size(); ++i) e.log_sum_exp.data()[i] += shift;
      e.sizes.score += std::abs(shift);
      const auto got = heed::attention_with_lse(
          q, k, k, {}, [shift](double s, heed::position) { return s + shift; });
      EXPECT_EQ(oracle::difference<double>(got.output, e.output, e.sizes), "");
      EXPECT_EQ(oracle::lse_difference<double>(got.log_sum_exp, e.log_sum_exp, e.sizes), "");
    }
  }
}

// The scale multiplies the product once: twice the queries at half the scale are the same scores,
// by powers of two to the bit.
TEST(AttentionAlgebra, TheScaleMultipliesTheProduct) {
  for (const index n : {5, 60}) {
    const auto q = oracle::random_tensor<float, 3>({2, n, 16}, 1);
    const auto k = oracle::random_tensor<float, 3>({2, 150, 16}, 2);
    auto twice = q;
    for (index i = 0; i < q.size(); ++i) twice.data()[i] *= 2;
    EXPECT_TRUE(oracle::same_bits(heed::attention(q, k, k),  // 1 / sqrt(16)
                                  heed::attention(twice, k, k, {.scale = 0.125})));
  }
}

// Several query heads on one KV head are as many heads with a copy of it each.
TEST(AttentionAlgebra, GroupedHeadsReadTheKeysOfTheirGroup) {
  for (const index n : {1, 5, 60}) {
    const auto q = oracle::random_tensor<float, 3>({6, n, 16}, 1);
    const auto k = oracle::random_tensor<float, 3>({2, 150, 16}, 2);
    const auto v = oracle::random_tensor<float, 3>({2, 150, 10}, 3);
    heed::tensor<float, 3> k6({6, 150, 16});
    heed::tensor<float, 3> v6({6, 150, 10});
    for (index h = 0; h < 6; ++h) {
      for (index j = 0; j < 150; ++j) {
        for (index c = 0; c < 16; ++c) k6(h, j, c) = k(h / 3, j, c);
        for (index c = 0; c < 10; ++c) v6(h, j, c) = v(h / 3, j, c);
      }
    }
    const auto e = oracle::expected(q, k6, v6, {});
    EXPECT_EQ(oracle::difference<float>(heed::attention(q, k, v), e.output, e.sizes), "");
  }
}

// ---------------------------------------------------------------------------------------- merge

// Attention over any cut of the keys merges into attention over all, empty parts included.
TYPED_TEST(Attention, PartsMergeIntoTheWhole) {
  using T = TypeParam;
  EXPECT_TRUE(rc::check("parts merge", [] {
    const auto keys = *rc::gen::inRange<index>(1, 300);
    auto cuts = *rc::gen::container<std::vector<index>>(rc::gen::inRange<index>(0, keys + 1));
    cuts.push_back(0);
    cuts.push_back(keys);
    std::sort(cuts.begin(), cuts.end());
    const auto queries = pick<index>({1, 4, 50});
    const auto seed = *rc::gen::arbitrary<unsigned>();
    const auto q = oracle::random_tensor<T, 3>({2, queries, 16}, seed);
    const auto k = oracle::random_tensor<T, 3>({2, keys, 16}, seed + 1, 2.0);
    const auto v = oracle::random_tensor<T, 3>({2, keys, 9}, seed + 2);
    const auto part = [&](index begin, index end) {
      return heed::attention_with_lse(q, heed::as_view(k).slice(1, begin, end),
                                      heed::as_view(v).slice(1, begin, end));
    };
    auto whole = part(0, 0);
    for (std::size_t c = 1; c < cuts.size(); ++c) {
      const auto next = part(cuts[c - 1], cuts[c]);
      heed::merge_partials(whole.output, whole.log_sum_exp, next.output, next.log_sum_exp);
    }
    // Each merge rounds the output to its scalar once more: count those roundings as values.
    auto e = oracle::expected(q, k, v, {});
    e.sizes.value *= 1 + (sizeof(T) == 2 ? static_cast<double>(cuts.size()) : 0.0);
    const double rounding = static_cast<double>(cuts.size()) * oracle::unit_roundoff<T>();
    oracle::each_index(e.output.extents(), [&](index b, index h, index i, index c) {
      const double within =
          oracle::tolerance<T>(e.sizes).output(e.output(b, h, i, c)) + 2 * rounding * e.sizes.value;
      RC_ASSERT(
          oracle::agrees(static_cast<double>(whole.output(h, i, c)), e.output(b, h, i, c), within));
    });
    e.sizes.score += 1 + std::log(static_cast<double>(keys));  // 2 eps a merge, see above
    e.sizes.score *= static_cast<double>(cuts.size());
    RC_ASSERT(oracle::lse_difference<T>(whole.log_sum_exp, e.log_sum_exp, e.sizes) == "");
  }));
}

TEST(Merge, EmptyIsTheNeutralElement) {
  using tensor2 = heed::tensor<float, 2>;
  using tensor1 = heed::tensor<float, 1>;
  const auto minus_infinity = -std::numeric_limits<float>::infinity();
  const auto nan = std::numeric_limits<float>::quiet_NaN();
  tensor2 out({2, 3});
  tensor1 lse({2});
  tensor2 other({2, 3});
  tensor1 other_lse({2});
  for (index i = 0; i < 6; ++i) out.data()[i] = nan;  // an empty part may hold anything
  for (index i = 0; i < 6; ++i) other.data()[i] = static_cast<float>(i) + 0.1F;
  lse(0) = lse(1) = minus_infinity;
  other_lse(0) = 3.25F;
  other_lse(1) = minus_infinity;
  other(1, 0) = nan;
  heed::merge_partials(out, lse, other, other_lse);
  for (index c = 0; c < 3; ++c) EXPECT_EQ(out(0, c), other(0, c));
  EXPECT_EQ(lse(0), 3.25F);
  for (index c = 0; c < 3; ++c) EXPECT_EQ(out(1, c), 0.0F);
  EXPECT_EQ(lse(1), minus_infinity);
  // And from the other side.
  other_lse(0) = minus_infinity;
  for (index i = 0; i < 6; ++i) other.data()[i] = nan;
  heed::merge_partials(out, lse, other, other_lse);
  for (index c = 0; c < 3; ++c) EXPECT_EQ(out(0, c), static_cast<float>(c) + 0.1F);
  EXPECT_EQ(lse(0), 3.25F);
}

TEST(Merge, ScoresFarApartDoNotOverflow) {
  heed::tensor<float, 2> out({2, 1});
  heed::tensor<float, 1> lse({2});
  heed::tensor<float, 2> other({2, 1});
  heed::tensor<float, 1> other_lse({2});
  out(0, 0) = out(1, 0) = 1.0F;
  other(0, 0) = other(1, 0) = 2.0F;
  lse(0) = 1e30F;
  other_lse(0) = -1e30F;
  lse(1) = -3e38F;
  other_lse(1) = -3e38F;
  heed::merge_partials(out, lse, other, other_lse);
  EXPECT_EQ(out(0, 0), 1.0F);
  EXPECT_EQ(lse(0), 1e30F);
  EXPECT_EQ(out(1, 0), 1.5F);
  EXPECT_EQ(lse(1), -3e38F);
}

TEST(Merge, NanPropagates) {
  heed::tensor<double, 2> out({2, 1});
  heed::tensor<double, 1> lse({2});
  auto other = out;
  auto other_lse = lse;
  out(0, 0) = oracle::not_a_number;  // an output of nonzero weight
  other_lse(1) = oracle::not_a_number;
  heed::merge_partials(out, lse, other, other_lse);
  EXPECT_TRUE(std::isnan(out(0, 0)));
  EXPECT_TRUE(std::isnan(out(1, 0)));
  EXPECT_TRUE(std::isnan(lse(1)));
}

TEST(Merge, ErrorsLeaveTheTargetsAlone) {
  heed::tensor<float, 3> out({2, 3, 4});
  heed::tensor<float, 2> lse({2, 3});
  const heed::tensor<float, 3> wide({2, 3, 5});
  const heed::tensor<float, 2> short_lse({2, 2});
  const auto expect_message = [&](const std::string& message, auto&& call) {
    out(1, 1, 1) = 5.0F;
    lse(1, 1) = 6.0F;
    try {
      call();
      ADD_FAILURE() << "no exception, expected: " << message;
    } catch (const heed::shape_error& error) {
      EXPECT_EQ(std::string(error.what()), message);
    }
    EXPECT_EQ(out(1, 1, 1), 5.0F);
    EXPECT_EQ(lse(1, 1), 6.0F);
  };
  expect_message("the other output has extents [1, 2, 3, 5], the output has [1, 2, 3, 4]",
                 [&] { heed::merge_partials(out, lse, wide, lse); });
  expect_message("log-sum-exp has extents [2, 2], q has rows [2, 3]",
                 [&] { heed::merge_partials(out, lse, out, short_lse); });
}

}  // namespace
