// SPDX-License-Identifier: MIT
// What no caller can mean is refused by name before anything is written: outputs over inputs,
// scales that are no numbers, scratch shared by two calls, counts that no memory holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "heed/attention.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;
using tensor4 = heed::tensor<float, 4>;

constexpr index largest = std::numeric_limits<index>::max();

template <class Error, class F>
void expect_refusal(const std::string& part, F&& f) {
  std::string message = "no exception";
  try {
    f();
  } catch (const Error& e) {
    message = e.what();
  } catch (const std::exception& e) {
    message = std::string("another exception: ") + e.what();
  }
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

tensor4 numbers(const std::array<index, 4>& extents, std::uint32_t seed) {
  tensor4 t(extents);
  for (index i = 0; i < t.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    t.data()[i] = static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F;
  }
  return t;
}

TEST(BadInput, OutputsOverInputsAreRefused) {
  for (const index n : {2, 40}) {
    const tensor4 q = numbers({1, 2, n, 16}, 1);
    const tensor4 k = numbers({1, 2, n, 16}, 2);
    const tensor4 v = numbers({1, 2, n, 16}, 3);
    tensor4 qq = q, kk = k, vv = v;
    expect_refusal<heed::shape_error>("out overlaps q",
                                      [&] { heed::attention_into(qq, qq, k, v); });
    expect_refusal<heed::shape_error>("out overlaps k",
                                      [&] { heed::attention_into(kk, q, kk, v); });
    expect_refusal<heed::shape_error>("out overlaps v",
                                      [&] { heed::naive_attention_into(vv, q, k, vv); });
    for (index i = 0; i < q.size(); ++i) {
      ASSERT_EQ(qq.data()[i], q.data()[i]);
      ASSERT_EQ(kk.data()[i], k.data()[i]);
      ASSERT_EQ(vv.data()[i], v.data()[i]);
    }
    // Columns of one packed matrix are no overlap: q, k, v and the result beside each other.
    heed::tensor<float, 2> packed({n, 64});
    const auto columns = [&](index at) {
      return heed::make_view(packed.data() + at, {n, 16}, {64, 1});
    };
    const auto head = [&](const tensor4& t) { return heed::as_view(t)[0][0]; };
    for (index i = 0; i < n; ++i) {
      for (index c = 0; c < 16; ++c) {
        packed(i, c) = q(0, 0, i, c);
        packed(i, 16 + c) = k(0, 0, i, c);
        packed(i, 32 + c) = v(0, 0, i, c);
      }
    }
    heed::attention_into(columns(48), columns(0), columns(16), columns(32));
    const auto want = heed::attention(head(q), head(k), head(v));
    for (index i = 0; i < n; ++i) {
      for (index c = 0; c < 16; ++c) EXPECT_EQ(packed(i, 48 + c), want(i, c));
    }
    expect_refusal<heed::shape_error>("stride of 0", [&] {
      heed::attention_into(heed::make_view(qq.data(), {n, 16}, {0, 1}), head(q), head(k), head(v));
    });
  }
}

TEST(BadInput, ScalesAreFinite) {
  const tensor4 q = numbers({1, 2, 40, 8}, 1);
  for (const double scale : {std::nan(""), static_cast<double>(INFINITY), -1e39}) {
    expect_refusal<heed::option_error>("scale",
                                       [&] { (void)heed::attention(q, q, q, {.scale = scale}); });
    heed::serial_executor exec;
    expect_refusal<heed::option_error>("scale", [&] {
      (void)heed::attention_recall(exec, q, q, heed::causal(), {.scale = scale});
    });
  }
}

TEST(BadInput, ScratchInUseIsRefused) {
  const tensor4 q = numbers({1, 2, 40, 8}, 1);
  heed::workspace scratch;
  heed::scratch_lease taken(&scratch);
  const heed::attention_options options{.scratch = &scratch};
  tensor4 out(q.extents());
  expect_refusal<heed::option_error>("in use by another call",
                                     [&] { heed::naive_attention_into(out, q, q, q, options); });
  const heed::tensor<index, 4> first({1, 1, 40, 1});
  expect_refusal<heed::option_error>("in use by another call", [&] {
    heed::selected_attention_into(out, q, q, q, first, 4, options);
  });
  expect_refusal<heed::option_error>("in use by another call",
                                     [&] { heed::attention_into(out, q, q, q, options); });
  const tensor4 few = numbers({1, 2, 3, 8}, 2);
  tensor4 few_out(few.extents());
  expect_refusal<heed::option_error>("in use by another call",
                                     [&] { heed::attention_into(few_out, few, q, q, options); });
  expect_refusal<heed::option_error>("in use by another call", [&] {
    (void)heed::attention(q, q, q, options,
                          heed::probability([](float p, heed::position) { return p; }));
  });
  // Sequences of few and of many queries: two kernels in one lease.
  const std::vector<index> starts{0, 3, 40};
  const auto ragged = [&] {
    return heed::ragged_attention(heed::as_view(q)[0], heed::as_view(q)[0], heed::as_view(q)[0],
                                  starts, starts, options);
  };
  expect_refusal<heed::option_error>("in use by another call", [&] { (void)ragged(); });
  for (index i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], 0.0F);
  for (index i = 0; i < few_out.size(); ++i) ASSERT_EQ(few_out.data()[i], 0.0F);
  {
    heed::workspace free;
    heed::attention_into(out, q, q, q, {.scratch = &free});
    heed::attention_into(out, q, q, q, {.scratch = &free});
  }
}

// Broadcast views are many rows and little memory: the scores would be too many.
TEST(BadInput, ScoresThatNoMemoryHoldsAreRefused) {
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  const heed::view<const float, 2> q(x, {index{1} << 33, 8}, {0, 1});
  const heed::view<const float, 2> k(x, {index{1} << 31, 8}, {0, 1});
  // Memory that is never touched: the call is refused before.
  const heed::view<float, 2> out(x + 8, {index{1} << 33, 8}, {8, 1});
  expect_refusal<heed::shape_error>("scratch", [&] { heed::naive_attention_into(out, q, k, k); });
}

TEST(BadInput, HugeBlocksAreOfAllKeys) {
  heed::serial_executor exec;
  const tensor4 q = numbers({1, 2, 30, 16}, 1);
  const tensor4 k = numbers({1, 1, 50, 16}, 2);
  const tensor4 v = numbers({1, 1, 50, 16}, 3);
  const heed::tensor<index, 4> first({1, 1, 30, 1});
  const auto all = heed::attention(q, k, v);
  for (const index block : {index{50}, index{1} << 40, index{1} << 61, index{1} << 62, largest}) {
    const auto out = heed::selected_attention(q, k, v, first, block);
    for (index i = 0; i < out.size(); ++i) EXPECT_NEAR(out.data()[i], all.data()[i], 1e-5);
    const auto own = heed::mixture_of_blocks(exec, q, k, {.count = 2, .block = block});
    EXPECT_EQ(own(0, 0, 3, 0), 0);
    EXPECT_EQ(own(0, 0, 3, 1), -1);
    heed::page_bounds<float> bounds({.capacity = 50, .head_dim = 16}, block);
    bounds.update(exec, k);
    EXPECT_EQ(bounds.pages(0), 1);
    EXPECT_EQ(heed::select_pages(exec, q, bounds, {.count = 2})(0, 0, 0, 0), 0);
    EXPECT_EQ(heed::selection_recall(exec, q, k, first, block)(0, 0), 1.0);
  }
}

TEST(BadInput, HugePatternsEndOrAreRefused) {
  heed::serial_executor exec;
  const tensor4 q = numbers({1, 1, 100, 8}, 1);
  const auto same = [&](const auto& mask, const auto& want) {
    const auto got = heed::attention(q, q, q, {}, mask);
    for (index i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got.data()[i], want.data()[i], 1e-5) << i;
    }
  };
  const auto causal = heed::attention(q, q, q, {}, heed::causal());
  const auto dense = heed::attention(q, q, q);
  for (const index huge : {index{1} << 30, index{1} << 40, index{1} << 62, largest}) {
    same(heed::fixed_pattern{.stride = huge, .summary = 0}, causal);
    const std::vector<std::vector<index>> lists{{0}};
    const heed::block_pattern whole({.queries = 100, .keys = 100, .query_block = huge}, lists);
    same(heed::blocks(whole), dense);
    const auto birds = heed::big_bird({.queries = 1000, .keys = 1000}, {.random = huge});
    EXPECT_EQ(birds.visible_blocks(), 64);
  }
  same(heed::dilated_window{.left = largest, .right = 0, .dilation = 2},
       heed::naive_attention(q, q, q, {}, [](heed::position p) {
         return p.key <= p.query && (p.query - p.key) % 2 == 0;
       }));
  const index half = index{1} << 32;
  expect_refusal<heed::shape_error>("more elements", [&] {
    const std::vector<std::vector<index>> none;
    heed::block_pattern({.batch = half, .heads = half, .queries = 128, .keys = 128}, none);
  });
  expect_refusal<heed::shape_error>("more elements", [&] {
    (void)heed::big_bird({.batch = half, .heads = half, .queries = 128, .keys = 128});
  });
  expect_refusal<heed::option_error>(
      "lsh has", [&] { (void)heed::lsh_buckets(exec, q, {.buckets = index{1} << 62}); });
  heed::tensor<index, 4> bucket({1, 1, 1, 100});
  bucket(0, 0, 0, 3) = 2'000'000'000;
  expect_refusal<heed::shape_error>(
      "names bucket 2000000000", [&] { (void)heed::lsh_attention(q, q, q, bucket, bucket, {}); });
  expect_refusal<heed::option_error>(
      "offset", [&] { (void)heed::top_k_keys(exec, q, q, {.causal = true, .offset = largest}); });
}

// As in attention: not causal unless wanted, by the same positions.
TEST(SelectionDefaults, AreThoseOfAttention) {
  heed::serial_executor exec;
  const tensor4 q = numbers({1, 1, 1, 16}, 1);
  const tensor4 k = numbers({1, 1, 256, 16}, 2);
  heed::contiguous_cache<float> cache({.capacity = 256, .head_dim = 16});
  cache.append(k, k);
  const auto chosen = heed::top_k_keys(exec, q, cache.keys(), {.count = 8});
  std::vector<std::pair<double, index>> scores;
  for (index j = 0; j < 256; ++j) {
    double s = 0;
    for (index c = 0; c < 16; ++c) s -= double(q(0, 0, 0, c)) * double(k(0, 0, j, c));
    scores.emplace_back(s, j);
  }
  std::sort(scores.begin(), scores.end());
  for (index n = 0; n < 8; ++n) {
    EXPECT_EQ(chosen(0, 0, 0, n), scores[static_cast<std::size_t>(n)].second);
  }
  const heed::tensor<float, 3> one({1, 1, 1}, [] {
    heed::owned_storage<float> s(1);
    s.data()[0] = 1;
    return s;
  }());
  EXPECT_EQ(heed::indexer_keys(exec, q, k, one, {.count = 1})(0, 0, 0, 0), chosen(0, 0, 0, 0));
  EXPECT_EQ(heed::attention_recall(exec, q, k, heed::causal())(0, 0),
            heed::attention_recall(exec, q, k, heed::causal(), {.causal = false})(0, 0));
  EXPECT_EQ(heed::top_k_keys(exec, q, k, {.count = 2, .causal = true})(0, 0, 0, 1), -1);
}

}  // namespace
