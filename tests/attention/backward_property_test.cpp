// SPDX-License-Identifier: MIT
// The backward pass by tiles against the textbook one in double, over random shapes and options.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <span>
#include <vector>

#include "heed/attention/backward/attention_backward.hpp"
#include "heed/attention/backward/naive_attention_backward.hpp"
#include "heed/attention/naive.hpp"
#include "heed/parallel.hpp"
#include "heed/score.hpp"
#include "heed/sparse/pattern/block_mask.hpp"
#include "heed/tensor.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;

class draw {
 public:
  explicit draw(unsigned seed) : random_(seed) {}

  [[nodiscard]] index number(index from, index to) {
    return from + static_cast<index>(random_() % static_cast<unsigned>(to - from + 1));
  }
  [[nodiscard]] bool coin() { return number(0, 1) == 1; }
  /// Extents about the kernel's tiles (24 queries, 48 keys), and 0 and 1.
  [[nodiscard]] index tokens() {
    static constexpr std::array<index, 14> all{0,  1,  2,  23, 24, 25,  47,
                                               48, 49, 71, 96, 97, 150, 260};
    return all[static_cast<std::size_t>(number(0, std::ssize(all) - 1))];
  }
  template <class T, int R>
  [[nodiscard]] heed::tensor<T, R> tensor(
      const std::array<index, static_cast<std::size_t>(R)>& extents) {
    return oracle::random_tensor<T, R>(extents, static_cast<unsigned>(random_()));
  }

 private:
  std::mt19937 random_;
};

template <class T, int R>
heed::tensor<double, R> wide(const heed::tensor<T, R>& x) {
  heed::tensor<double, R> y(x.extents());
  for (index i = 0; i < x.size(); ++i) y.data()[i] = static_cast<double>(x.data()[i]);
  return y;
}

struct problem {
  heed::tensor<float, 4> q, k, v, d_out;
  heed::tensor<float, 3> d_lse;

  problem(draw& d, index batch, index queries, index keys) {
    const index kv_heads = d.number(1, 2);
    const index heads = kv_heads * d.number(1, 3);
    const index head_dim = d.number(1, 20);
    const index value_dim = d.number(1, 20);
    q = d.tensor<float, 4>({batch, heads, queries, head_dim});
    k = d.tensor<float, 4>({batch, kv_heads, keys, head_dim});
    v = d.tensor<float, 4>({batch, kv_heads, keys, value_dim});
    d_out = d.tensor<float, 4>({batch, heads, queries, value_dim});
    d_lse = d.tensor<float, 3>({batch, heads, queries});
  }
};

/// Errors relative to the largest number expected: sums of at most a thousand terms of its size,
/// and probabilities that are off by eps times the scores (below 20), err by less than 1e-4 of it.
void expect_close(const char* name, const heed::tensor<float, 4>& got,
                  const heed::tensor<double, 4>& want) {
  double size = 1e-3;
  for (index i = 0; i < want.size(); ++i) size = std::max(size, std::abs(want.data()[i]));
  for (index i = 0; i < want.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(got.data()[i]), want.data()[i], 1e-4 * size)
        << name << " at " << i;
  }
}

/// Tiles in float on 1, 2 and 4 threads, and the textbook in double.
template <class... M>
void expect_textbook(const problem& x, const heed::attention_options& options,
                     const M&... modifiers) {
  const auto q = wide(x.q);
  const auto k = wide(x.k);
  const auto v = wide(x.v);
  const auto d_out = wide(x.d_out);
  const auto d_lse = wide(x.d_lse);
  const auto forward = heed::naive_attention_with_lse(q, k, v, options, modifiers...);
  const auto want = heed::naive_attention_backward(q, k, v, forward, heed::cotangents(d_out, d_lse),
                                                   options, modifiers...);
  heed::tensor<float, 4> out(forward.output.extents());
  heed::tensor<float, 3> lse(x.d_lse.extents());
  for (index i = 0; i < out.size(); ++i) {
    out.data()[i] = static_cast<float>(forward.output.data()[i]);
  }
  for (index i = 0; i < lse.size(); ++i) {
    lse.data()[i] = static_cast<float>(forward.log_sum_exp.data()[i]);
  }
  heed::thread_pool one(1), two(2), four(4);
  const auto run = [&](auto& exec) {
    return heed::attention_backward(exec, x.q, x.k, x.v, heed::into(out, lse),
                                    heed::cotangents(x.d_out, x.d_lse), options, modifiers...);
  };
  const auto got = run(one);
  expect_close("dq", got.query, want.query);
  expect_close("dk", got.key, want.key);
  expect_close("dv", got.value, want.value);
  for (auto* pool : {&two, &four}) {
    const auto again = run(*pool);
    EXPECT_TRUE(oracle::same_bits(again.query, got.query));
    EXPECT_TRUE(oracle::same_bits(again.key, got.key));
    EXPECT_TRUE(oracle::same_bits(again.value, got.value));
  }
}

// Windows (causal ones among them), offsets, ragged lengths, documents, softcap and dropout at
// once, each of them at times without effect: one instantiation. Rows that see nothing are among
// them.
TEST(BackwardProperty, MasksAndOptions) {
  for (unsigned seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    draw d(seed);
    const index batch = d.number(1, 3);
    const index queries = d.tokens();
    const index keys = d.tokens();
    const problem x(d, batch, queries, keys);
    heed::window window;
    if (d.coin()) window.left = d.number(0, 60);
    if (d.coin()) window.right = d.coin() ? 0 : d.number(0, 60);
    std::vector<index> offset, length, ids;
    for (index b = 0; b < batch; ++b) {
      offset.push_back(d.number(-40, 40));
      length.push_back(d.coin() ? keys : d.number(0, keys));
    }
    const index document = d.coin() ? 1000 : d.number(1, 60);
    for (index t = 0; t < std::max(queries, keys); ++t) ids.push_back(t / document);
    const auto all = std::span<const index>(ids);
    heed::attention_options options;
    if (d.coin()) options.scale = 0.7;
    options.offset = offset;
    const heed::documents documents(all.first(static_cast<std::size_t>(queries)),
                                    all.first(static_cast<std::size_t>(keys)));
    const heed::softcap cap(d.coin() ? 2.0 : 30.0);
    const heed::dropout drop{d.coin() ? 0.0 : 0.4, seed};
    expect_textbook(x, options, cap, window && heed::lengths(length) && documents, drop);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(BackwardProperty, BlockPatterns) {
  for (unsigned seed = 0; seed < 25; ++seed) {
    SCOPED_TRACE(seed);
    draw d(seed);
    const index queries = std::max<index>(1, d.tokens());
    const index keys = std::max<index>(1, d.tokens());
    const problem x(d, 1, queries, keys);
    heed::pattern_extents e{.queries = queries, .keys = keys};
    e.query_block = d.number(1, 70);
    e.key_block = d.number(1, 70);
    std::vector<std::vector<index>> lists(static_cast<std::size_t>(e.rows()));
    for (auto& row : lists) {
      for (index block = 0; block < e.key_blocks(); ++block) {
        if (d.number(0, 2) == 0) row.push_back(block);
      }
    }
    const heed::block_pattern pattern(e, lists);
    expect_textbook(x, {}, heed::blocks(pattern));
    if (testing::Test::HasFailure()) return;
  }
}

// Biases of every broadcast and sinks: what their callbacks are told, summed by either method.
TEST(BackwardProperty, GradientsOfBiasesAndSinks) {
  for (unsigned seed = 0; seed < 25; ++seed) {
    SCOPED_TRACE(seed);
    draw d(seed);
    const index batch = d.number(1, 2);
    const index queries = std::max<index>(1, d.tokens());
    const index keys = std::max<index>(1, d.tokens());
    const problem x(d, batch, queries, keys);
    const index heads = x.q.extent(1);
    const auto extent = [&](index n) { return d.coin() ? n : 1; };
    const auto values = d.tensor<float, 4>({extent(batch), extent(heads), extent(queries), keys});
    std::vector<double> logits;
    for (index h = 0; h < heads; ++h) logits.push_back(0.5 * static_cast<double>(d.number(-4, 4)));
    const auto gradients = [&](auto&& backward, std::vector<double>& d_sink) {
      heed::tensor<double, 4> d_bias(values.extents());
      const auto bias = heed::with_gradient(heed::bias(values), [&](double g, heed::position p) {
        const auto at = [&](int axis, index i) { return values.extent(axis) == 1 ? 0 : i; };
        d_bias(at(0, p.batch), at(1, p.head), at(2, p.row), at(3, p.key)) += g;
      });
      const auto sink = heed::with_gradient(heed::sink(logits), [&](double g, heed::position p) {
        d_sink[static_cast<std::size_t>(p.head)] += g;
      });
      backward(bias, sink);
      return d_bias;
    };
    std::vector<double> sink_tiles(static_cast<std::size_t>(heads)), sink_want = sink_tiles;
    const heed::window window{.left = d.number(0, 100), .right = d.number(0, 100)};
    const auto want = gradients(
        [&](const auto& bias, const auto& sink) {
          const auto q = wide(x.q);
          const auto k = wide(x.k);
          const auto v = wide(x.v);
          const auto d_out = wide(x.d_out);
          const auto d_lse = wide(x.d_lse);
          const auto forward = heed::naive_attention_with_lse(q, k, v, {}, bias, window, sink);
          (void)heed::naive_attention_backward(q, k, v, forward, heed::cotangents(d_out, d_lse), {},
                                               bias, window, sink);
        },
        sink_want);
    const auto got = gradients(
        [&](const auto& bias, const auto& sink) {
          const auto forward =
              heed::naive_attention_with_lse(x.q, x.k, x.v, {}, bias, window, sink);
          (void)heed::attention_backward(x.q, x.k, x.v, forward, heed::cotangents(x.d_out, x.d_lse),
                                         {}, bias, window, sink);
        },
        sink_tiles);
    double size = 1e-3;
    for (index i = 0; i < want.size(); ++i) size = std::max(size, std::abs(want.data()[i]));
    for (index i = 0; i < want.size(); ++i) {
      ASSERT_NEAR(got.data()[i], want.data()[i], 1e-4 * size) << "bias at " << i;
    }
    size = 1e-3;
    for (const double g : sink_want) size = std::max(size, std::abs(g));
    for (std::size_t h = 0; h < sink_want.size(); ++h) {
      ASSERT_NEAR(sink_tiles[h], sink_want[h], 1e-4 * size) << "sink of head " << h;
    }
  }
}

// Scores of 1e4 of either sign: the softmax is almost the choice of one key. Gradients are finite,
// and where that choice is certain dv is d_out of the rows that made it.
TEST(BackwardProperty, ScoresOfTenThousand) {
  const index n = 49;
  heed::tensor<float, 4> q({1, 1, n, n}), k({1, 1, n, n}), v({1, 1, n, 3}), d_out({1, 1, n, 3});
  for (index i = 0; i < n; ++i) {
    q(0, 0, i, i) = 1e4F;
    k(0, 0, i, i) = i % 2 == 0 ? 1.0F : -1.0F;
    for (index c = 0; c < 3; ++c) {
      v(0, 0, i, c) = static_cast<float>(i + c);
      d_out(0, 0, i, c) = static_cast<float>(i - c);
    }
  }
  const heed::attention_options options{.scale = 1.0};
  const auto forward = heed::attention_with_lse(q, k, v, options);
  const auto g = heed::attention_backward(q, k, v, forward, d_out, options);
  for (const auto* t : {&g.query, &g.key, &g.value}) {
    for (index i = 0; i < t->size(); ++i) ASSERT_TRUE(std::isfinite(t->data()[i])) << i;
  }
  // Row i even chooses key i. Row i odd shares its weight among the others, of which key i is none.
  for (index j = 0; j < n; ++j) {
    for (index c = 0; c < 3; ++c) {
      double want = j % 2 == 0 ? static_cast<double>(j - c) : 0;
      for (index i = 1; i < n; i += 2) {
        if (i != j) want += static_cast<double>(i - c) / static_cast<double>(n - 1);
      }
      EXPECT_NEAR(static_cast<double>(g.value(0, 0, j, c)), want, 1e-3) << j;
    }
  }
}

}  // namespace
