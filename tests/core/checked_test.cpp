// SPDX-License-Identifier: MIT
// Numbers from the caller that do not fit: products of extents, views over memory, scratch, one
// workspace for two calls, outputs that share memory.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "heed/cache.hpp"
#include "heed/core.hpp"
#include "heed/cost.hpp"
#include "heed/rotary.hpp"
#include "heed/tensor.hpp"
#include "heed/tensor/overlap.hpp"

namespace {

using heed::index;

constexpr index largest = std::numeric_limits<index>::max();

/// The message of the Error that f throws; another exception, or none, says so.
template <class Error, class F>
std::string refusal(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  } catch (const std::exception& e) {
    return std::string("another exception: ") + e.what();
  }
  return "no exception";
}
template <class Error, class F>
void expect_refusal(const std::string& part, F&& f) {
  const std::string message = refusal<Error>(f);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(CheckedProduct, IsExactUpToTheLargestIndex) {
  static_assert(heed::saturating_product(3, 5) == 15);
  static_assert(heed::saturating_product(largest, 1) == largest);
  static_assert(heed::saturating_product(index{1} << 31, index{1} << 31) == index{1} << 62);
  static_assert(heed::saturating_product(index{1} << 32, index{1} << 31) == largest);
  static_assert(heed::saturating_product(largest, largest) == largest);
  static_assert(heed::saturating_product(0, largest) == 0);
  static_assert(heed::saturating_product(largest, 0) == 0);
  static_assert(heed::saturating_product(index{1} << 30, index{1} << 30, 2, 1) == index{1} << 61);
  static_assert(heed::saturating_sum(largest - 1, 1) == largest);
  static_assert(heed::saturating_sum(largest, 7) == largest);
  // Beside a product in long double, around the edge.
  for (index a : {index{3}, index{1} << 20, (index{1} << 31) - 1, (index{1} << 40) + 7}) {
    for (index d = -3; d <= 3; ++d) {
      const index b = largest / a + d;
      const bool fits = b <= largest / a;
      EXPECT_EQ(heed::saturating_product(a, b), fits ? a * b : largest) << a << " " << b;
    }
  }
}

TEST(CheckedProduct, CeilDivKnowsHugeDivisors) {
  static_assert(heed::ceil_div(50, largest) == 1);
  static_assert(heed::ceil_div(0, largest) == 0);
  static_assert(heed::ceil_div(largest, 2) == largest / 2 + 1);
  for (index a = -9; a < 10; ++a) {
    for (index b = 1; b < 5; ++b) {
      EXPECT_EQ(heed::ceil_div(a, b),
                static_cast<index>(std::ceil(static_cast<double>(a) / static_cast<double>(b))));
    }
  }
}

TEST(CheckedProduct, TensorsAndViewsRefuseWhatDoesNotFit) {
  using tensor2 = heed::tensor<float, 2>;
  using tensor4 = heed::tensor<float, 4>;
  const index half = index{1} << 32;
  expect_refusal<heed::shape_error>("[4294967296, 4294967296]", [&] { tensor2({half, half}); });
  expect_refusal<heed::shape_error>("more elements", [] { tensor4({1, 1, index{1} << 62, 64}); });
  // The elements fit, their bytes do not.
  expect_refusal<heed::shape_error>("more elements", [] { tensor2({1, index{1} << 62}); });
  // So do the extents beside one of 0: loops run over some of them.
  expect_refusal<heed::shape_error>("more elements", [&] { tensor4({half, half, 0, 8}); });
  expect_refusal<heed::shape_error>("more elements", [&] {
    tensor2({index{1} << 33, index{1} << 31}, heed::owned_storage<float>(10));
  });
  expect_refusal<heed::shape_error>("storage", [] { heed::owned_storage<float>(-1); });
  expect_refusal<heed::shape_error>("storage", [] { heed::owned_storage<float>(largest - 3); });
  float x[8] = {};
  using view2 = heed::view<float, 2>;
  expect_refusal<heed::shape_error>("more elements", [&] { view2(x, {half, half}); });
  expect_refusal<heed::shape_error>("more elements", [&] { view2(x, {half, half}, {0, 0}); });
  expect_refusal<heed::shape_error>("further than memory",
                                    [&] { view2(x, {2, 3}, {largest / 2, 1}); });
  expect_refusal<heed::shape_error>(
      "further than memory", [&] { view2(x, {3, 1}, {std::numeric_limits<index>::min(), 1}); });
  // Broadcast: many elements, little memory.
  EXPECT_EQ(view2(x, {half, 8}, {0, 1}).size(), half * 8);
  EXPECT_EQ((heed::tensor<float, 2>({0, 5}).size()), 0);
}

TEST(CheckedProduct, TensorElementsAreWhereViewsSay) {
  heed::tensor<int, 3> t({3, 4, 5});
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<int>(i);
  const auto v = heed::as_view(t);
  for (index a = 0; a < 3; ++a) {
    for (index b = 0; b < 4; ++b) {
      for (index c = 0; c < 5; ++c) EXPECT_EQ(t(a, b, c), v(a, b, c));
    }
  }
}

TEST(CheckedView, OverASpanStaysInside) {
  std::vector<float> memory(24);
  const std::span<float> all(memory);
  const heed::view<float, 2> whole(all, {4, 6});
  EXPECT_EQ(&whole(3, 5), &memory[23]);
  const heed::view<const float, 2> columns(all, {6, 4}, {1, 6});
  EXPECT_EQ(&columns(5, 3), &memory[23]);
  EXPECT_EQ(heed::make_view(all, {2, 3, 4}).size(), 24);
  EXPECT_EQ(heed::make_view(all, {2, 3}, {12, 4}).stride(0), 12);
  EXPECT_EQ((heed::view<float, 2>(all, {0, 100}).size()), 0);
  using view2 = heed::view<float, 2>;
  expect_refusal<heed::shape_error>("its memory has 24", [&] { view2(all, {5, 5}); });
  expect_refusal<heed::shape_error>("its memory has 24", [&] { view2(all, {4, 6}, {7, 1}); });
  expect_refusal<heed::shape_error>("from -6 to", [&] { view2(all, {2, 2}, {-6, 1}); });
  expect_refusal<heed::shape_error>("its memory has 0", [] { view2(std::span<float>(), {1, 1}); });
}

TEST(CheckedCache, NamesWhatIsMissingOrTooMuch) {
  using cache = heed::contiguous_cache<float>;
  expect_refusal<heed::shape_error>("head_dim", [] { cache({.capacity = 10}); });
  expect_refusal<heed::shape_error>("more elements",
                                    [] { cache({.capacity = index{1} << 62, .head_dim = 64}); });
  expect_refusal<heed::shape_error>("negative", [] { cache({.capacity = -1, .head_dim = 4}); });
  using paged = heed::paged_cache<float>;
  expect_refusal<heed::shape_error>("head_dim", [] { paged({.pages = 10}); });
  expect_refusal<heed::shape_error>("more elements", [] {
    paged({.pages = index{1} << 31, .page_size = index{1} << 31, .head_dim = 64});
  });
  expect_refusal<heed::shape_error>("more elements",
                                    [] { paged({.pages = 4, .head_dim = largest / 100}); });
  expect_refusal<heed::shape_error>("page table", [] {
    paged({.sequences = index{1} << 31, .pages = index{1} << 31, .page_size = 1, .head_dim = 1});
  });
  expect_refusal<heed::shape_error>("max_tokens",
                                    [] { paged({.pages = 1, .head_dim = 1, .max_tokens = -1}); });
  using rolling = heed::rolling_cache<float>;
  expect_refusal<heed::shape_error>("head_dim", [] { rolling({.window = 10}); });
  expect_refusal<heed::shape_error>("more elements",
                                    [] { rolling({.window = largest, .head_dim = 1}); });
  expect_refusal<heed::shape_error>("head_dim", [] { heed::quantised_cache<8>({.capacity = 10}); });
  expect_refusal<heed::shape_error>("more elements", [] {
    heed::latent_cache<float>({.capacity = 1, .latent_dim = largest, .rope_dim = largest});
  });
}

TEST(CheckedScratch, SaturatesAndIsRefused) {
  heed::arena a;
  (void)a.allocate<float>(index{1} << 33, index{1} << 31);
  EXPECT_EQ(a.used(), heed::workspace::most_bytes);
  (void)a.allocate<double>(7);
  EXPECT_EQ(a.used(), heed::workspace::most_bytes);
  heed::arena b;
  (void)b.allocate<double>(3, 5);
  EXPECT_EQ(b.used(), 128U);
  (void)b.allocate<double>(-3);
  EXPECT_EQ(b.used(), 128U);
  heed::workspace w(100);
  expect_refusal<heed::shape_error>("scratch", [&] { (void)w.reserve(a.used()); });
  EXPECT_EQ(w.size(), 100U);
  heed::scratch_lease lease(nullptr);
  expect_refusal<heed::shape_error>("scratch",
                                    [&] { (void)lease.reserve(std::size_t{1} << 40, largest); });
}

TEST(CheckedScratch, ServesOneCallAtATime) {
  heed::workspace w;
  {
    heed::scratch_lease first(&w);
    EXPECT_NE(first.reserve(64), nullptr);
    EXPECT_EQ(&first.memory(), &w);
    std::string message;
    std::thread([&] {
      message = refusal<heed::option_error>([&] { heed::scratch_lease second(&w); });
    }).join();
    EXPECT_NE(message.find("in use by another call"), std::string::npos) << message;
    heed::scratch_lease own(nullptr);  // others are not concerned
    EXPECT_NE(&own.memory(), &w);
  }
  heed::scratch_lease later(&w);
  EXPECT_EQ(later.memory().size(), 64U);
}

TEST(Overlap, OfUsualLayouts) {
  std::vector<float> memory(4096);
  float* const m = memory.data();
  using view2 = heed::view<float, 2>;
  using view3 = heed::view<float, 3>;
  const view2 a(m, {8, 16});
  EXPECT_TRUE(heed::may_overlap(a, a));
  EXPECT_TRUE(heed::may_overlap(a, view2(m + 127, {8, 16})));
  EXPECT_FALSE(heed::may_overlap(a, view2(m + 128, {8, 16})));
  EXPECT_FALSE(heed::may_overlap(a, view2(m, {0, 16})));
  // Columns of one matrix of 64, row-major and column-major.
  EXPECT_FALSE(heed::may_overlap(view2(m, {20, 16}, {64, 1}), view2(m + 16, {20, 16}, {64, 1})));
  EXPECT_TRUE(heed::may_overlap(view2(m, {20, 16}, {64, 1}), view2(m + 15, {20, 16}, {64, 1})));
  EXPECT_FALSE(heed::may_overlap(view2(m, {20, 16}, {1, 64}), view2(m + 20, {20, 16}, {1, 64})));
  // Heads interleaved with those of another tensor, and rows of each head, behind and before.
  const view3 q(m, {4, 20, 8}, {32, 128, 1});
  EXPECT_FALSE(heed::may_overlap(q, view3(m + 8, {4, 20, 8}, {32, 128, 1})));
  const view3 early(m, {4, 10, 8}, {160, 8, 1});
  const view3 late(m + 80, {4, 10, 8}, {160, 8, 1});
  EXPECT_FALSE(heed::may_overlap(early, late));
  EXPECT_FALSE(heed::may_overlap(late, early));
  EXPECT_TRUE(heed::may_overlap(early, view3(m + 79, {4, 10, 8}, {160, 8, 1})));
  // Backwards.
  EXPECT_TRUE(heed::may_overlap(view2(m + 100, {10, 4}, {-10, 1}), view2(m, {2, 4}, {10, 1})));
  EXPECT_FALSE(heed::may_overlap(view2(m + 104, {10, 4}, {-10, 1}), view2(m, {10, 4}, {10, 1})));
  expect_refusal<heed::shape_error>("out overlaps k",
                                    [&] { heed::require_apart("out", a, "k", a); });
  expect_refusal<heed::shape_error>(
      "stride of 0", [&] { heed::require_distinct("out", view2(m, {2, 3}, {0, 1})); });
  heed::require_distinct("out", view2(m, {1, 3}, {0, 1}));
}

// Whatever has an element in common is found: all pairs of elements of random small layouts.
TEST(Overlap, IsNeverMissed) {
  std::vector<float> memory(400);
  std::uint32_t seed = 1;
  const auto draw = [&seed](index n) {
    seed = seed * 1664525U + 1013904223U;
    return static_cast<index>(seed >> 8U) % n;
  };
  using view3 = heed::view<float, 3>;
  const auto make = [&] {
    const std::array<index, 3> e{1 + draw(3), 1 + draw(3), 1 + draw(4)};
    const std::array<index, 3> s{draw(25) - 12, draw(25) - 12, draw(13) - 6};
    return view3(memory.data() + 150 + draw(60), e, s);
  };
  index met = 0;
  for (int n = 0; n < 20000; ++n) {
    const view3 a = make();
    const view3 b = make();
    std::vector<char> of_a(memory.size(), 0);
    const auto each = [&](const view3& v, const auto& f) {
      for (index i = 0; i < v.extent(0); ++i) {
        for (index j = 0; j < v.extent(1); ++j) {
          for (index k = 0; k < v.extent(2); ++k) {
            f(of_a[static_cast<std::size_t>(&v(i, j, k) - memory.data())]);
          }
        }
      }
    };
    bool common = false;
    each(a, [](char& x) { x = 1; });
    each(b, [&](const char& x) { common = common || x != 0; });
    met += common ? 1 : 0;
    if (common) {
      ASSERT_TRUE(heed::may_overlap(a, b)) << n;
    }
  }
  EXPECT_GT(met, 1000);
}

TEST(CheckedRotary, FrequenciesAreFinite) {
  using heed::rotary_embedding;
  constexpr auto layout = heed::rotary_layout::half_split;
  const auto refused = [&](const heed::rotary_scaling& s) {
    expect_refusal<heed::option_error>("must be",
                                       [&] { rotary_embedding(layout, 64, {.scaling = s}); });
  };
  refused(heed::linear_scaling{.factor = 1e-310});
  refused(heed::ntk_scaling{.factor = 1e300});
  refused(heed::ntk_scaling{.factor = 1e-320});
  refused(heed::yarn_scaling{.factor = 1e-315});
  refused(heed::yarn_scaling{.magnitude = std::numeric_limits<double>::infinity()});
  refused(heed::yarn_scaling{.magnitude = std::nan("")});
  refused(heed::llama3_scaling{.factor = 1e-310});
  expect_refusal<heed::option_error>("frequency of pair 1",
                                     [&] { rotary_embedding(layout, {1.0, std::nan("")}); });
  expect_refusal<heed::option_error>("magnitude", [&] {
    rotary_embedding(layout, {1.0}, std::numeric_limits<double>::infinity());
  });
  expect_refusal<heed::shape_error>("more elements", [&] {
    (void)heed::make_rotary_tables<float>(rotary_embedding(layout, 8), index{1} << 62);
  });
  const rotary_embedding extreme(layout, 128, {.scaling = heed::ntk_scaling{1e6}});
  for (const double f : extreme.frequencies()) EXPECT_TRUE(std::isfinite(f));
}

TEST(CheckedCost, ValuesHaveTheKeysChannelsUnlessGiven) {
  const heed::cost::model m{.layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 64};
  EXPECT_EQ(heed::cost::kv_cache_bytes(m, 10, 2), 2.0 * 2 * 10 * 2 * 64 * 2);
}

}  // namespace
