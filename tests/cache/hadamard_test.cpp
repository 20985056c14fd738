// SPDX-License-Identifier: MIT
// The Hadamard rotation: by its definition, its own inverse, and what it does to int4 scores of
// keys with an outlier channel.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <initializer_list>
#include <utility>

#include "heed/cache.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

TEST(Hadamard, IsTheMatrixOfTheDefinitionAndItsOwnInverse) {
  for (const index n : {1, 2, 7, 64, 96}) {
    const auto x = oracle::random_tensor<float, 3>({2, 5, n}, static_cast<unsigned>(n));
    auto y = x;
    heed::hadamard_rotate(y);
    for (index h = 0; h < 2; ++h) {
      for (index i = 0; i < 5; ++i) {
        for (index first = 0; first < n;) {
          const auto block =
              static_cast<index>(std::bit_floor(static_cast<std::size_t>(n - first)));
          for (index r = 0; r < block; ++r) {
            double sum = 0;
            for (index c = 0; c < block; ++c) {
              const bool odd = std::popcount(static_cast<std::size_t>(r & c)) % 2 != 0;
              sum += (odd ? -1 : 1) * static_cast<double>(x(h, i, first + c));
            }
            // 7 rounds of numbers below 4 sqrt(block).
            EXPECT_NEAR(y(h, i, first + r), sum / std::sqrt(static_cast<double>(block)), 2e-5);
          }
          first += block;
        }
      }
    }
    heed::hadamard_rotate(y);
    for (index i = 0; i < x.size(); ++i) EXPECT_NEAR(y.data()[i], x.data()[i], 2e-5);
  }
  heed::tensor<float, 2> wide({1, 1025});
  EXPECT_THROW(heed::hadamard_rotate(wide), heed::shape_error);
}

/// Root mean square error of the scores q.k where keys have been 4-bit codes.
double score_error(heed::tensor<float, 3> q, heed::tensor<float, 3> k, bool rotated) {
  const auto exact_q = q;
  const auto exact_k = k;
  if (rotated) {
    heed::hadamard_rotate(q);
    heed::hadamard_rotate(k);
  }
  const index tokens = k.extent(1);
  const index dim = k.extent(2);
  heed::int4_cache cache({.capacity = tokens, .head_dim = dim});
  cache.append(k, k);
  heed::tensor<float, 2> wide({tokens, dim});
  cache.widen_keys(0, 0, {0, tokens}, wide.data());
  double square = 0;
  for (index i = 0; i < q.extent(1); ++i) {
    for (index j = 0; j < tokens; ++j) {
      double error = 0;
      for (index c = 0; c < dim; ++c) {
        error += static_cast<double>(q(0, i, c)) * wide(j, c) -
                 static_cast<double>(exact_q(0, i, c)) * exact_k(0, j, c);
      }
      square += error * error;
    }
  }
  return std::sqrt(square);
}

TEST(Hadamard, CutsTheErrorOfFourBitScoresOfKeysWithOutlierChannels) {
  const auto q = oracle::random_tensor<float, 3>({1, 20, 128}, 1);
  const auto ratio = [&](std::initializer_list<std::pair<index, float>> outliers) {
    auto k = oracle::random_tensor<float, 3>({1, 50, 128}, 2);
    for (index j = 0; j < 50; ++j) {
      for (const auto& [channel, size] : outliers) k(0, j, channel) += size;
    }
    return score_error(q, k, false) / score_error(q, k, true);
  };
  // Of either sign, as keys have them.
  EXPECT_GE(ratio({{17, 60.0F}, {90, -45.0F}}), 4);
  EXPECT_GE(ratio({{17, 200.0F}, {90, -150.0F}, {91, 80.0F}}), 4);
  // With one alone, every small number is rounded to the row's least: half of its range at most.
  EXPECT_GE(ratio({{17, 200.0F}}), 3);
}

}  // namespace
