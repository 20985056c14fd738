// SPDX-License-Identifier: MIT
// Awkward user-defined tensors through every public function: results are those of plain tensors.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/parallel.hpp"
#include "heed/rotary.hpp"
#include "heed/score.hpp"
#include "support/hostile_tensor.hpp"

namespace {

using heed::index;
using hostile::grid;
using hostile::handle;

template <class View>
void fill(const View& v, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  using element = typename View::scalar;
  if constexpr (View::rank == 1) {
    for (index i = 0; i < v.extent(0); ++i) v(i) = static_cast<element>(normal(random));
  } else {
    for (index i = 0; i < v.extent(0); ++i) fill(v[i], seed + 31 * static_cast<unsigned>(i + 1));
  }
}

/// The same numbers in a heed::tensor.
template <class T, int R>
auto plain(const heed::view<T, R>& v) {
  heed::tensor<std::remove_const_t<T>, R> out(v.extents());
  const auto to = heed::as_view(out);
  if constexpr (R == 2) {
    for (index i = 0; i < v.extent(0); ++i) {
      for (index j = 0; j < v.extent(1); ++j) to(i, j) = v(i, j);
    }
  } else {
    for (index h = 0; h < v.extent(0); ++h) {
      for (index i = 0; i < v.extent(1); ++i) {
        for (index j = 0; j < v.extent(2); ++j) to(h, i, j) = v(h, i, j);
      }
    }
  }
  return out;
}

// A compiler may fuse or not fuse a product and a sum as strides let it vectorise, and bfloat16
// rows next to each other may be multiplied as pairs: the numbers agree to the rounding of the
// arithmetic (sums of at most 130 terms of order one), not bit by bit.
template <class T, int R>
void expect_agreement(const heed::view<const T, R>& a, const heed::view<const T, R>& b) {
  ASSERT_EQ(a.extents(), b.extents());
  if constexpr (R == 1) {
    const double eps = static_cast<double>(Eigen::NumTraits<T>::epsilon());
    const double float_eps = sizeof(T) == 8 ? eps : std::numeric_limits<float>::epsilon();
    for (index i = 0; i < a.extent(0); ++i) {
      const auto x = static_cast<double>(a(i));
      ASSERT_NEAR(x, static_cast<double>(b(i)),
                  2 * eps * std::max(1.0, std::abs(x)) + 130 * float_eps);
    }
  } else {
    for (index i = 0; i < a.extent(0); ++i) expect_agreement<T, R - 1>(a[i], b[i]);
  }
}

template <class A, class B>
void expect_agreement(const A& a, const B& b) {
  using T = heed::scalar_of<A>;
  constexpr int rank = heed::rank_of<const A&>;
  expect_agreement<T, rank>(heed::view<const T, rank>(heed::as_view(a)),
                            heed::view<const T, rank>(heed::as_view(b)));
}

// One scalar is enough: no user's type reaches a kernel, whatever the scalar.
using scalar = float;

// Rows past a tile and a few tokens alone take different kernels.
constexpr std::array<std::array<index, 2>, 4> sizes{{{1, 70}, {5, 5}, {67, 130}, {0, 3}}};

TEST(HostileAttention, GridsGoInAndComeOut) {
  for (const auto& [queries, keys] : sizes) {
    grid<scalar> q(queries, 20);
    grid<scalar> k(keys, 20);
    grid<scalar> v(keys, 7);
    fill(heed::as_view(q), 1);
    fill(heed::as_view(k), 2);
    fill(heed::as_view(v), 3);
    const auto q0 = plain(heed::as_view(q));
    const auto k0 = plain(heed::as_view(k));
    const auto v0 = plain(heed::as_view(v));

    const grid<scalar> tiled = heed::attention(q, k, v, {}, heed::causal());
    expect_agreement(tiled, heed::attention(q0, k0, v0, {}, heed::causal()));
    const grid<scalar> naive = heed::naive_attention(q, k, v, {}, heed::causal());
    expect_agreement(naive, heed::naive_attention(q0, k0, v0, {}, heed::causal()));

    const auto with_lse = heed::attention_with_lse(q, k, v);
    static_assert(std::is_same_v<std::remove_cvref_t<decltype(with_lse.output)>, grid<scalar>>);
    const auto with_lse0 = heed::attention_with_lse(q0, k0, v0);
    expect_agreement(with_lse.output, with_lse0.output);
    expect_agreement(with_lse.log_sum_exp, with_lse0.log_sum_exp);
  }
}

TEST(HostileAttention, AGridIsWrittenBetweenItsGapsAlone) {
  grid<scalar> q(9, 8);
  fill(heed::as_view(q), 4);
  grid<scalar> out(9, 8);
  heed::attention_into(out, q, q, q);
  for (std::size_t i = 1; i < out.cells().size(); i += 2) {
    ASSERT_EQ(out.cells()[i], scalar(-1000));
  }
}

TEST(HostileAttention, HandlesOnAnExecutorWithModifiersOfTheirKind) {
  constexpr index heads = 4;
  constexpr index tokens = 33;
  constexpr index channels = 12;
  std::vector<scalar> cells(4 * heads * tokens * channels);
  const auto at = [&](index i) {
    return handle<scalar>(cells.data() + i * heads * tokens * channels, {heads, tokens, channels});
  };
  const handle<scalar> q = at(0);
  const handle<scalar> k = at(1);
  const handle<scalar> v = at(2);
  const handle<scalar> out = at(3);  // const is shallow: a result may go there
  fill(heed::as_view(q), 5);
  fill(heed::as_view(k), 6);
  fill(heed::as_view(v), 7);
  grid<float> bias(tokens, tokens);
  fill(heed::as_view(bias), 8);
  grid<int> seen(tokens, tokens);
  for (index i = 0; i < tokens; ++i) {
    for (index j = 0; j < tokens; ++j)
      heed::as_view(seen)(i, j) = static_cast<int>((i + 2 * j) % 3);
  }
  const auto bias0 = plain(heed::as_view(bias));
  const auto seen0 = plain(heed::as_view(seen));

  heed::thread_pool pool(3);
  heed::attention_into(pool, out, q, k, v, {.scale = 0.3}, heed::bias(bias), heed::keep(seen));
  const auto expected =
      heed::attention(plain(heed::as_view(q)), plain(heed::as_view(k)), plain(heed::as_view(v)),
                      {.scale = 0.3}, heed::bias(bias0), heed::keep(seen0));
  expect_agreement(out, expected);

  // A handle cannot be made, so what heed returns is its own.
  const auto returned =
      heed::attention(q, k, v, {.scale = 0.3}, heed::bias(bias), heed::keep(seen));
  static_assert(std::is_same_v<decltype(returned), const heed::tensor<scalar, 3>>);
  expect_agreement(returned, expected);
}

TEST(HostileAttention, HandlesAreRotatedAndCached) {
  constexpr index heads = 2;
  constexpr index tokens = 11;
  constexpr index channels = 8;
  std::vector<scalar> cells(heads * tokens * channels);
  const handle<scalar> x(cells.data(), {heads, tokens, channels});
  fill(heed::as_view(x), 9);
  auto x0 = plain(heed::as_view(x));
  const heed::rotary_embedding rope(heed::rotary_layout::half_split, channels);
  heed::apply_rotary(x, rope, 5);
  heed::apply_rotary(x0, rope, 5);
  expect_agreement(x, x0);

  heed::contiguous_cache<scalar> cache(
      {.batch = 1, .kv_heads = heads, .capacity = 2 * tokens, .head_dim = channels});
  heed::contiguous_cache<scalar> cache0(
      {.batch = 1, .kv_heads = heads, .capacity = 2 * tokens, .head_dim = channels});
  const auto out = heed::decode(x, x, x, cache, {}, heed::causal());
  const auto out0 = heed::decode(x0, x0, x0, cache0, {}, heed::causal());
  expect_agreement(out, out0);
  expect_agreement(cache.keys(), cache0.keys());
}

}  // namespace
