// SPDX-License-Identifier: MIT
// Values near the largest number: where the mean is a number, so is the output, in every kernel that
// sums values before it divides.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/sparse.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;
using tensor4 = heed::tensor<float, 4>;

tensor4 numbers(const std::array<index, 4>& extents, std::uint32_t seed, float size = 1) {
  tensor4 t(extents);
  for (index i = 0; i < t.size(); ++i) {
    seed = seed * 1664525U + 1013904223U;
    t.data()[i] = size * (static_cast<float>(seed >> 8U) / 8388608.0F - 1.0F);
  }
  return t;
}

constexpr float huge = 3e38F;

/// Values near the largest number, of one sign a channel: any sum of two overflows.
tensor4 huge_values(const std::array<index, 4>& extents) {
  tensor4 v = numbers(extents, 3);
  for (index i = 0; i < v.size(); ++i) {
    const float sign = i % extents[3] % 2 == 0 ? 1.0F : -1.0F;
    v.data()[i] = sign * huge * (0.9F + 0.1F * v.data()[i]);
  }
  return v;
}

/// The textbook in double; `visible(i, j)`.
template <class Visible>
double row(const tensor4& q, const tensor4& k, const tensor4& v, index h, index i, index c,
           const Visible& visible) {
  double sum = 0;
  double out = 0;
  const index kv = h / (q.extent(1) / k.extent(1));
  for (index j = 0; j < k.extent(2); ++j) {
    if (!visible(i, j)) continue;
    double s = 0;
    for (index d = 0; d < q.extent(3); ++d) {
      s += static_cast<double>(q(0, h, i, d)) * static_cast<double>(k(0, kv, j, d));
    }
    const double p = std::exp(s / std::sqrt(static_cast<double>(q.extent(3))));
    sum += p;
    out += p * static_cast<double>(v(0, kv, j, c));
  }
  return out / sum;
}

template <class Visible>
void expect_close(const tensor4& out, const tensor4& q, const tensor4& k, const tensor4& v,
                  const Visible& visible, const char* what) {
  for (index h = 0; h < q.extent(1); ++h) {
    for (index i = 0; i < q.extent(2); ++i) {
      for (index c = 0; c < v.extent(3); ++c) {
        const double want = row(q, k, v, h, i, c, visible);
        ASSERT_NEAR(static_cast<double>(out(0, h, i, c)) / static_cast<double>(huge),
                    want / static_cast<double>(huge), 2e-6)
            << what << ", row " << i << ", channel " << c;
      }
    }
  }
}

const auto all = [](index, index) { return true; };
const auto past = [](index i, index j) { return j <= i; };

TEST(ValueRange, ManyAndFewQueries) {
  for (const index n : {60, 3}) {
    for (const index m : {70, 3000}) {
      const tensor4 q = numbers({1, 2, n, 16}, 1, 3), k = numbers({1, 1, m, 16}, 2, 3),
                    v = huge_values({1, 1, m, 10});
      expect_close(heed::attention(q, k, v), q, k, v, all, "attention");
      expect_close(heed::attention(q, k, v, {}, heed::causal()), q, k, v, past, "causal");
    }
  }
}

TEST(ValueRange, OtherRowsKeepTheirBits) {
  const index n = 60, m = 300;
  const tensor4 q = numbers({1, 1, n, 16}, 1), k = numbers({1, 1, m, 16}, 2);
  tensor4 v = numbers({1, 1, m, 8}, 3);
  const auto small = heed::attention(q, k, v, {}, heed::causal());
  for (index j = 40; j < m; ++j) v(0, 0, j, 5) = huge;
  const auto large = heed::attention(q, k, v, {}, heed::causal());
  for (index i = 0; i < 40; ++i) {
    for (index c = 0; c < 8; ++c) ASSERT_EQ(small(0, 0, i, c), large(0, 0, i, c));
  }
  for (index i = 40; i < n; ++i) ASSERT_TRUE(std::isfinite(large(0, 0, i, 5)));
}

TEST(ValueRange, WhatIsInfiniteStays) {
  for (const index n : {60, 3}) {
    const index m = 300;
    const tensor4 q = numbers({1, 1, n, 16}, 1), k = numbers({1, 1, m, 16}, 2);
    tensor4 v = huge_values({1, 1, m, 4});
    v(0, 0, 7, 1) = std::numeric_limits<float>::infinity();
    v(0, 0, 7, 2) = std::numeric_limits<float>::quiet_NaN();
    const auto out = heed::attention(q, k, v);
    for (index i = 0; i < n; ++i) {
      ASSERT_TRUE(std::isnan(out(0, 0, i, 2)));
      ASSERT_EQ(out(0, 0, i, 1), std::numeric_limits<float>::infinity());
      ASSERT_TRUE(std::isfinite(out(0, 0, i, 0)));
    }
  }
}

TEST(ValueRange, CachesAndSelections) {
  const index n = 40, m = 90;
  const tensor4 q = numbers({1, 2, n, 16}, 1), k = numbers({1, 1, m, 16}, 2),
                v = huge_values({1, 1, m, 10});
  heed::contiguous_cache<float> cache({.capacity = m, .head_dim = 16, .value_dim = 10});
  cache.append(k, v);
  const auto last = [&](index i, index j) { return j <= m - n + i; };
  expect_close(heed::decode(q, cache, {}, heed::causal()), q, k, v, last, "decode");
  for (const index block : {1, 32}) {
    heed::tensor<index, 4> chosen({1, 1, n, 2});
    for (index i = 0; i < n; ++i) {
      chosen(0, 0, i, 0) = 0;
      chosen(0, 0, i, 1) = 1 + i % 2;
    }
    const auto selected = [&](index i, index j) {
      return j / block == 0 || j / block == 1 + i % 2;
    };
    expect_close(heed::selected_attention(q, k, v, chosen, block), q, k, v, selected, "selected");
  }
}

}  // namespace
