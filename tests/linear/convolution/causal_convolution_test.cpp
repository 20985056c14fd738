// SPDX-License-Identifier: MIT
// Causal convolution: against plain loops in double over shapes, layouts, scalars and states; the
// same bits in pieces, layouts and threads; NaNs, extremes of silu, and errors.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "heed/linear.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"
#include "support/scalars.hpp"

namespace {

using heed::as_view;
using heed::index;

template <class T>
double scalar_epsilon() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -10);
  if constexpr (std::is_same_v<T, heed::bfloat16>) return std::ldexp(1.0, -7);
  return static_cast<double>(std::numeric_limits<T>::epsilon());
}

template <class T, std::size_t R>
heed::tensor<T, static_cast<int>(R)> random_tensor(const index (&extents)[R], unsigned seed,
                                                   double spread = 1.0) {
  heed::tensor<T, static_cast<int>(R)> t(std::to_array(extents));
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(0.0, spread);
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(normal(engine));
  return t;
}

/// How a tensor's elements lie in memory; views of all of them read batch x channels x tokens.
enum class layout { channel_rows, token_rows, reversed, spread };
constexpr layout layouts[] = {layout::channel_rows, layout::token_rows, layout::reversed,
                              layout::spread};

/// Memory of a layout, and the view of it. `spread` leaves a gap behind every element, in which
/// nothing may be written.
template <class T>
class laid_out {
 public:
  laid_out(layout l, index batch, index channels, index tokens)
      : memory_(static_cast<std::size_t>(batch * channels * tokens * (l == layout::spread ? 3 : 1)),
                static_cast<T>(-77.0)) {
    T* const first = memory_.data();
    const index last = batch * channels * tokens - 1;
    if (l == layout::channel_rows) {
      view_ = {first, {batch, channels, tokens}};
    } else if (l == layout::token_rows) {
      view_ = {first, {batch, channels, tokens}, {channels * tokens, 1, channels}};
    } else if (l == layout::reversed) {
      view_ = {first + std::max<index>(last, 0),
               {batch, channels, tokens},
               {-channels * tokens, -tokens, -1}};
    } else {
      view_ = {first, {batch, channels, tokens}, {3 * channels * tokens, 3 * tokens, 3}};
    }
  }
  laid_out(layout l, const heed::tensor<T, 3>& values)
      : laid_out(l, values.extent(0), values.extent(1), values.extent(2)) {
    for (index b = 0; b < view_.extent(0); ++b) {
      for (index c = 0; c < view_.extent(1); ++c) {
        for (index t = 0; t < view_.extent(2); ++t) view_(b, c, t) = values(b, c, t);
      }
    }
  }
  laid_out(const laid_out&) = delete;
  laid_out& operator=(const laid_out&) = delete;

  [[nodiscard]] heed::view<T, 3> view() const { return view_; }
  [[nodiscard]] const std::vector<T>& memory() const { return memory_; }

 private:
  std::vector<T> memory_;
  heed::view<T, 3> view_;
};

template <class T>
struct problem {
  using A = heed::accumulate_t<T>;
  heed::tensor<T, 3> x;
  heed::tensor<T, 2> weight;
  heed::tensor<T, 1> bias;
  heed::tensor<A, 3> past;
  bool with_bias = true;
  bool with_state = true;
  bool silu = false;

  problem(index batch, index channels, index tokens, index taps, unsigned seed)
      : x(random_tensor<T>({batch, channels, tokens}, seed)),
        weight(random_tensor<T>({channels, taps}, seed + 1)),
        bias(random_tensor<T>({channels}, seed + 2)),
        past(random_tensor<A>({batch, channels, taps - 1}, seed + 3)) {}

  [[nodiscard]] heed::causal_convolution_options<T, A> options(heed::tensor<A, 3>& state) const {
    heed::causal_convolution_options<T, A> o{.silu = silu};
    if (with_bias) o.bias = as_view(bias);
    if (with_state) o.state = as_view(state);
    return o;
  }
  /// Input t of [past, x], t = 0 being x's first.
  [[nodiscard]] double input(index b, index c, index t) const {
    if (t >= 0) return static_cast<double>(x(b, c, t));
    return with_state ? static_cast<double>(past(b, c, past.extent(2) + t)) : 0.0;
  }
};

/// Every output within the bound that the header states, and the state exactly.
template <class T>
void expect_defined(const problem<T>& p, const heed::view<T, 3>& out,
                    const heed::tensor<heed::accumulate_t<T>, 3>& state) {
  using A = heed::accumulate_t<T>;
  const index taps = p.weight.extent(1);
  const double eps = static_cast<double>(std::numeric_limits<A>::epsilon());
  for (index b = 0; b < p.x.extent(0); ++b) {
    for (index c = 0; c < p.x.extent(1); ++c) {
      for (index t = 0; t < p.x.extent(2); ++t) {
        double s = p.with_bias ? static_cast<double>(p.bias(c)) : 0.0;
        double size = std::abs(s);
        for (index j = 0; j < taps; ++j) {
          const double term =
              static_cast<double>(p.weight(c, j)) * p.input(b, c, t + j - (taps - 1));
          s += term;
          size += std::abs(term);
        }
        double tolerance = static_cast<double>(taps + 1) * eps * size;
        double want = s;
        if (p.silu) {
          want = s / (1 + std::exp(-s));
          // The slope of silu is below 1.1.
          tolerance = 1.1 * tolerance + (std::abs(s) + 8) * eps * std::abs(want);
        }
        // The rounding to the scalar; below its normal numbers, an absolute one.
        if (!std::is_same_v<T, A>) tolerance += scalar_epsilon<T>() * std::abs(want) + 1e-7;
        ASSERT_NEAR(static_cast<double>(out(b, c, t)), want, tolerance)
            << "batch " << b << ", channel " << c << ", token " << t;
      }
      for (index j = 0; p.with_state && j < taps - 1; ++j) {
        ASSERT_EQ(static_cast<double>(state(b, c, j)),
                  p.input(b, c, p.x.extent(2) - (taps - 1) + j));
      }
    }
  }
}

template <class T>
std::vector<unsigned char> bytes_of(const heed::view<T, 3>& v) {
  std::vector<unsigned char> bytes;
  for (index b = 0; b < v.extent(0); ++b) {
    for (index c = 0; c < v.extent(1); ++c) {
      for (index t = 0; t < v.extent(2); ++t) {
        unsigned char one[sizeof(T)];
        std::memcpy(one, &v(b, c, t), sizeof(T));
        bytes.insert(bytes.end(), one, one + sizeof(T));
      }
    }
  }
  return bytes;
}

template <class T>
class CausalConvolution : public testing::Test {};
using scalars = test_scalars::some;
TYPED_TEST_SUITE(CausalConvolution, scalars);

TYPED_TEST(CausalConvolution, FollowsItsDefinitionInEveryLayout) {
  // Below, at and above a packet, a tile and a block, in every direction.
  const index shapes[][4] = {{1, 1, 1, 1},  {2, 3, 7, 4},    {1, 70, 5, 4},     {2, 65, 130, 4},
                             {1, 9, 40, 2}, {1, 5, 2100, 3}, {1, 33, 20, 61},   {3, 17, 16, 1},
                             {1, 2, 3, 8},  {1, 200, 1, 4},  {1, 3, 1024, 130}, {2, 0, 5, 3}};
  unsigned seed = 1;
  for (const auto& s : shapes) {
    for (const layout l : layouts) {
      for (const int choice : {0, 1, 2, 3, 7}) {
        problem<TypeParam> p(s[0], s[1], s[2], s[3], seed++);
        p.with_bias = (choice & 1) != 0;
        p.with_state = (choice & 2) != 0;
        p.silu = (choice & 4) != 0 || choice == 0;
        const laid_out<TypeParam> x(l, p.x);
        const laid_out<TypeParam> out(l, s[0], s[1], s[2]);
        auto state = p.past;
        heed::causal_convolution_into(out.view(), x.view(), p.weight, p.options(state));
        expect_defined(p, out.view(), state);
        if (testing::Test::HasFatalFailure()) return;
        if (l == layout::spread) {
          for (std::size_t i = 0; i < out.memory().size(); ++i) {
            if (i % 3 != 0) {
              ASSERT_EQ(static_cast<double>(out.memory()[i]), -77.0);
            }
          }
        }
      }
    }
  }
}

TYPED_TEST(CausalConvolution, FollowsItsDefinitionOverRandomShapes) {
  EXPECT_TRUE(rc::check([] {
    problem<TypeParam> p(*rc::gen::inRange<index>(1, 3), *rc::gen::inRange<index>(1, 90),
                         *rc::gen::inRange<index>(0, 150), *rc::gen::inRange<index>(1, 9),
                         *rc::gen::arbitrary<unsigned>());
    p.with_bias = *rc::gen::arbitrary<bool>();
    p.with_state = *rc::gen::arbitrary<bool>();
    p.silu = *rc::gen::arbitrary<bool>();
    const laid_out<TypeParam> x(*rc::gen::elementOf(std::to_array(layouts)), p.x);
    const laid_out<TypeParam> out(*rc::gen::elementOf(std::to_array(layouts)), p.x.extent(0),
                                  p.x.extent(1), p.x.extent(2));
    auto state = p.past;
    heed::causal_convolution_into(out.view(), x.view(), p.weight, p.options(state));
    expect_defined(p, out.view(), state);
    RC_ASSERT(!testing::Test::HasFatalFailure());
  }));
}

TYPED_TEST(CausalConvolution, GivesTheSameBitsInPiecesAndInEveryLayout) {
  for (const index taps : {1, 2, 4, 7}) {
    problem<TypeParam> p(2, 37, 190, taps, 5);
    p.silu = true;
    auto whole_state = p.past;
    const auto whole = heed::causal_convolution(p.x, p.weight, p.options(whole_state));
    for (const layout l : layouts) {
      const laid_out<TypeParam> x(l, p.x);
      const laid_out<TypeParam> out(l, 2, 37, 190);
      auto state = p.past;
      index at = 0;
      for (const index piece : {1, 1, 0, 2, 3, 15, 16, 17, 64, 70, 1}) {
        heed::causal_convolution_into(out.view().slice(2, at, at + piece),
                                      x.view().slice(2, at, at + piece), p.weight,
                                      p.options(state));
        at += piece;
      }
      ASSERT_EQ(at, 190);
      EXPECT_EQ(bytes_of(out.view()), bytes_of(as_view(whole)));
      EXPECT_EQ(bytes_of(as_view(state)), bytes_of(as_view(whole_state)));
    }
  }
}

TYPED_TEST(CausalConvolution, MayWriteOverItsInput) {
  for (const layout l : layouts) {
    problem<TypeParam> p(2, 37, 150, 4, 6);
    const laid_out<TypeParam> x(l, p.x);
    auto state = p.past;
    heed::causal_convolution_into(x.view(), x.view(), p.weight, p.options(state));
    expect_defined(p, x.view(), state);
  }
}

TEST(ParallelCausalConvolution, GivesTheSameBitsForAnyNumberOfThreads) {
  heed::thread_pool pool(3);
  heed::workspace scratch;
  for (const layout l : layouts) {
    problem<float> p(2, 300, 70, 4, 7);
    p.silu = true;
    const laid_out<float> x(l, p.x);
    const laid_out<float> one(l, 2, 300, 70);
    const laid_out<float> many(l, 2, 300, 70);
    auto one_state = p.past;
    auto many_state = p.past;
    heed::serial_executor serial;
    heed::causal_convolution_into(serial, one.view(), x.view(), p.weight, p.options(one_state));
    auto options = p.options(many_state);
    options.scratch = &scratch;
    heed::causal_convolution_into(pool, many.view(), x.view(), p.weight, options);
    EXPECT_EQ(one.memory(), many.memory());
    EXPECT_EQ(bytes_of(as_view(one_state)), bytes_of(as_view(many_state)));
    const auto returned = heed::causal_convolution(pool, x.view(), p.weight, {.silu = true});
    const auto returned_serially = heed::causal_convolution(x.view(), p.weight, {.silu = true});
    EXPECT_EQ(bytes_of(as_view(returned)), bytes_of(as_view(returned_serially)));
  }
}

TEST(CausalConvolutionCalls, NoTokensLeaveTheStateAlone) {
  problem<float> p(2, 5, 0, 4, 8);
  auto state = p.past;
  const auto out = heed::causal_convolution(p.x, p.weight, p.options(state));
  EXPECT_EQ(out.size(), 0);
  EXPECT_EQ(bytes_of(as_view(state)), bytes_of(as_view(p.past)));
}

// Sequences one after another are as many calls; one without tokens keeps its state.
TEST(CausalConvolutionCalls, RaggedBatchesAreSeparateCalls) {
  const index bounds[] = {0, 40, 40, 42, 100};
  std::mt19937 engine(3);
  std::normal_distribution<float> normal;
  heed::tensor<float, 3> x({1, 5, 100}), states({4, 5, 3});
  heed::tensor<float, 2> weight({5, 4});
  for (index i = 0; i < x.size(); ++i) x.data()[i] = normal(engine);
  for (index i = 0; i < states.size(); ++i) states.data()[i] = normal(engine);
  for (index i = 0; i < weight.size(); ++i) weight.data()[i] = normal(engine);
  auto after = states;
  const auto out = heed::causal_convolution(
      x, weight, {.state = heed::as_view(after), .sequence_bounds = bounds});
  for (index n = 0; n < 4; ++n) {
    auto copy = states;
    heed::tensor<float, 3> alone({1, 5, bounds[n + 1] - bounds[n]});
    heed::causal_convolution_into(alone, heed::as_view(x).slice(2, bounds[n], bounds[n + 1]),
                                  weight, {.state = heed::as_view(copy).slice(0, n, n + 1)});
    for (index c = 0; c < 5; ++c) {
      for (index t = bounds[n]; t < bounds[n + 1]; ++t) {
        ASSERT_EQ(out(0, c, t), alone(0, c, t - bounds[n]));
      }
      for (index j = 0; j < 3; ++j) ASSERT_EQ(after(n, c, j), copy(n, c, j));
    }
  }
}

TEST(CausalConvolutionCalls, FewTokensShiftTheState) {
  const auto weight = random_tensor<float>({1, 5}, 1);
  heed::tensor<float, 3> state({1, 1, 4});
  for (index j = 0; j < 4; ++j) state(0, 0, j) = static_cast<float>(j);
  heed::tensor<float, 2> x({1, 2});
  x(0, 0) = 10;
  x(0, 1) = 11;
  (void)heed::causal_convolution(x, weight, {.state = as_view(state)});
  for (const auto& [at, want] :
       {std::pair<index, float>{0, 2.0F}, {1, 3.0F}, {2, 10.0F}, {3, 11.0F}}) {
    EXPECT_EQ(state(0, 0, at), want);
  }
}

TEST(CausalConvolutionCalls, TheLastTapMeetsTheTokenItself) {
  heed::tensor<float, 2> weight({1, 3});
  weight(0, 0) = 100;
  weight(0, 1) = 10;
  weight(0, 2) = 1;
  heed::tensor<float, 2> x({1, 4});
  for (index t = 0; t < 4; ++t) x(0, t) = static_cast<float>(t + 1);
  const auto y = heed::causal_convolution(x, weight);
  EXPECT_EQ(y(0, 0), 1.0F);
  EXPECT_EQ(y(0, 1), 12.0F);
  EXPECT_EQ(y(0, 2), 123.0F);
  EXPECT_EQ(y(0, 3), 234.0F);
}

TEST(CausalConvolutionCalls, TakesMatricesAndMixedScalars) {
  Eigen::MatrixXf x = Eigen::MatrixXf::Random(6, 20);  // columns are contiguous: channels
  const Eigen::MatrixXf weight = Eigen::MatrixXf::Random(6, 4);
  const auto y = heed::causal_convolution(x, weight);
  static_assert(std::is_same_v<std::remove_cvref_t<decltype(y)>, Eigen::MatrixXf>);
  for (index c = 0; c < 6; ++c) {
    for (index t = 0; t < 20; ++t) {
      double want = 0;
      for (index j = 0; j < 4; ++j) {
        if (t + j >= 3)
          want += static_cast<double>(weight(c, j)) * static_cast<double>(x(c, t + j - 3));
      }
      EXPECT_NEAR(static_cast<double>(y(c, t)), want, 5 * 1.2e-7 * 4);
    }
  }
  const auto low = random_tensor<heed::bfloat16>({1, 6, 20}, 9);
  heed::tensor<float, 3> out({1, 6, 20});
  heed::causal_convolution_into(out, low, weight);
  heed::tensor<float, 3> widened({1, 6, 20});
  for (index i = 0; i < low.size(); ++i) widened.data()[i] = static_cast<float>(low.data()[i]);
  const auto wide = heed::causal_convolution(widened, weight);
  EXPECT_EQ(bytes_of(as_view(out)), bytes_of(heed::view<const float, 3>(as_view(wide))));
}

TEST(CausalConvolutionCalls, ANanReachesItsOwnChannelAndTheNextTaps) {
  for (const layout l : {layout::channel_rows, layout::token_rows}) {
    problem<float> p(1, 19, 90, 4, 10);
    p.x(0, 7, 50) = std::numeric_limits<float>::quiet_NaN();
    p.weight(7, 1) = 0;
    p.silu = true;
    auto state = p.past;
    const laid_out<float> x(l, p.x);
    const laid_out<float> out(l, 1, 19, 90);
    heed::causal_convolution_into(out.view(), x.view(), p.weight, p.options(state));
    for (index c = 0; c < 19; ++c) {
      for (index t = 0; t < 90; ++t) {
        EXPECT_EQ(std::isnan(out.view()(0, c, t)), c == 7 && t >= 50 && t < 54) << c << ", " << t;
      }
    }
  }
}

TEST(CausalConvolutionCalls, SiluHoldsAtItsExtremes) {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const float at[] = {0.0F,   -0.0F, 1e-30F, -1e-30F, 20.0F,  -20.0F, 87.0F,
                      -87.0F, 90.0F, -90.0F, 3e38F,   -3e38F, inf};
  heed::tensor<float, 2> weight({1, 1});
  weight(0, 0) = 1;
  for (const float s : at) {
    heed::tensor<float, 2> x({1, 1});
    x(0, 0) = s;
    const auto y = static_cast<double>(heed::causal_convolution(x, weight, {.silu = true})(0, 0));
    const auto d = static_cast<double>(s);
    const double want = d / (1 + std::exp(-d));
    if (std::isinf(s)) {
      EXPECT_EQ(y, want);
      continue;
    }
    EXPECT_NEAR(y, want,
                (std::abs(d) + 8) * 1.2e-7 * std::abs(want) + std::abs(std::min(d, 0.0)) * 1.2e-38)
        << s;
  }
  heed::tensor<float, 2> x({1, 1});
  x(0, 0) = -inf;
  EXPECT_TRUE(std::isnan(heed::causal_convolution(x, weight, {.silu = true})(0, 0)));
}

template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const heed::shape_error& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST(CausalConvolutionErrors, NameTheArgumentAndBothExtents) {
  problem<float> p(2, 5, 9, 4, 11);
  heed::tensor<float, 3> out({2, 5, 9});
  const auto before = bytes_of(as_view(out));
  auto state = p.past;
  const auto call = [&](const auto& weight, const auto& options) {
    return message_of([&] { heed::causal_convolution_into(out, p.x, weight, options); });
  };
  using options = heed::causal_convolution_options<float, float>;
  const heed::tensor<float, 2> other_channels({6, 4});
  EXPECT_EQ(call(other_channels, options{}), "weight has channels 6, x has 5");
  const heed::tensor<float, 2> no_taps({5, 0});
  EXPECT_EQ(call(no_taps, options{}), "weight has taps 0, must be at least 1");
  const heed::tensor<float, 1> bias({4});
  EXPECT_EQ(call(p.weight, options{.bias = as_view(bias)}), "bias has channels 4, x has 5");
  heed::tensor<float, 3> long_state({2, 5, 4});
  EXPECT_EQ(call(p.weight, options{.state = as_view(long_state)}),
            "state has extents [2, 5, 4], the call needs [2, 5, 3] (taps - 1 inputs)");
  EXPECT_EQ(bytes_of(as_view(out)), before);
  EXPECT_EQ(bytes_of(as_view(state)), bytes_of(as_view(p.past)));
  heed::tensor<float, 3> short_out({2, 5, 8});
  EXPECT_EQ(message_of([&] { heed::causal_convolution_into(short_out, p.x, p.weight); }),
            "out has extents [2, 5, 8], the result has [2, 5, 9]");
}

}  // namespace
