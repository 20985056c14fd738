// SPDX-License-Identifier: MIT
// Attention to selected blocks: the textbook in double under the mask that the selection is.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/sparse.hpp"
#include "support/scalars.hpp"
#include "support/selection_oracle.hpp"

namespace {

using heed::index;
using heed::position;
using selections::random_selection;
using selections::selected;
using selections::shapes;

template <class T>
class Selected : public testing::Test {
 protected:
  template <class... M>
  static void check(const shapes& s, const heed::attention_options& options, const M&... mods) {
    selections::with_selection(s, [&](const auto& tokens, const auto& gather) {
      masked_gather::check<T>(tokens, gather, options, mods...);
    });
  }
};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(Selected, scalars);

TYPED_TEST(Selected, IsAttentionUnderItsMask) {
  for (const index selection_heads : {1, 2, 4}) {
    for (const index block : {1, 2, 16, 17, 64, 83, 200}) {
      shapes s;
      s.selection_heads = selection_heads;
      s.block = block;
      s.choices = block == 1 ? 20 : 5;
      this->check(s, {});
      s.selection_batch = 1;
      this->check(s, {.scale = 0.5, .offset = 46}, heed::causal());
    }
  }
}

TEST(SelectedGather, ItsOptionsAllApply) {
  for (const index selection_heads : {1, 4}) {
    shapes s;
    s.selection_heads = selection_heads;
    selections::with_selection(s, [](const auto&... x) { masked_gather::check_options(x...); });
  }
}

TEST(SelectedGather, EveryScalar) {
  selections::with_selection({}, [](const auto&... x) { masked_gather::check_scalars(x...); });
}

TYPED_TEST(Selected, AnyCountOfRowsKeysAndChoices) {
  for (const index queries : {0, 1, 3}) {
    for (const index keys : {1, 16, 1200}) {
      for (const index choices : {0, 1, 90}) {
        shapes s;
        s.queries = queries;
        s.keys = keys;
        s.choices = choices;
        this->check(s, {});
      }
    }
  }
}

// So many keys that the rows meet them in several key ranges, and so many choices that a row's do not
// fit one block of the kernel.
TYPED_TEST(Selected, KeysOfManyBands) {
  shapes s;
  s.batch = 1;
  s.queries = 2;
  s.keys = 20'000;
  s.selection_batch = 1;
  s.block = 1;
  s.choices = 1'700;
  const heed::detail::row_major_cut<heed::accumulate_t<TypeParam>> cut(
      s.keys, 1, s.choices, 40 * static_cast<index>(sizeof(TypeParam)), 1, 2, 1, 1);
  ASSERT_LT(cut.key_blocks, s.keys);
  for (const index heads : {1, 3}) {
    s.heads = heads;
    s.kv_heads = 1;
    s.selection_heads = 1;
    this->check(s, {.offset = 15'000}, heed::causal());
  }
}

// Channels that are not next to each other are copied first.
TYPED_TEST(Selected, ChannelsApart) {
  for (const index block : {1, 3, 16}) {
    shapes s;
    s.block = block;
    s.choices = 20;
    const auto q = oracle::random_tensor<TypeParam, 4>({2, 4, 37, 19}, 1);
    const auto k = oracle::random_tensor<TypeParam, 4>({2, 2, 83, 19}, 2);
    const auto v = oracle::random_tensor<TypeParam, 4>({2, 2, 83, 21}, 3);
    const oracle::laid_out<TypeParam> k_turned(k, {.order = {3, 1, 0, 2}});
    const oracle::laid_out<TypeParam> v_turned(v, {.order = {0, 3, 1, 2}});
    const auto selection = random_selection(s, 4);
    const auto want = oracle::expected(q, k, v, {}, selected(selection, s));
    EXPECT_EQ(oracle::difference<TypeParam>(
                  heed::selected_attention(q, k_turned.cview(), v_turned.cview(), selection, block),
                  want.output, want.sizes),
              "");
  }
}

// Values that nobody chose, or that a mask hides, may hold anything.
TYPED_TEST(Selected, HiddenValuesDoNotMatter) {
  shapes s;
  s.block = 1;
  s.choices = 20;
  const auto q = oracle::random_tensor<TypeParam, 4>({2, 4, 37, 19}, 1);
  const auto k = oracle::random_tensor<TypeParam, 4>({2, 2, 83, 19}, 2);
  const auto v = oracle::random_tensor<TypeParam, 4>({2, 2, 83, 21}, 3);
  auto spoilt = v;
  oracle::each_index({2, 2, 83, 21}, [&](index b, index h, index j, index c) {
    if (j >= 60) spoilt(b, h, j, c) = static_cast<TypeParam>(oracle::not_a_number);
  });
  const auto hidden = [](const position& p) { return p.key < 60; };
  const auto selection = random_selection(s, 4);
  const auto want = oracle::expected(q, k, v, {}, hidden, selected(selection, s));
  EXPECT_EQ(oracle::difference<TypeParam>(
                heed::selected_attention(q, k, spoilt, selection, 1, {}, hidden), want.output,
                want.sizes),
            "");
}

// Few choices are sorted, many marked; such as ascend already are taken as they come.
TYPED_TEST(Selected, TheSameBitsInAnyOrderOfChoices) {
  for (const index choices : {5, 20}) {
    shapes s;
    s.block = 1;
    s.choices = choices;
    const auto q = oracle::random_tensor<TypeParam, 4>({2, 4, 37, 19}, 1);
    const auto k = oracle::random_tensor<TypeParam, 4>({2, 2, 83, 19}, 2);
    const auto selection = random_selection(s, 4);
    auto once = selections::ascending(selection);
    for (index at = 0; at < once.size(); at += choices) {
      index* const row = once.data() + at;
      std::fill(std::unique(row, row + choices), row + choices, index{-1});
    }
    const auto want = heed::selected_attention(q, k, k, selection, 1);
    EXPECT_TRUE(oracle::same_bits(want, heed::selected_attention(q, k, k, once, 1)));
    // Without a sign none is the largest number of 64 bits.
    heed::tensor<std::uint64_t, 4> unsigned_ones(once.extents());
    std::transform(once.data(), once.data() + once.size(), unsigned_ones.data(),
                   [](index x) { return static_cast<std::uint64_t>(x); });
    EXPECT_TRUE(oracle::same_bits(want, heed::selected_attention(q, k, k, unsigned_ones, 1)));
  }
}

TEST(SelectedErrors, NameTheSelection) {
  const shapes s;
  const auto q = oracle::random_tensor<float, 4>({2, 4, 37, 8}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 83, 8}, 2);
  auto selection = random_selection(s, 4);
  EXPECT_THROW((void)heed::selected_attention(q, k, k, selection, 0), heed::option_error);
  EXPECT_THROW((void)heed::selected_attention(q, k, k, selection, 20), heed::shape_error);
  const heed::tensor<index, 4> short_one({2, 2, 36, 5});
  EXPECT_THROW((void)heed::selected_attention(q, k, k, short_one, 16), heed::shape_error);
  const heed::tensor<index, 4> three_heads({2, 3, 37, 5});
  EXPECT_THROW((void)heed::selected_attention(q, k, k, three_heads, 16), heed::shape_error);
}

}  // namespace
