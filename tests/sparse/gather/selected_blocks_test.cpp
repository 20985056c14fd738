// SPDX-License-Identifier: MIT
// Selections of whole blocks, which run block by block: the textbook in double under the mask that
// the selection is, and the row by row way beside it.
#include <gtest/gtest.h>

#include <limits>
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
using selections::shapes;

/// Shapes whose rows are many enough a block.
shapes whole_blocks() {
  shapes s;
  s.queries = 131;
  s.keys = 150;
  s.choices = 3;
  s.block = 70;
  return s;
}

/// Runs the call in a way given by name. Whether the public function would run block by block.
enum class way { by_block, by_row };
template <class Out, class Q, class K, class V, class S, class... M>
bool run_as(way w, Out&& out, const Q& q, const K& k, const V& v, const S& selection, index block,
            const heed::attention_options& options, const M&... mods) {
  heed::serial_executor serial;
  const auto call = heed::api::open_call(std::forward<Out>(out), q, k, v, options, mods...);
  const auto choices = heed::detail::selection4(selection);
  if (w == way::by_block) {
    heed::detail::run_selected_blocks(serial, call, choices, block);
  } else {
    heed::detail::run_selected_rows(serial, call, choices, block);
  }
  return heed::detail::by_blocks(call, choices, block);
}

/// Both ways agree with the textbook; by block, any number of threads gives the same bits.
template <class T, class... M>
void check(const shapes& s, const heed::attention_options& options, const M&... mods) {
  const auto q = oracle::random_tensor<T, 4>({s.batch, s.heads, s.queries, 19}, 1);
  const auto k = oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, 19}, 2);
  const auto v = oracle::random_tensor<T, 4>({s.batch, s.kv_heads, s.keys, s.value_dim}, 3);
  const auto selection = random_selection(s, 4);
  const auto want = oracle::expected(q, k, v, options, mods..., selections::selected(selection, s));
  heed::tensor<T, 4> by_block({s.batch, s.heads, s.queries, s.value_dim});
  for (const way w : {way::by_row, way::by_block}) {
    SCOPED_TRACE(w == way::by_row ? "by row" : "by block");
    heed::tensor<T, 4> out({s.batch, s.heads, s.queries, s.value_dim});
    heed::tensor<heed::accumulate_t<T>, 3> lse({s.batch, s.heads, s.queries});
    EXPECT_TRUE(run_as(w, heed::into(out, lse), q, k, v, selection, s.block, options, mods...));
    EXPECT_EQ(oracle::difference<T>(out, want.output, want.sizes), "");
    EXPECT_EQ(oracle::lse_difference<T>(lse, want.log_sum_exp, want.sizes), "");
    if (w == way::by_block) by_block = out;
  }
  for (const index threads : {1, 2, 7}) {
    heed::thread_pool pool(threads);
    EXPECT_TRUE(oracle::same_bits(
        by_block, heed::selected_attention(pool, q, k, v, selection, s.block, options, mods...)));
  }
}

template <class T>
class SelectedBlocks : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(SelectedBlocks, scalars);

TYPED_TEST(SelectedBlocks, AreAttentionUnderTheirMask) {
  for (const index selection_heads : {1, 2, 4}) {
    for (const index block : {70, 75, 150, 200}) {
      shapes s = whole_blocks();
      s.selection_heads = selection_heads;
      s.block = block;
      check<TypeParam>(s, {.scale = 0.5, .offset = 19}, heed::causal());
    }
  }
}

TYPED_TEST(SelectedBlocks, MoreRowsThanATaskHolds) {
  shapes s = whole_blocks();
  s.batch = s.selection_batch = 1;
  s.heads = 2;
  s.queries = 451;
  check<TypeParam>(s, {.offset = -70}, heed::causal());
}

// All stages in the order they act, wherever rows and keys lie in a task.
TEST(SelectedBlocksOptions, AllApply) {
  const std::vector<float> sinks{0.5F, -1.0F, 2.0F, 0.0F};
  const auto bias = oracle::random_tensor<float, 4>({2, 4, 131, 150}, 5);
  const std::vector<index> lengths{150, 97};
  const auto by_position = [](auto x, const position& p) {
    return x + decltype(x)(0.1) * decltype(x)((3 * p.key + 2 * p.row + p.query + p.head) % 5);
  };
  for (const index selection_heads : {1, 2, 4}) {
    shapes s = whole_blocks();
    s.selection_heads = selection_heads;
    check<float>(s, {.offset = 19}, heed::causal(), heed::softcap(3.0), heed::alibi(), by_position,
                 heed::sink(sinks), heed::bias(bias), heed::lengths(lengths));
  }
}

TEST(SelectedBlocksOptions, DropoutAndWindow) {
  shapes s = whole_blocks();
  s.selection_heads = 4;
  const std::vector<index> offsets{11, 30};
  check<double>(s, {.offset = offsets}, heed::window{.left = 70, .right = 13},
                heed::dropout{0.25, 7});
}

// Parts of all rows do not fit at once: several passes over the rows of one head, or over heads.
TEST(SelectedBlocksCalls, SeveralPasses) {
  for (const index queries : {30, 301}) {
    shapes s = whole_blocks();
    s.batch = s.selection_batch = 1;
    s.heads = 3;
    s.kv_heads = s.selection_heads = 1;
    s.queries = queries;
    s.keys = 100;
    s.block = 100;
    s.choices = 8;
    s.value_dim = 4000;
    const index row_bytes = s.choices * s.value_dim * 4;
    using plan = heed::tuning<heed::kernel::selected_blocks, float>;
    ASSERT_GT(s.heads * s.queries * row_bytes, plan::cached_bytes);
    check<float>(s, {});
  }
}

TEST(SelectedBlocksCalls, ChoicesThatNameNothing) {
  shapes s = whole_blocks();
  s.batch = s.selection_batch = 1;
  const auto q = oracle::random_tensor<float, 4>({1, 4, 131, 8}, 1);
  const auto k = oracle::random_tensor<float, 4>({1, 2, 150, 8}, 2);
  auto v = oracle::random_tensor<float, 4>({1, 2, 150, 8}, 3);
  // Of the two heads of a group no row chooses block 1, whose values are not numbers.
  for (index j = 40; j < 80; ++j) v(0, 0, j, j % 8) = std::numeric_limits<float>::quiet_NaN();
  auto selection = random_selection(s, 4);
  for (index i = 0; i < s.queries; ++i) {
    for (index c = 0; c < s.choices; ++c) {
      index& x = selection(0, 0, i, c);
      if (x == 1 || i % 7 == 0) x = i % 2 == 0 ? -1 : -200;
    }
  }
  // The second head's rows choose one block, over and over.
  for (index i = 0; i < s.queries; ++i) {
    for (index c = 0; c < s.choices; ++c) selection(0, 1, i, c) = 3;
  }
  const auto want =
      oracle::expected(q, k, v, heed::attention_options{}, selections::selected(selection, s));
  heed::tensor<float, 4> out({1, 4, 131, 8});
  heed::tensor<float, 3> lse({1, 4, 131});
  ASSERT_TRUE(run_as(way::by_block, heed::into(out, lse), q, k, v, selection, s.block, {}));
  EXPECT_EQ(oracle::difference<float>(out, want.output, want.sizes), "");
  EXPECT_EQ(oracle::lse_difference<float>(lse, want.log_sum_exp, want.sizes), "");
  for (index i = 0; i < s.queries; i += 7) {
    EXPECT_EQ(out(0, 1, i, 5), 0.0F);
    EXPECT_EQ(lse(0, 1, i), -std::numeric_limits<float>::infinity());
  }
  const heed::tensor<index, 4> none({1, 1, 131, 0});
  run_as(way::by_block, heed::into(out, lse), q, k, v, none, s.block, {});
  EXPECT_EQ(oracle::largest(out), 0);
  EXPECT_EQ(lse(0, 3, 130), -std::numeric_limits<float>::infinity());
}

// A NaN that is chosen and seen shows; one behind a mask does not.
TEST(SelectedBlocksCalls, HiddenNumbersStayHidden) {
  shapes s = whole_blocks();
  const auto q = oracle::random_tensor<float, 4>({2, 4, 131, 8}, 1);
  auto k = oracle::random_tensor<float, 4>({2, 2, 150, 8}, 2);
  auto v = oracle::random_tensor<float, 4>({2, 2, 150, 8}, 3);
  k(0, 0, 101, 3) = std::numeric_limits<float>::quiet_NaN();
  v(0, 1, 61, 2) = std::numeric_limits<float>::infinity();
  v(1, 1, 149, 7) = std::numeric_limits<float>::quiet_NaN();
  const auto selection = random_selection(s, 4);
  const auto want = oracle::expected(q, k, v, heed::attention_options{}, heed::causal(),
                                     selections::selected(selection, s));
  heed::tensor<float, 4> out({2, 4, 131, 8});
  ASSERT_TRUE(run_as(way::by_block, out, q, k, v, selection, s.block, {}, heed::causal()));
  EXPECT_EQ(oracle::difference<float>(out, want.output, want.sizes), "");
}

TEST(SelectedBlocksCalls, AnyStrides) {
  shapes s = whole_blocks();
  s.selection_heads = 1;
  const auto q = oracle::random_tensor<float, 4>({2, 4, 131, 19}, 1);
  const auto k = oracle::random_tensor<float, 4>({2, 2, 150, 19}, 2);
  const auto v = oracle::random_tensor<float, 4>({2, 2, 150, 21}, 3);
  const auto selection = random_selection(s, 4);
  const auto want = oracle::expected(q, k, v, heed::attention_options{}, heed::causal(),
                                     selections::selected(selection, s));
  for (const oracle::layout& l :
       {oracle::layout{{0, 1, 3, 2}, {0, 0, 0, 0}, {}, 0},
        oracle::layout{{2, 0, 1, 3}, {0, 0, 0, 0}, {false, false, true, false}, 3},
        oracle::layout{{1, 0, 2, 3}, {0, 0, 5, 1}, {true, false, false, true}, 1}}) {
    const oracle::laid_out<float> q_there(q, l);
    const oracle::laid_out<float> k_there(k, l);
    const oracle::laid_out<float> v_there(v, l);
    oracle::laid_out<float> out({2, 4, 131, 21}, l);
    ASSERT_TRUE(run_as(way::by_block, out.view(), q_there.cview(), k_there.cview(), v_there.cview(),
                       selection, s.block, {}, heed::causal()));
    EXPECT_EQ(oracle::difference<float>(out.view(), want.output, want.sizes), "");
    EXPECT_EQ(out.overwritten(), 0);
  }
}

/// Pages of 11 tokens, sequences of lengths of their own.
struct paged_source {
  using key_scalar = heed::bfloat16;
  using value_scalar = heed::bfloat16;
  const heed::tensor<heed::bfloat16, 4>& k;
  const heed::tensor<heed::bfloat16, 4>& v;
  std::vector<index> lengths;

  [[nodiscard]] index batch() const { return k.extent(0); }
  [[nodiscard]] index kv_heads() const { return k.extent(1); }
  [[nodiscard]] index head_dim() const { return k.extent(3); }
  [[nodiscard]] index value_dim() const { return v.extent(3); }
  [[nodiscard]] index length(index b) const { return lengths[static_cast<std::size_t>(b)]; }
  [[nodiscard]] heed::row_run<heed::bfloat16> keys(index b, index h, index j) const {
    return {&k(b, h, j, 0), k.extent(3), 11 - j % 11};
  }
  [[nodiscard]] heed::row_run<heed::bfloat16> values(index b, index h, index j) const {
    return {&v(b, h, j, 0), v.extent(3), 11 - j % 11};
  }
  [[nodiscard]] static index key_channel_stride() { return 1; }
  [[nodiscard]] static index value_channel_stride() { return 1; }
};

TEST(SelectedBlocksCalls, OfACacheWhoseSequencesHaveTheirOwnLengths) {
  shapes s = whole_blocks();
  s.selection_batch = 1;
  s.queries = 61;
  auto k = oracle::random_tensor<heed::bfloat16, 4>({2, 2, 150, 16}, 2);
  const auto v = oracle::random_tensor<heed::bfloat16, 4>({2, 2, 150, 16}, 3);
  const auto q = oracle::random_tensor<heed::bfloat16, 4>({2, 4, 61, 16}, 1);
  const std::vector<index> lengths{150, 87};
  const auto selection = random_selection(s, 4);
  const std::vector<index> offsets{150 - 61, 87 - 61};
  const heed::attention_options options{.offset = offsets};
  const auto want = oracle::expected(q, k, v, options, heed::causal(), heed::lengths(lengths),
                                     selections::selected(selection, s));
  for (index j = 87; j < 150; ++j) k(1, 0, j, 3) = heed::bfloat16(oracle::not_a_number);
  const paged_source source{k, v, lengths};
  const auto got = heed::selected_decode(q, source, selection, s.block, {}, heed::causal());
  EXPECT_EQ(oracle::difference<heed::bfloat16>(got, want.output, want.sizes), "");
}

}  // namespace
