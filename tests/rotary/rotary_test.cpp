// SPDX-License-Identifier: MIT
// Rotary embedding against complex multiplication in long double, its algebra, and its errors.
#include "heed/rotary.hpp"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <numbers>
#include <random>
#include <vector>

#include "heed/tensor.hpp"
#include "support/expect_error.hpp"
#include "support/scalars.hpp"

namespace {

using heed::index;
using heed::rotary_embedding;
using heed::rotary_layout;
using support::expect_error;

constexpr rotary_layout layouts[] = {rotary_layout::interleaved, rotary_layout::half_split};

template <class T, int R>
heed::tensor<T, R> random_tensor(const std::array<index, static_cast<std::size_t>(R)>& extents,
                                 unsigned seed) {
  heed::tensor<T, R> t(extents);
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(normal(engine));
  return t;
}

/// The pair as a complex number, multiplied by e^(i angle). Shares no code with the library.
std::vector<double> oracle(const std::vector<double>& x, rotary_layout layout, index r,
                           const std::vector<long double>& angles, long double magnitude = 1) {
  std::vector<double> y = x;
  for (index i = 0; i < r / 2; ++i) {
    const auto a = static_cast<std::size_t>(layout == rotary_layout::interleaved ? 2 * i : i);
    const auto b =
        static_cast<std::size_t>(layout == rotary_layout::interleaved ? 2 * i + 1 : i + r / 2);
    const auto z = std::complex<long double>(x[a], x[b]) *
                   std::polar(magnitude, angles[static_cast<std::size_t>(i)]);
    y[a] = static_cast<double>(z.real());
    y[b] = static_cast<double>(z.imag());
  }
  return y;
}

std::vector<long double> plain_angles(long double position, index r, long double base) {
  std::vector<long double> angles;
  for (index i = 0; i < r / 2; ++i) {
    angles.push_back(position * std::exp(-2.0L * static_cast<long double>(i) /
                                         static_cast<long double>(r) * std::log(base)));
  }
  return angles;
}

/// Distance from 1 to the next number. (Eigen's own constant for half is 2^-13, below the truth.)
template <class T>
double scalar_epsilon() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -10);
  if constexpr (std::is_same_v<T, heed::bfloat16>) return std::ldexp(1.0, -7);
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

/// |error| of one rotated element: coefficients rounded (1 eps), two products and a sum (2 eps),
/// times |a| + |b|; the result rounded to the scalar; the angle itself wrong by |angle| 2^-51 (two
/// roundings in theta, one in the product).
template <class T>
double tolerance(double a, double b, double angle) {
  using A = heed::accumulate_t<T>;
  const double eps = std::numeric_limits<A>::epsilon();
  const double eps_scalar = scalar_epsilon<T>() / 2;
  const double size = std::abs(a) + std::abs(b);
  return size * (3 * eps + eps_scalar + std::abs(angle) * std::ldexp(1.0, -51));
}

template <class T>
void expect_matches_oracle(const heed::view<const T, 4>& out, const heed::view<const T, 4>& x,
                           const rotary_embedding& rope, double base, auto position) {
  const index d = x.extent(3);
  const index r = rope.rotated_dims();
  for (index b = 0; b < x.extent(0); ++b) {
    for (index h = 0; h < x.extent(1); ++h) {
      for (index n = 0; n < x.extent(2); ++n) {
        std::vector<double> row;
        for (index c = 0; c < d; ++c) row.push_back(static_cast<double>(x(b, h, n, c)));
        const auto p = static_cast<long double>(position(b, n));
        const auto angles = plain_angles(p, r, base);
        const auto want = oracle(row, rope.layout(), r, angles);
        for (index c = 0; c < d; ++c) {
          const auto at = static_cast<std::size_t>(c);
          if (c >= r) {
            EXPECT_EQ(static_cast<double>(out(b, h, n, c)), row[at]) << "passes through";
            continue;
          }
          const bool interleaved = rope.layout() == rotary_layout::interleaved;
          const index other = interleaved ? (c ^ 1) : (c + r / 2) % r;
          const index pair = interleaved ? c / 2 : c % (r / 2);
          EXPECT_NEAR(static_cast<double>(out(b, h, n, c)), want[at],
                      tolerance<T>(row[at], row[static_cast<std::size_t>(other)],
                                   static_cast<double>(angles[static_cast<std::size_t>(pair)])))
              << "batch " << b << " head " << h << " token " << n << " channel " << c;
        }
      }
    }
  }
}

template <class T>
class RotaryScalar : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(RotaryScalar, scalars);

TYPED_TEST(RotaryScalar, MatchesComplexMultiplication) {
  using T = TypeParam;
  for (const auto layout : layouts) {
    // 2 and 6: few pairs; 128: a block of pairs exactly; 130, 200: more than a block.
    for (const index r : {2, 6, 128, 130, 200}) {
      for (const index extra : {0, 3}) {
        const rotary_embedding rope(layout, r);
        const auto x = random_tensor<T, 4>({2, 3, 5, r + extra}, 7);
        heed::tensor<T, 4> out(x.extents());
        heed::apply_rotary_into(out, x, rope, 11);
        expect_matches_oracle<T>(heed::as_view(std::as_const(out)), heed::as_view(x), rope, 10000.0,
                                 [](index, index n) { return 11 + n; });
        auto in_place = x;
        heed::apply_rotary(in_place, rope, 11);
        for (index i = 0; i < x.size(); ++i) {
          EXPECT_EQ(static_cast<float>(in_place.data()[i]), static_cast<float>(out.data()[i]));
        }
      }
    }
  }
}

TYPED_TEST(RotaryScalar, TablesGiveWhatTheEmbeddingGives) {
  using T = TypeParam;
  using A = heed::accumulate_t<T>;
  for (const auto layout : layouts) {
    const rotary_embedding rope(layout, 12,
                                {.base = 500.0, .scaling = heed::yarn_scaling{.factor = 4}});
    const auto tables = heed::make_rotary_tables<A>(rope, 20);
    const auto x = random_tensor<T, 4>({2, 2, 3, 16}, 3);
    const heed::tensor<T, 4> untouched = x;
    const std::vector<int> ids = {17, 0, 4};
    heed::tensor<T, 4> computed(x.extents());
    heed::tensor<T, 4> looked_up(x.extents());
    heed::tensor<T, 4> gathered(x.extents());
    heed::apply_rotary_into(computed, x, rope, ids);
    heed::apply_rotary_into(looked_up, x, layout, tables.cos, tables.sin, ids);
    heed::tensor<A, 3> cos({2, 3, 6});
    heed::tensor<A, 3> sin({2, 3, 6});
    for (index b = 0; b < 2; ++b) {
      for (index n = 0; n < 3; ++n) {
        for (index i = 0; i < 6; ++i) {
          cos(b, n, i) = tables.cos(ids[static_cast<std::size_t>(n)], i);
          sin(b, n, i) = tables.sin(ids[static_cast<std::size_t>(n)], i);
        }
      }
    }
    heed::apply_rotary_into(gathered, x, layout, cos, sin);
    for (index i = 0; i < x.size(); ++i) {
      EXPECT_EQ(static_cast<float>(computed.data()[i]), static_cast<float>(looked_up.data()[i]));
      EXPECT_EQ(static_cast<float>(computed.data()[i]), static_cast<float>(gathered.data()[i]));
      EXPECT_EQ(static_cast<float>(x.data()[i]), static_cast<float>(untouched.data()[i]));
    }
    auto in_place = x;
    heed::apply_rotary(in_place, layout, tables.cos, tables.sin, ids);
    for (index i = 0; i < x.size(); ++i) {
      EXPECT_EQ(static_cast<float>(computed.data()[i]), static_cast<float>(in_place.data()[i]));
    }
    in_place = x;
    heed::apply_rotary(in_place, layout, cos, sin);
    for (index i = 0; i < x.size(); ++i) {
      EXPECT_EQ(static_cast<float>(computed.data()[i]), static_cast<float>(in_place.data()[i]));
    }
  }
}

TEST(Rotary, EveryFormOfPositions) {
  const auto x = random_tensor<double, 4>({2, 1, 3, 4}, 5);
  const rotary_embedding rope(rotary_layout::interleaved, 4);
  const auto check = [&](const auto& positions, auto expected) {
    heed::tensor<double, 4> out(x.extents());
    heed::apply_rotary_into(out, x, rope, positions);
    expect_matches_oracle<double>(heed::as_view(std::as_const(out)), heed::as_view(x), rope,
                                  10000.0, expected);
  };
  check(0, [](index, index n) { return n; });
  check(-40, [](index, index n) { return n - 40; });
  check(std::int32_t{9}, [](index, index n) { return n + 9; });
  const std::vector<index> offsets = {5, -2};
  check(heed::batch_offsets{offsets},
        [&](index b, index n) { return offsets[static_cast<std::size_t>(b)] + n; });
  const std::vector<std::int64_t> ids = {8, -3, 1000};
  const auto listed = [&](index, index n) { return ids[static_cast<std::size_t>(n)]; };
  check(ids, listed);
  check(std::span<const std::int64_t>(ids), listed);
  check(heed::make_view(ids.data(), {3}), listed);
  heed::tensor<std::int32_t, 2> both({2, 3});
  for (index i = 0; i < 6; ++i) both.data()[i] = static_cast<std::int32_t>(7 * i - 4);
  check(both, [&](index b, index n) { return both(b, n); });
  heed::tensor<double, 4> out(x.extents());
  heed::apply_rotary_into(out, x, rope);
  expect_matches_oracle<double>(heed::as_view(std::as_const(out)), heed::as_view(x), rope, 10000.0,
                                [](index, index n) { return n; });
}

TEST(Rotary, LowerRanksAndEigen) {
  const rotary_embedding rope(rotary_layout::half_split, 6);
  const auto x = random_tensor<float, 4>({1, 2, 4, 8}, 2);
  heed::tensor<float, 4> want(x.extents());
  heed::apply_rotary_into(want, x, rope, 3);

  auto x3 = random_tensor<float, 4>({1, 2, 4, 8}, 2);
  heed::apply_rotary(heed::as_view(x3)[0], rope, 3);
  Eigen::MatrixXf x2(4, 8);  // column-major: channels 4 apart
  for (index n = 0; n < 4; ++n) {
    for (index c = 0; c < 8; ++c) x2(n, c) = x(0, 1, n, c);
  }
  heed::apply_rotary(x2, rope, 3);
  for (index n = 0; n < 4; ++n) {
    for (index c = 0; c < 8; ++c) {
      EXPECT_EQ(x3(0, 0, n, c), want(0, 0, n, c));
      EXPECT_NEAR(x2(n, c), want(0, 1, n, c), 1e-6);
    }
  }
}

TEST(Rotary, PackedProjections) {
  const rotary_embedding rope(rotary_layout::half_split, 4);
  auto packed = random_tensor<float, 3>({2, 3, 8}, 4);
  const auto before = packed;
  heed::apply_rotary(heed::split_heads(packed, 2), rope);
  expect_matches_oracle<float>(heed::split_heads(std::as_const(packed), 2),
                               heed::split_heads(before, 2), rope, 10000.0,
                               [](index, index n) { return n; });
}

RC_GTEST_PROP(RotaryProperty, StridesDoNotMatter, ()) {
  const index batch = *rc::gen::inRange<index>(0, 3);
  const index heads = *rc::gen::inRange<index>(0, 4);
  const index tokens = *rc::gen::inRange<index>(0, 6);
  const index pairs = *rc::gen::inRange<index>(1, 70);
  const index d = 2 * pairs + *rc::gen::inRange<index>(0, 4);
  const index gap = *rc::gen::inRange<index>(1, 4);
  const bool reversed = *rc::gen::arbitrary<bool>();
  const bool token_major = *rc::gen::arbitrary<bool>();
  const index offset = *rc::gen::inRange<index>(-1000, 1000);
  const auto layout = *rc::gen::elementOf(std::vector<rotary_layout>(layouts, layouts + 2));
  const rotary_embedding rope(layout, 2 * pairs);

  // Channels `gap` apart, perhaps backwards, in storage that is otherwise NaN and must stay so.
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> storage(static_cast<std::size_t>(batch * heads * tokens * d * gap + 1), nan);
  const index row = d * gap;
  float* data = storage.data();
  heed::view<float, 4>::extents_type strides =
      token_major
          ? heed::view<float, 4>::extents_type{heads * tokens * row, row, heads * row, gap}
          : heed::view<float, 4>::extents_type{heads * tokens * row, tokens * row, row, gap};
  if (reversed && d > 0) {
    strides[3] = -gap;
    data += (d - 1) * gap;
  }
  const heed::view<float, 4> x(data, {batch, heads, tokens, d}, strides);
  const auto source = random_tensor<float, 4>({batch, heads, tokens, d}, 1);
  for (index b = 0; b < batch; ++b) {
    for (index h = 0; h < heads; ++h) {
      for (index n = 0; n < tokens; ++n) {
        for (index c = 0; c < d; ++c) x(b, h, n, c) = source(b, h, n, c);
      }
    }
  }
  heed::apply_rotary(x, rope, offset);
  expect_matches_oracle<float>(heed::view<const float, 4>(x), heed::as_view(source), rope, 10000.0,
                               [&](index, index n) { return offset + n; });
  const auto untouched =
      std::count_if(storage.begin(), storage.end(), [](float f) { return std::isnan(f); });
  RC_ASSERT(untouched == static_cast<std::ptrdiff_t>(storage.size()) - source.size());
}

RC_GTEST_PROP(RotaryProperty, DotProductDependsOnTheDistanceAlone, ()) {
  const auto layout = *rc::gen::elementOf(std::vector<rotary_layout>(layouts, layouts + 2));
  const index m = *rc::gen::inRange<index>(-5000, 5000);
  const index n = *rc::gen::inRange<index>(-5000, 5000);
  const index shift = *rc::gen::inRange<index>(-100000, 100000);
  const rotary_embedding rope(layout, 16);
  const auto q = random_tensor<double, 2>({1, 16}, *rc::gen::arbitrary<unsigned>());
  const auto k = random_tensor<double, 2>({1, 16}, *rc::gen::arbitrary<unsigned>());
  const auto score = [&](index pq, index pk) {
    auto a = q;
    auto b = k;
    heed::apply_rotary(a, rope, pq);
    heed::apply_rotary(b, rope, pk);
    double s = 0;
    for (index c = 0; c < 16; ++c) s += a(0, c) * b(0, c);
    return s;
  };
  double size = 0;
  double norm = 0;
  auto rotated = q;
  heed::apply_rotary(rotated, rope, m);
  double rotated_norm = 0;
  for (index c = 0; c < 16; ++c) {
    size += std::abs(q(0, c)) + std::abs(k(0, c));
    norm += q(0, c) * q(0, c);
    rotated_norm += rotated(0, c) * rotated(0, c);
  }
  // Angles up to 105,000 are wrong by 105,000 * 2^-51 = 5e-11.
  RC_ASSERT(std::abs(score(m, n) - score(m + shift, n + shift)) < size * size * 4 * 5e-11);
  RC_ASSERT(std::abs(norm - rotated_norm) < 40 * std::numeric_limits<double>::epsilon() * norm);
}

TEST(Rotary, LayoutsAreOneAnothersPermutation) {
  const index r = 20;
  const auto x = random_tensor<double, 2>({6, r + 2}, 9);
  heed::tensor<double, 2> permuted(x.extents());
  const auto source = [&](index c) { return c >= r ? c : c < r / 2 ? 2 * c : 2 * (c - r / 2) + 1; };
  for (index n = 0; n < 6; ++n) {
    for (index c = 0; c < r + 2; ++c) permuted(n, c) = x(n, source(c));
  }
  auto interleaved = x;
  heed::apply_rotary(interleaved, rotary_embedding(rotary_layout::interleaved, r), 100);
  heed::apply_rotary(permuted, rotary_embedding(rotary_layout::half_split, r), 100);
  for (index n = 0; n < 6; ++n) {
    for (index c = 0; c < r + 2; ++c) {
      EXPECT_NEAR(permuted(n, c), interleaved(n, source(c)), 1e-14);
    }
  }
}

TEST(Rotary, PositionOneMillionInFloat) {
  const rotary_embedding rope(rotary_layout::half_split, 64, {.base = 500000.0});
  const auto x = random_tensor<float, 4>({1, 1, 3, 64}, 13);
  heed::tensor<float, 4> out(x.extents());
  heed::apply_rotary_into(out, x, rope, 1'000'000);
  expect_matches_oracle<float>(heed::as_view(std::as_const(out)), heed::as_view(x), rope, 500000.0,
                               [](index, index n) { return 1'000'000 + n; });
}

TEST(Rotary, NanStaysInItsPair) {
  auto x = random_tensor<float, 2>({1, 8}, 1);
  x(0, 1) = std::numeric_limits<float>::quiet_NaN();
  heed::apply_rotary(x, rotary_embedding(rotary_layout::half_split, 8), 3);
  for (index c = 0; c < 8; ++c) EXPECT_EQ(std::isnan(x(0, c)), c == 1 || c == 5) << c;
}

// Scalings. The expected values are the formulas of the papers, written out here once more.

double theta(index i, index r, double base) {
  return std::exp(-2.0 * static_cast<double>(i) / static_cast<double>(r) * std::log(base));
}

void expect_frequencies(const rotary_embedding& rope, auto expected) {
  for (index i = 0; i < rope.pairs(); ++i) {
    const double want = expected(i);
    EXPECT_NEAR(rope.frequencies()[static_cast<std::size_t>(i)], want, 1e-13 * want)
        << "pair " << i;
  }
}

TEST(RotaryScaling, NoneLinearAndNtk) {
  const auto layout = rotary_layout::half_split;
  expect_frequencies(rotary_embedding(layout, 64), [](index i) { return theta(i, 64, 10000.0); });
  expect_frequencies(rotary_embedding(layout, 64, {.scaling = heed::linear_scaling{.factor = 4}}),
                     [](index i) { return theta(i, 64, 10000.0) / 4; });
  const rotary_embedding ntk(layout, 64, {.scaling = heed::ntk_scaling{.factor = 8}});
  expect_frequencies(ntk,
                     [](index i) { return theta(i, 64, 10000.0 * std::pow(8.0, 64.0 / 62.0)); });
  // What NTK-aware means: the fastest pair untouched, the slowest interpolated by exactly s.
  EXPECT_EQ(ntk.frequencies().front(), 1.0);
  EXPECT_NEAR(ntk.frequencies().back(), theta(31, 64, 10000.0) / 8, 1e-18);
  EXPECT_EQ(
      rotary_embedding(layout, 2, {.scaling = heed::ntk_scaling{.factor = 8}}).frequencies()[0],
      1.0);
}

TEST(RotaryScaling, Llama3) {
  const double two_pi = 2 * std::numbers::pi;
  const rotary_embedding rope(rotary_layout::half_split, 128,
                              {.base = 500000.0, .scaling = heed::llama3_scaling{}});
  index kept = 0;
  index divided = 0;
  expect_frequencies(rope, [&](index i) {
    const double t = theta(i, 128, 500000.0);
    const double wavelength = two_pi / t;
    if (wavelength < 8192.0 / 4.0) return ++kept, t;
    if (wavelength > 8192.0 / 1.0) return ++divided, t / 8.0;
    const double smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
    return (1 - smooth) * t / 8.0 + smooth * t;
  });
  // All three branches are met: 29 pairs keep, 29 .. 34 blend, the rest are divided.
  EXPECT_EQ(kept, 29);
  EXPECT_EQ(divided, 29);
  EXPECT_EQ(rope.magnitude(), 1.0);
}

TEST(RotaryScaling, YarnOverThePairIndex) {
  // r = 128, base 10000, L = 4096: pairs 20.94 and 45.03 rotate 32 times and once; to 20 and 46.
  const rotary_embedding rope(rotary_layout::half_split, 128,
                              {.scaling = heed::yarn_scaling{.factor = 16}});
  expect_frequencies(rope, [](index i) {
    const double ramp = std::min(1.0, std::max(0.0, (static_cast<double>(i) - 20.0) / 26.0));
    return theta(i, 128, 10000.0) * (ramp / 16.0 + (1.0 - ramp));
  });
  EXPECT_NEAR(rope.magnitude(), 0.1 * std::log(16.0) + 1.0, 1e-15);
  const auto tables = heed::make_rotary_tables<double>(rope, 2);
  EXPECT_NEAR(tables.cos(0, 0), 0.1 * std::log(16.0) + 1.0, 1e-15);
  EXPECT_EQ(tables.sin(0, 0), 0.0);

  const double low = 128 * std::log(4096 / (32 * 2 * std::numbers::pi)) / (2 * std::log(10000.0));
  const double high = 128 * std::log(4096 / (2 * std::numbers::pi)) / (2 * std::log(10000.0));
  EXPECT_EQ(std::floor(low), 20.0);
  EXPECT_EQ(std::ceil(high), 46.0);
  const rotary_embedding exact(rotary_layout::half_split, 128,
                               {.scaling = heed::yarn_scaling{.factor = 16, .round_ramp = false}});
  expect_frequencies(exact, [&](index i) {
    const double ramp = std::min(1.0, std::max(0.0, (static_cast<double>(i) - low) / (high - low)));
    return theta(i, 128, 10000.0) * (ramp / 16.0 + (1.0 - ramp));
  });
}

TEST(RotaryScaling, YarnOverRotationsAndMagnitude) {
  const heed::yarn_scaling scaling{
      .factor = 4, .original_context = 2048, .ramp = heed::yarn_ramp::rotations, .magnitude = 1.25};
  const rotary_embedding rope(rotary_layout::interleaved, 64, {.scaling = scaling});
  expect_frequencies(rope, [](index i) {
    const double t = theta(i, 64, 10000.0);
    const double rotations = 2048 * t / (2 * std::numbers::pi);
    const double keep = rotations < 1 ? 0 : rotations > 32 ? 1 : (rotations - 1) / 31;
    return (1 - keep) * t / 4 + keep * t;
  });
  EXPECT_EQ(rope.magnitude(), 1.25);
  EXPECT_EQ(rotary_embedding(rotary_layout::interleaved, 64, {.scaling = heed::yarn_scaling{}})
                .magnitude(),
            1.0);
  // The magnitude reaches the vector: its norm grows by it.
  auto x = random_tensor<double, 2>({1, 64}, 3);
  double before = 0;
  for (index c = 0; c < 64; ++c) before += x(0, c) * x(0, c);
  heed::apply_rotary(x, rope, 77);
  double after = 0;
  for (index c = 0; c < 64; ++c) after += x(0, c) * x(0, c);
  EXPECT_NEAR(std::sqrt(after / before), 1.25, 1e-14);
}

TEST(RotaryScaling, FrequenciesOfOnesOwn) {
  const rotary_embedding rope(rotary_layout::interleaved, std::vector<double>{0.5, 0.25}, 2.0);
  EXPECT_EQ(rope.rotated_dims(), 4);
  heed::tensor<double, 2> x({1, 4});
  x(0, 0) = 1;
  x(0, 3) = 1;
  heed::apply_rotary(x, rope, 3);
  EXPECT_NEAR(x(0, 0), 2 * std::cos(1.5), 1e-15);
  EXPECT_NEAR(x(0, 1), 2 * std::sin(1.5), 1e-15);
  EXPECT_NEAR(x(0, 2), -2 * std::sin(0.75), 1e-15);
  EXPECT_NEAR(x(0, 3), 2 * std::cos(0.75), 1e-15);
}

TEST(RotaryErrors, Shapes) {
  using heed::shape_error;
  const auto layout = rotary_layout::half_split;
  expect_error<shape_error>(
      "rotary_embedding has 7 rotated dims, needs an even number of at least 2",
      [&] { (void)rotary_embedding(layout, 7); });
  expect_error<shape_error>(
      "rotary_embedding has 0 rotated dims, needs an even number of at least 2",
      [&] { (void)rotary_embedding(layout, 0); });
  const rotary_embedding rope(layout, 8);
  expect_error<shape_error>("rotary tables have -1 positions, need at least 0",
                            [&] { (void)heed::make_rotary_tables<float>(rope, -1); });
  heed::tensor<float, 4> x({2, 1, 3, 6});
  heed::tensor<float, 4> wide({2, 1, 3, 8});
  const auto before = wide = random_tensor<float, 4>({2, 1, 3, 8}, 1);
  expect_error<shape_error>("x has head dim 6, rotary_embedding rotates 8 dims",
                            [&] { heed::apply_rotary(x, rope); });
  expect_error<shape_error>("out has extents [2, 1, 3, 6], x has [2, 1, 3, 8]",
                            [&] { heed::apply_rotary_into(x, wide, rope); });
  const std::vector<index> two = {1, 2};
  const std::vector<index> three = {1, 2, 3};
  expect_error<shape_error>("positions has tokens 2, x has 3",
                            [&] { heed::apply_rotary(wide, rope, two); });
  expect_error<shape_error>("positions has tokens 2, x has 3", [&] {
    heed::apply_rotary(wide, rope, heed::make_view(two.data(), {2}));
  });
  expect_error<shape_error>("batch_offsets has batch 3, x has 2",
                            [&] { heed::apply_rotary(wide, rope, heed::batch_offsets{three}); });
  const heed::tensor<int, 2> wrong_batch({1, 3});
  const heed::tensor<int, 2> wrong_tokens({2, 4});
  expect_error<shape_error>("positions has batch 1, x has 2",
                            [&] { heed::apply_rotary(wide, rope, wrong_batch); });
  expect_error<shape_error>("positions has tokens 4, x has 3",
                            [&] { heed::apply_rotary(wide, rope, wrong_tokens); });

  const auto tables = heed::make_rotary_tables<float>(rope, 5);
  const heed::tensor<float, 2> narrow({5, 3});
  expect_error<shape_error>("sin has extents [5, 3], cos has [5, 4]",
                            [&] { heed::apply_rotary(wide, layout, tables.cos, narrow); });
  expect_error<shape_error>("x has head dim 6, the cos table rotates 8 dims",
                            [&] { heed::apply_rotary(x, layout, tables.cos, tables.sin); });
  expect_error<shape_error>("batch 0, token 2 is at position 5, cos has 5 positions",
                            [&] { heed::apply_rotary(wide, layout, tables.cos, tables.sin, 3); });
  const std::vector<index> offsets = {0, -1};
  expect_error<shape_error>("batch 1, token 0 is at position -1, cos has 5 positions", [&] {
    heed::apply_rotary(wide, layout, tables.cos, tables.sin, heed::batch_offsets{offsets});
  });
  const heed::tensor<float, 3> gathered_batch({1, 3, 4});
  const heed::tensor<float, 3> gathered_tokens({2, 2, 4});
  expect_error<shape_error>("cos has batch 1, x has 2", [&] {
    heed::apply_rotary(wide, layout, gathered_batch, gathered_batch);
  });
  expect_error<shape_error>("cos has tokens 2, x has 3", [&] {
    heed::apply_rotary(wide, layout, gathered_tokens, gathered_tokens);
  });
  for (index i = 0; i < wide.size(); ++i) EXPECT_EQ(wide.data()[i], before.data()[i]);
}

TEST(RotaryErrors, Options) {
  using heed::option_error;
  const auto layout = rotary_layout::interleaved;
  const auto make = [&](const heed::rotary_options& o) { (void)rotary_embedding(layout, 8, o); };
  expect_error<option_error>("rotary_embedding base is 1.000000, must be above 1 and finite",
                             [&] { make({.base = 1.0}); });
  expect_error<option_error>("linear_scaling factor is 0.000000, must be positive and finite",
                             [&] { make({.scaling = heed::linear_scaling{.factor = 0}}); });
  expect_error<option_error>("ntk_scaling factor is -1.000000, must be positive and finite",
                             [&] { make({.scaling = heed::ntk_scaling{.factor = -1}}); });
  expect_error<option_error>("yarn_scaling factor is nan, must be positive and finite", [&] {
    make({.scaling = heed::yarn_scaling{.factor = std::numeric_limits<double>::quiet_NaN()}});
  });
  expect_error<option_error>(
      "yarn_scaling original_context is 0.000000, must be positive and finite",
      [&] { make({.scaling = heed::yarn_scaling{.original_context = 0}}); });
  expect_error<option_error>("yarn_scaling beta_slow is 0.000000, must be positive and finite",
                             [&] { make({.scaling = heed::yarn_scaling{.beta_slow = 0}}); });
  expect_error<option_error>(
      "yarn_scaling ramps from 2.000000 to 1.000000 rotations, must ramp upwards",
      [&] { make({.scaling = heed::yarn_scaling{.beta_fast = 1, .beta_slow = 2}}); });
  expect_error<option_error>("llama3_scaling factor is inf, must be positive and finite", [&] {
    make({.scaling = heed::llama3_scaling{.factor = std::numeric_limits<double>::infinity()}});
  });
  expect_error<option_error>(
      "llama3_scaling original_context is 0.000000, must be positive and finite",
      [&] { make({.scaling = heed::llama3_scaling{.original_context = 0}}); });
  expect_error<option_error>(
      "llama3_scaling low_frequency_factor is 0.000000, must be positive and finite",
      [&] { make({.scaling = heed::llama3_scaling{.low_frequency_factor = 0}}); });
  expect_error<option_error>(
      "llama3_scaling ramps from 1.000000 to 1.000000 rotations, must ramp upwards",
      [&] { make({.scaling = heed::llama3_scaling{.high_frequency_factor = 1}}); });
  heed::tensor<float, 2> x({3, 8});
  const heed::rotary_embedding r(heed::rotary_layout::half_split, 8);
  constexpr heed::index last = (std::numeric_limits<heed::index>::max)();
  heed::apply_rotary(x, r, last - 3);
  expect_error<option_error>("positions begin at 9223372036854775805, too large for 3 tokens",
                             [&] { heed::apply_rotary(x, r, last - 2); });
}

}  // namespace
