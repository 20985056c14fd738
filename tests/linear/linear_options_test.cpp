// SPDX-License-Identifier: MIT
// Options in braces are what the same options with their type are, in every form of a call; a scale
// that is no number of the accumulator is refused.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>

#include "heed/linear.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace {

using heed::index;
using heed::linear_form;
using heed::recurrence_options;
template <int R>
using tensor = heed::tensor<float, R>;

template <int R>
tensor<R> numbers(const std::array<index, static_cast<std::size_t>(R)>& extents, float phase) {
  tensor<R> t(extents);
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = 0.5F * std::sin(phase + 1.7F * static_cast<float>(i));
  }
  return t;
}
template <class T>
void expect_same(const T& a, const T& b) {
  ASSERT_EQ(a.extents(), b.extents());
  for (index i = 0; i < a.size(); ++i) ASSERT_EQ(a.data()[i], b.data()[i]);
}

TEST(OptionsInBraces, OfMatrixStates) {
  const auto q = numbers<3>({2, 30, 8}, 1), k = numbers<3>({2, 30, 8}, 2),
             v = numbers<3>({2, 30, 8}, 3);
  auto g = numbers<3>({2, 30, 8}, 4);
  for (index i = 0; i < g.size(); ++i) g.data()[i] = -std::abs(g.data()[i]);
  const recurrence_options o{.scale = 3, .form = linear_form::recurrent};
  recurrence_options changeable = o;
  const auto plain = heed::gated_attention(q, k, v, g);
  const auto want = heed::gated_attention(q, k, v, g, o);
  expect_same(heed::gated_attention(q, k, v, g, {}), plain);
  expect_same(heed::gated_attention(q, k, v, g, {.scale = 3, .form = linear_form::recurrent}),
              want);
  expect_same(heed::gated_attention(q, k, v, g, changeable), want);
  expect_same(heed::gated_attention(q, k, v, g, recurrence_options(o)), want);
  expect_same(heed::gated_attention(q, k, v, g, std::move(changeable)), want);

  heed::serial_executor exec;
  tensor<4> state({1, 2, 8, 8}), again({1, 2, 8, 8});
  const auto with_state = heed::gated_attention(exec, q, k, v, g, state, o);
  expect_same(
      heed::gated_attention(exec, q, k, v, g, again, {.scale = 3, .form = linear_form::recurrent}),
      with_state);
  expect_same(state, again);
  tensor<3> out(q.extents());
  heed::gated_attention_into(out, q, k, v, g, {.scale = 3, .form = linear_form::recurrent});
  expect_same(out, want);
  tensor<3> other(q.extents());
  heed::gated_attention_into(exec, other, q, k, v, g, {.scale = 3, .form = linear_form::recurrent});
  expect_same(other, want);
}

TEST(OptionsInBraces, OfScansAndFeatures) {
  const auto x = numbers<3>({1, 30, 8}, 1), dt = numbers<3>({1, 30, 8}, 2),
             b = numbers<3>({1, 30, 4}, 3);
  const auto a = numbers<2>({8, 4}, 4);
  expect_same(heed::hgrn(x, dt, {.form = linear_form::scan}),
              heed::hgrn(x, dt, heed::scan_options{.form = linear_form::scan}));
  // The type of the options follows the first input's.
  expect_same(
      heed::selective_scan(x, dt, a, b, b, {.softplus = true}),
      heed::selective_scan(x, dt, a, b, b, heed::selective_scan_options<float>{.softplus = true}));
  expect_same(heed::cosformer_attention(x, x, x, {.causal = false}),
              heed::cosformer_attention(x, x, x, heed::cosformer_options{.causal = false}));
}

TEST(LinearScale, IsANumberOfTheAccumulator) {
  const auto q = numbers<3>({2, 30, 8}, 1);
  for (const double scale : {1e40, -1e40, std::nan(""), HUGE_VAL}) {
    const auto refused = [&](const auto& call) {
      try {
        call();
      } catch (const heed::option_error& e) {
        return std::string(e.what()).find("scale") != std::string::npos;
      }
      return false;
    };
    EXPECT_TRUE(refused([&] { (void)heed::gated_attention(q, q, q, q, {.scale = scale}); }));
    EXPECT_TRUE(refused(
        [&] { (void)heed::linear_attention(q, q, q, {.normalise = false, .scale = scale}); }));
    const heed::random_directions<float> w(8, 16, 1);
    EXPECT_TRUE(refused([&] { (void)heed::performer_attention(q, q, q, w, {.scale = scale}); }));
  }
}

}  // namespace
