// SPDX-License-Identifier: MIT
// Longformer with a dilation of each head: the textbook under the same mask in double.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "heed/attention.hpp"
#include "heed/sparse.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;

TEST(Longformer, HeadsHaveTheirOwnDilation) {
  const index n = 301, d = 16;
  heed::tensor<float, 3> q({4, n, d}), k({2, n, d}), v({2, n, d});
  heed::tensor<double, 3> qd({4, n, d}), kd({2, n, d}), vd({2, n, d});
  std::mt19937 engine(1);
  std::normal_distribution<float> normal;
  const auto fill = [&](auto& x, auto& wide) {
    for (index i = 0; i < x.size(); ++i) {
      x.data()[i] = normal(engine);
      wide.data()[i] = static_cast<double>(x.data()[i]);
    }
  };
  fill(q, qd);
  fill(k, kd);
  fill(v, vd);
  const index dilations[] = {1, 2, 5, 40};
  const auto out = heed::attention(q, k, v, {}, heed::longformer(6, 3, dilations));
  const auto plain = [&](heed::position p) {
    const index distance = std::abs(p.query - p.key);
    const index step = dilations[p.head];
    return p.key < 3 || p.query < 3 || (distance <= 6 * step && distance % step == 0);
  };
  const auto want = heed::naive_attention(qd, kd, vd, {}, plain);
  // A score of d products, a weighted mean of values up to 5: eps of each.
  const double tolerance = 5.0 * (d + 20) * double(std::numeric_limits<float>::epsilon());
  for (index i = 0; i < out.size(); ++i) ASSERT_NEAR(out.data()[i], want.data()[i], tolerance) << i;
}

TEST(Longformer, DilationsAreOneAHead) {
  const heed::tensor<float, 3> q({3, 4, 8});
  const index two[] = {1, 2};
  const index zero[] = {1, 0, 1};
  EXPECT_THROW((void)heed::attention(q, q, q, {}, heed::longformer(1, 0, two)), heed::shape_error);
  EXPECT_THROW((void)heed::attention(q, q, q, {}, heed::longformer(1, 0, zero)),
               heed::option_error);
}

}  // namespace
