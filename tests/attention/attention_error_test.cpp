// SPDX-License-Identifier: MIT
// Every message of the checks of exact attention, and that nothing was written by then.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;
using oracle::extents4;
using tensor4 = heed::tensor<float, 4>;

/// A call that fits, of which each test spoils one thing.
class AttentionError : public testing::Test {
 protected:
  tensor4 q{extents4{2, 6, 5, 8}};
  tensor4 k{extents4{2, 3, 7, 8}};
  tensor4 v{extents4{2, 3, 7, 4}};
  tensor4 out{extents4{2, 6, 5, 4}};
  heed::tensor<float, 3> lse{{2, 6, 5}};

  /// Every form refuses with the message; neither result has been touched.
  template <class Error = heed::shape_error, class... M>
  void refuses(const std::string& message, const heed::attention_options& options,
               const M&... modifiers) {
    std::fill_n(out.data(), out.size(), 7.0F);
    std::fill_n(lse.data(), lse.size(), 7.0F);
    const auto expect = [&](const char* form, auto&& call) {
      try {
        call();
        ADD_FAILURE() << form << ": no exception, expected: " << message;
      } catch (const Error& error) {
        EXPECT_EQ(std::string(error.what()), message) << form;
      }
      for (index i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], 7.0F) << form;
      for (index i = 0; i < lse.size(); ++i) ASSERT_EQ(lse.data()[i], 7.0F) << form;
    };
    expect("attention_into",
           [&] { heed::attention_into(heed::into(out, lse), q, k, v, options, modifiers...); });
    expect("naive_attention_into", [&] {
      heed::naive_attention_into(heed::into(out, lse), q, k, v, options, modifiers...);
    });
    expect("attention", [&] { (void)heed::attention(q, k, v, options, modifiers...); });
    expect("attention_with_lse",
           [&] { (void)heed::attention_with_lse(q, k, v, options, modifiers...); });
    expect("naive_attention_stages",
           [&] { (void)heed::naive_attention_stages(q, k, v, options, modifiers...); });
  }
};

TEST_F(AttentionError, TheCallFits) { EXPECT_NO_THROW((void)heed::attention(q, k, v)); }

TEST_F(AttentionError, BatchOfKeys) {
  k = tensor4({1, 3, 7, 8});
  refuses("k has batch 1, q has 2", {});
}
TEST_F(AttentionError, BatchOfValues) {
  v = tensor4({3, 3, 7, 4});
  refuses("v has batch 3, q has 2", {});
}
TEST_F(AttentionError, HeadsOfValues) {
  v = tensor4({2, 6, 7, 4});
  refuses("v has heads 6, k has 3", {});
}
TEST_F(AttentionError, TokensOfValues) {
  v = tensor4({2, 3, 6, 4});
  refuses("v has tokens 6, k has 7", {});
}
TEST_F(AttentionError, HeadDimOfKeys) {
  k = tensor4({2, 3, 7, 9});
  refuses("k has head dim 9, q has 8", {});
}
TEST_F(AttentionError, HeadsThatDoNotDivide) {
  k = tensor4({2, 4, 7, 8});
  v = tensor4({2, 4, 7, 4});
  refuses("q has 6 heads, not a multiple of k's 4", {});
  k = tensor4({2, 0, 7, 8});
  v = tensor4({2, 0, 7, 4});
  refuses("q has 6 heads, not a multiple of k's 0", {});
}

TEST_F(AttentionError, OffsetsPerBatch) {
  const std::vector<index> three = {1, 2, 3};
  refuses("offset has entries 3, the call batch has 2", {.offset = three});
  const std::vector<index> none;
  refuses("offset has entries 0, the call batch has 2", {.offset = none});
}

TEST_F(AttentionError, Lengths) {
  const std::vector<index> one = {7};
  refuses("lengths has entries 1, the call batch has 2", {}, heed::lengths(one));
  const std::vector<index> long_one = {7, 8};
  refuses("lengths has an entry 8, k has 7 tokens", {}, heed::lengths(long_one));
  const std::vector<index> negative = {-1, 7};
  refuses("lengths has an entry -1, k has 7 tokens", {}, heed::lengths(negative));
}

TEST_F(AttentionError, Documents) {
  const std::vector<index> five(5);
  const std::vector<index> seven(7);
  const std::vector<index> ten(10);
  const std::vector<index> eight(8);
  refuses("documents: query ids has 8 entries, needs 5 (tokens) or 10 (batch x tokens)", {},
          heed::documents(eight, seven));
  refuses("documents: key ids has 8 entries, needs 7 (tokens) or 14 (batch x tokens)", {},
          heed::documents(ten, eight));
  refuses("documents: key ids has 5 entries, needs 7 (tokens) or 14 (batch x tokens)", {},
          heed::documents(five));
  EXPECT_NO_THROW((void)heed::attention(q, k, v, {}, heed::documents(five, seven)));
}

TEST_F(AttentionError, Bias) {
  const char* scores = ", the scores have [2, 6, 5, 7] (batch, heads, queries, keys)";
  const auto check = [&](const auto& values, const std::string& extents) {
    refuses("bias has extents " + extents + scores, {}, heed::bias(values));
  };
  check(heed::tensor<float, 1>({8}), "[1, 1, 1, 8]");
  check(heed::tensor<double, 2>({4, 7}), "[1, 1, 4, 7]");
  check(heed::tensor<float, 3>({3, 5, 7}), "[1, 3, 5, 7]");
  check(tensor4({3, 6, 5, 7}), "[3, 6, 5, 7]");
  check(tensor4({2, 6, 0, 7}), "[2, 6, 0, 7]");
}

TEST_F(AttentionError, KeepMask) {
  const heed::tensor<bool, 2> mask({5, 8});
  refuses(
      "mask has extents [1, 1, 5, 8], the scores have [2, 6, 5, 7] (batch, heads, queries, keys)",
      {}, heed::keep(mask));
}

// A mask inside a combination is checked as one alone.
TEST_F(AttentionError, MasksInCombinations) {
  const std::vector<index> one = {7};
  const heed::tensor<bool, 1> mask({9});
  const std::string lengths = "lengths has entries 1, the call batch has 2";
  const std::string keep =
      "mask has extents [1, 1, 1, 9], the scores have [2, 6, 5, 7] (batch, heads, queries, keys)";
  const auto user = [](const heed::position& p) { return p.key > 0; };
  refuses(lengths, {}, heed::causal() && heed::lengths(one));
  refuses(lengths, {}, heed::lengths(one) || user);
  refuses(keep, {}, !(user && heed::keep(mask)));
}

TEST_F(AttentionError, Sink) {
  const std::vector<float> three = {1, 2, 3};
  refuses("sink has 3 logits, q has 6 heads", {}, heed::sink(three));
}

TEST_F(AttentionError, AlibiSlopes) {
  const std::vector<double> three = {1, 2, 3};
  refuses("alibi has 3 slopes, q has 6 heads", {}, heed::alibi(three));
}

TEST_F(AttentionError, Dropout) {
  refuses<heed::option_error>("dropout probability is 1.000000, must be in [0, 1)", {},
                              heed::dropout{.probability = 1});
  refuses<heed::option_error>("dropout probability is -0.500000, must be in [0, 1)", {},
                              heed::dropout{.probability = -0.5});
  refuses<heed::option_error>("dropout probability is nan, must be in [0, 1)", {},
                              heed::dropout{.probability = oracle::not_a_number});
}

TEST_F(AttentionError, Softcap) {
  refuses<heed::option_error>("softcap is 0.000000, must be positive", {}, heed::softcap(0));
  refuses<heed::option_error>("softcap is -3.000000, must be positive", {}, heed::softcap(-3));
  refuses<heed::option_error>("softcap is nan, must be positive", {},
                              heed::softcap(oracle::not_a_number));
}

// The first modifier may fit and a later one not.
TEST_F(AttentionError, ALaterModifier) {
  const std::vector<float> three = {1, 2, 3};
  refuses("sink has 3 logits, q has 6 heads", {}, heed::causal(), heed::softcap(3),
          heed::sink(three));
}

TEST_F(AttentionError, ExtentsOfTheResults) {
  const auto expect = [](const std::string& message, auto&& call) {
    try {
      call();
      ADD_FAILURE() << "no exception, expected: " << message;
    } catch (const heed::shape_error& error) {
      EXPECT_EQ(std::string(error.what()), message);
    }
  };
  for (const extents4& wrong :
       {extents4{1, 6, 5, 4}, {2, 3, 5, 4}, {2, 6, 4, 4}, {2, 6, 5, 8}, {2, 6, 5, 0}}) {
    tensor4 target(wrong);
    const std::string message =
        "out has extents " + heed::format_extents(wrong) + ", the result has [2, 6, 5, 4]";
    expect(message, [&] { heed::attention_into(target, q, k, v); });
    expect(message, [&] { heed::naive_attention_into(target, q, k, v); });
    heed::thread_pool pool(2);
    expect(message, [&] { heed::attention_into(pool, heed::into(target, lse), q, k, v); });
    EXPECT_EQ(oracle::largest(target), 0.0);
  }
  for (const std::array<index, 3>& wrong :
       {std::array<index, 3>{1, 6, 5}, {2, 3, 5}, {2, 6, 4}, {2, 6, 0}}) {
    heed::tensor<float, 3> target(wrong);
    expect("log-sum-exp has extents " + heed::format_extents(wrong) + ", q has rows [2, 6, 5]",
           [&] { heed::attention_into(heed::into(out, target), q, k, v); });
  }
}

// Ranks 2 and 3 speak of the same axes.
TEST(AttentionErrorOfRank, TwoAndThree) {
  const heed::tensor<float, 2> q({5, 8});
  const heed::tensor<float, 2> k({7, 6});
  try {
    (void)heed::attention(q, k, k);
    ADD_FAILURE();
  } catch (const heed::shape_error& error) {
    EXPECT_STREQ(error.what(), "k has head dim 6, q has 8");
  }
  const heed::tensor<float, 3> q3({5, 2, 8});
  const heed::tensor<float, 3> k3({2, 7, 8});
  try {
    (void)heed::attention(q3, k3, k3);
    ADD_FAILURE();
  } catch (const heed::shape_error& error) {
    EXPECT_STREQ(error.what(), "q has 5 heads, not a multiple of k's 2");
  }
}

}  // namespace
