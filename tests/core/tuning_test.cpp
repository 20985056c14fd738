// SPDX-License-Identifier: MIT
// A program that overrides sizes of kernels gets the same results, within rounding.
#undef HEED_COMPILED  // heed::compiled has the sizes of heed's own

#include <gtest/gtest.h>

#include <heed/attention.hpp>
#include <heed/sparse.hpp>
#include <limits>

template <>
struct heed::tuning<heed::kernel::tiled, float> : heed::kernel::tiled::sizes<float> {
  static constexpr heed::index keys = 32;
  static constexpr heed::index groups_per_task = 1;
  static constexpr heed::index resident_bytes = 0;
};
template <>
struct heed::tuning<heed::kernel::split_kv, float> : heed::kernel::split_kv::sizes<float> {
  static constexpr heed::index keys = 32;
  static constexpr heed::index split = 64;
};
template <>
struct heed::tuning<heed::kernel::selected_rows, float>
    : heed::kernel::selected_rows::sizes<float> {
  static constexpr heed::index key_bytes = 0;
  static constexpr heed::index fewest_keys = 3;
};
// Block by block whatever the shape.
template <>
struct heed::tuning<heed::kernel::selected_blocks, double>
    : heed::kernel::selected_blocks::sizes<double> {
  static constexpr heed::index fewest_rows = 0;
  static constexpr heed::index start_of_head = -1'000'000;
  static constexpr heed::index visit = 1'000'000;
};

namespace {

using heed::index;

static_assert(heed::kernel::tile_plan<float>::keys == 32);
static_assert(heed::kernel::tile_plan<double>::keys == 128);
static_assert(heed::kernel::split_plan<float>::split == 64);

constexpr index tokens = 300;
constexpr index channels = 24;

template <class T>
heed::tensor<T, 4> numbers(index heads, index rows, unsigned seed) {
  heed::tensor<T, 4> x({1, heads, rows, channels});
  for (index i = 0; i < x.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    x.data()[i] = static_cast<T>(static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F);
  }
  return x;
}

/// Values below 1, each a weighted mean over at most `tokens` keys.
template <class T>
void expect_near(const heed::tensor<T, 4>& a, const heed::tensor<T, 4>& b) {
  const double bound = 4.0 * static_cast<double>(tokens + channels) *
                       static_cast<double>(std::numeric_limits<T>::epsilon());
  ASSERT_EQ(a.size(), b.size());
  for (index i = 0; i < a.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(a.data()[i]), static_cast<double>(b.data()[i]), bound) << i;
  }
}

TEST(Tuning, TiledAndSplit) {
  const auto k = numbers<float>(2, tokens, 2);
  const auto v = numbers<float>(2, tokens, 3);
  for (const index rows : {index{1}, index{3}, tokens}) {
    const auto q = numbers<float>(4, rows, 1);
    const heed::attention_options options{.offset = tokens - rows};
    expect_near(heed::attention(q, k, v, options, heed::causal()),
                heed::naive_attention(q, k, v, options, heed::causal()));
  }
}

/// Every row selects each third block.
template <class T>
void selected(index block) {
  const auto q = numbers<T>(4, tokens, 1);
  const auto k = numbers<T>(2, tokens, 2);
  const auto v = numbers<T>(2, tokens, 3);
  const index blocks = heed::ceil_div(tokens, block);
  heed::tensor<index, 4> list({1, 1, tokens, heed::ceil_div(blocks, index{3})});
  for (index i = 0; i < list.size(); ++i) list.data()[i] = i % list.extent(3) * 3;
  const auto selected = [block](heed::position p) { return p.key / block % 3 == 0; };
  expect_near(heed::selected_attention(q, k, v, list, block, {}, heed::causal()),
              heed::naive_attention(q, k, v, {}, heed::causal(), selected));
}

TEST(Tuning, SelectedRows) { selected<float>(1); }
TEST(Tuning, SelectedBlocks) { selected<double>(4); }

}  // namespace
