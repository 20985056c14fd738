// SPDX-License-Identifier: MIT
// Gradients of kernelised attention in linear time against the textbook pair by pair, those of
// cosFormer and Performer against differences of their forward forms, in double.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>

#include "heed/linear/kernelised/backward/linear_attention_backward.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"
#include "support/differences.hpp"

namespace {

using heed::index;
using support::expect_differences;
using numbers = heed::tensor<double, 4>;

numbers random_numbers(const std::array<index, 4>& extents, unsigned seed, double scale = 1) {
  numbers x(extents);
  std::mt19937 random(seed);
  for (index i = 0; i < x.size(); ++i) {
    x.data()[i] = scale * (static_cast<double>(random()) / 0x1p31 - 1);
  }
  return x;
}

struct problem {
  numbers q, k, v, d_out;
  problem(index heads, index kv_heads, index n, index m, index d, index dv)
      : q(random_numbers({2, heads, n, d}, 1, 2)),
        k(random_numbers({2, kv_heads, m, d}, 2, 2)),
        v(random_numbers({2, kv_heads, m, dv}, 3)),
        d_out(random_numbers({2, heads, n, dv}, 4)) {}

  [[nodiscard]] heed::linear_attention_backward_inputs<double> inputs() const {
    return {heed::as_view(q), heed::as_view(k), heed::as_view(v), heed::as_view(d_out)};
  }
};
struct results {
  numbers q, k, v;
  explicit results(const problem& x) : q(x.q.extents()), k(x.k.extents()), v(x.v.extents()) {}
  [[nodiscard]] heed::linear_attention_gradients<double> views() {
    return {heed::as_view(q), heed::as_view(k), heed::as_view(v)};
  }
};

double error(const numbers& got, const numbers& want) {
  double size = 1e-30;
  double worst = 0;
  for (index i = 0; i < want.size(); ++i) {
    const double e = std::abs(got.data()[i] - want.data()[i]);
    if (!std::isfinite(e)) return INFINITY;
    size = std::max(size, std::abs(want.data()[i]));
    worst = std::max(worst, e);
  }
  return worst / size;
}

TEST(KernelisedBackward, AgreesWithTheTextbook) {
  for (const bool causal : {false, true}) {
    for (const bool normalise : {false, true}) {
      for (const index n : {2, 9, 130}) {  // of one token the normalised gradient is 0
        const problem x(4, 2, n, causal ? n : n + 3, 5, 3);
        heed::linear_options options;
        options.causal = causal;
        options.normalise = normalise;
        results want(x), got(x);
        heed::naive_linear_attention_backward(x.inputs(), want.views(), options);
        heed::thread_pool pool(3);
        heed::linear_attention_backward(pool, x.inputs(), got.views(), options);
        EXPECT_LE(error(got.q, want.q), 1e-12) << n << causal << normalise;
        EXPECT_LE(error(got.k, want.k), 1e-12) << n << causal << normalise;
        EXPECT_LE(error(got.v, want.v), 1e-12) << n << causal << normalise;
      }
    }
  }
}

TEST(CosformerBackward, AgreesWithDifferences) {
  for (const bool causal : {false, true}) {
    problem x(2, 1, 7, causal ? 7 : 9, 3, 2);
    const heed::cosformer_options options{
        .causal = causal, .eps = 1e-3, .horizon = 40, .first_position = 5};
    results g(x);
    heed::cosformer_attention_backward(x.inputs(), g.views(), options);
    const auto loss = [&] {
      return support::dot(heed::cosformer_attention(x.q, x.k, x.v, options), x.d_out);
    };
    expect_differences("q", x.q, g.q, loss);
    expect_differences("k", x.k, g.k, loss);
    expect_differences("v", x.v, g.v, loss);
  }
}

// A row whose features are all 0 has output 0, and so have its gradients.
TEST(CosformerBackward, RowsWithoutAWeight) {
  problem x(1, 1, 5, 5, 3, 2);
  for (index c = 0; c < 3; ++c) {
    x.q(0, 0, 2, c) = -1;
    x.k(1, 0, 0, c) = -1;
  }
  results g(x);
  heed::cosformer_attention_backward(x.inputs(), g.views(), {.eps = 0});
  for (const numbers* y : {&g.q, &g.k, &g.v}) {
    for (index i = 0; i < y->size(); ++i) EXPECT_TRUE(std::isfinite(y->data()[i]));
  }
  for (index c = 0; c < 3; ++c) EXPECT_EQ(g.q(0, 0, 2, c), 0);
}

TEST(PerformerBackward, AgreesWithDifferences) {
  const heed::random_directions<double> w(3, 8, 7);
  for (const bool causal : {false, true}) {
    problem x(4, 2, 6, causal ? 6 : 8, 3, 2);
    const heed::performer_options options{.causal = causal, .scale = 0.5};
    results g(x);
    heed::thread_pool pool(2);
    heed::performer_attention_backward(pool, x.inputs(), g.views(), w, options);
    const auto loss = [&] {
      return support::dot(heed::performer_attention(x.q, x.k, x.v, w, options), x.d_out);
    };
    expect_differences("q", x.q, g.q, loss);
    expect_differences("k", x.k, g.k, loss);
    expect_differences("v", x.v, g.v, loss);
  }
}

TEST(KernelisedBackward, EmptyAndRefused) {
  const problem none(2, 1, 0, 0, 3, 2);
  results g(none);
  heed::linear_attention_backward(none.inputs(), g.views());
  heed::cosformer_attention_backward(none.inputs(), g.views());
  const problem x(2, 1, 4, 5, 3, 2);
  results h(x);
  EXPECT_THROW(heed::linear_attention_backward(x.inputs(), h.views()), heed::shape_error);
  EXPECT_THROW(
      heed::cosformer_attention_backward(x.inputs(), h.views(), {.causal = false, .horizon = 3}),
      heed::option_error);
  const heed::random_directions<double> w(4, 8, 7);
  EXPECT_THROW(heed::performer_attention_backward(x.inputs(), h.views(), w, {.causal = false}),
               heed::shape_error);
}

}  // namespace
