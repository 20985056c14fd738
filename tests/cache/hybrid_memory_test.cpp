// SPDX-License-Identifier: MIT
// Hybrid memory: random steps, steps given up, rollbacks, forks and files, against a replay of the
// tokens that are left.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cstring>
#include <optional>
#include <sstream>
#include <utility>
#include <vector>

#include "heed/attention.hpp"
#include "heed/cache.hpp"
#include "heed/linear.hpp"
#include "heed/score.hpp"
#include "support/attention_oracle.hpp"

namespace {

using heed::index;
using memory = heed::hybrid_memory<heed::contiguous_cache<float>>;

constexpr index heads = 2;
constexpr index dim = 4;
constexpr index taps = 3;

/// Four layers: attention, gated linear attention, a convolution, a selective scan.
memory blank(index history) {
  memory m(history);
  m.add_cache(heed::contiguous_cache<float>({.kv_heads = heads, .capacity = 200, .head_dim = dim}));
  m.add_state({1, heads, dim, dim});
  m.add_state({1, heads * dim, taps - 1});
  m.add_state({1, heads * dim, dim});
  return m;
}

/// The inputs of a token follow from its number.
struct inputs {
  explicit inputs(const std::vector<unsigned>& ids)
      : k({1, heads, static_cast<index>(ids.size()), dim}),
        gate(k.extents()),
        x({1, heads * dim, static_cast<index>(ids.size())}),
        b({1, static_cast<index>(ids.size()), dim}) {
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto t = oracle::random_tensor<float, 1>({heads * dim}, ids[i]);
      const auto n = static_cast<index>(i);
      for (index c = 0; c < heads * dim; ++c) {
        k(0, c / dim, n, c % dim) = t(c);
        gate(0, c / dim, n, c % dim) = -t(c) * t(c);
        x(0, c, n) = t(c);
        if (c < dim) b(0, n, c) = t(c);
      }
    }
  }
  heed::tensor<float, 4> k, gate;
  heed::tensor<float, 3> x, b;
};

/// The outputs of all layers, one after another.
struct outputs {
  heed::tensor<float, 4> attended, gated;
  heed::tensor<float, 3> convolved, scanned;
};

class layers {
 public:
  layers()
      : weight_(oracle::random_tensor<float, 2>({heads * dim, taps}, 5)), a_({heads * dim, dim}) {
    for (index i = 0; i < a_.size(); ++i) a_.data()[i] = -0.1F * static_cast<float>(i % 7 + 1);
  }

  /// One step of the tokens, the recurrent layers at once or token by token. `fail_at`: a layer
  /// whose failure is feigned.
  void step(memory& m, const std::vector<unsigned>& ids, bool by_token,
            std::optional<int> fail_at = std::nullopt) const {
    const inputs in(ids);
    const auto n = static_cast<index>(ids.size());
    auto s = m.step(n);
    const auto reached = [&](int layer) {
      if (fail_at == layer) throw std::runtime_error("a layer fails");
    };
    (void)heed::decode(in.k, in.k, in.k, s.cache(0), {}, heed::causal());
    reached(0);
    if (!by_token) {
      gated(in, 0, n, s.state<4>(0));
      reached(1);
      convolve(in, 0, n, s.state<3>(1));
      scan(in, 0, n, s.state<3>(2));
      reached(2);
    } else {
      s.by_token<4>(0, [&](index t, auto state) { gated(in, t, t + 1, state); });
      reached(1);
      s.by_token<3>(1, [&](index t, auto state) { convolve(in, t, t + 1, state); });
      s.by_token<3>(2, [&](index t, auto state) { scan(in, t, t + 1, state); });
      reached(2);
    }
    s.commit();
  }

 private:
  static void gated(const inputs& in, index from, index to, heed::view<float, 4> state) {
    const auto k = heed::as_view(in.k).slice(2, from, to);
    (void)heed::gated_attention(k, k, k, heed::as_view(in.gate).slice(2, from, to), state);
  }
  void convolve(const inputs& in, index from, index to, heed::view<float, 3> state) const {
    (void)heed::causal_convolution(heed::as_view(in.x).slice(2, from, to), weight_,
                                   {.state = state});
  }
  void scan(const inputs& in, index from, index to, heed::view<float, 3> state) const {
    const auto x = heed::as_view(in.x).swap_axes(1, 2).slice(1, from, to);
    const auto b = heed::as_view(in.b).slice(1, from, to);
    (void)heed::selective_scan(x, x, a_, b, b, state);
  }
  heed::tensor<float, 2> weight_, a_;
};

std::string file_of(const memory& m) {
  std::ostringstream to;
  heed::save_cache(to, m);
  return to.str();
}

/// The same tokens and states, bit for bit.
bool same(const memory& a, const memory& b) {
  if (a.length() != b.length() || a.cache(0).length() != b.cache(0).length()) return false;
  const auto bits = [](const auto& x, const auto& y) {
    return std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * sizeof(float)) == 0;
  };
  if (!bits(a.state<4>(0), b.state<4>(0)) || !bits(a.state<3>(1), b.state<3>(1)) ||
      !bits(a.state<3>(2), b.state<3>(2))) {
    return false;
  }
  for (index h = 0; h < heads; ++h) {
    const auto x = a.cache(0).keys(0, h, 0);
    const auto y = b.cache(0).keys(0, h, 0);
    if (std::memcmp(x.data, y.data, static_cast<std::size_t>(a.length() * dim) * sizeof(float)) !=
        0) {
      return false;
    }
  }
  return true;
}

struct done {
  std::vector<unsigned> ids;
  bool by_token;
};

// The replay: the steps that are left, in order. A step cut in the middle had run token by token.
memory replay(const layers& l, index history, const std::vector<done>& steps) {
  memory m = blank(history);
  for (const done& d : steps) {
    if (!d.ids.empty()) l.step(m, d.ids, d.by_token);
  }
  return m;
}

RC_GTEST_PROP(HybridMemory, RollsBackToTheBitsOfAReplay, ()) {
  const layers l;
  const index history = *rc::gen::inRange<index>(0, 6);
  memory m = blank(history);
  std::vector<done> steps;
  unsigned next = 1;
  index shrunk = 0;
  for (int i = 0; i < 14; ++i) {
    const int what = *rc::gen::inRange(0, 6);
    std::vector<unsigned> ids(*rc::gen::inRange<std::size_t>(0, 10));
    for (unsigned& id : ids) id = next++;
    const bool by_token = *rc::gen::arbitrary<bool>();
    if (what < 3) {
      l.step(m, ids, by_token);
      steps.push_back({ids, by_token});
    } else if (what == 3) {
      const memory before = m.fork();
      EXPECT_THROW(l.step(m, ids, by_token, *rc::gen::inRange(0, 3)), std::runtime_error);
      RC_ASSERT(same(m, before));
    } else if (what == 4) {
      std::istringstream from(file_of(m));
      memory again = heed::load_cache<memory>(from);
      RC_ASSERT(file_of(again) == file_of(m));
      m = std::move(again);
    } else {
      const index k = *rc::gen::inRange<index>(0, history + 2);
      if (!m.can_rollback(k)) {
        const memory before = m.fork();
        EXPECT_THROW(m.rollback(k), heed::option_error);
        RC_ASSERT(same(m, before));
        continue;
      }
      m.rollback(k);
      for (index left = k; left > 0;) {
        done& last = steps.back();
        const auto n = std::min(left, static_cast<index>(last.ids.size()));
        RC_ASSERT(n == static_cast<index>(last.ids.size()) || last.by_token);
        last.ids.resize(last.ids.size() - static_cast<std::size_t>(n));
        if (last.ids.empty()) steps.pop_back();
        left -= n;
      }
      shrunk += k;
    }
    RC_ASSERT(same(m, replay(l, history, steps)));
  }
  RC_TAG(shrunk > 0 ? "rolled back" : "only forward");
}

TEST(HybridMemory, ReachesBackAsFarAsItSays) {
  const layers l;
  memory m = blank(4);
  std::vector<unsigned> ids{1, 2, 3, 4, 5, 6, 7};
  l.step(m, ids, true);
  for (const index k : {0, 1, 2, 3, 4}) EXPECT_TRUE(m.can_rollback(k)) << k;
  EXPECT_FALSE(m.can_rollback(5));
  l.step(m, {8, 9}, false);
  EXPECT_TRUE(m.can_rollback(2));
  EXPECT_FALSE(m.can_rollback(1));  // within a step that was computed at once
  EXPECT_TRUE(m.can_rollback(4));
  EXPECT_FALSE(m.can_rollback(5));
  m.rollback(4);
  EXPECT_EQ(m.length(), 5);
  EXPECT_TRUE(same(m, replay(l, 4, {{{1, 2, 3, 4, 5}, true}})));
  EXPECT_FALSE(m.can_rollback(-1));
  m.clear();
  EXPECT_TRUE(same(m, blank(4)));
}

TEST(HybridMemory, WithoutStatesRollsBackAnywhere) {
  heed::hybrid_memory<heed::slot_cache<float>> m;
  m.add_cache(heed::slot_cache<float>({.batch = 2, .capacity = 9, .head_dim = 3}));
  const auto k = oracle::random_tensor<float, 4>({2, 1, 8, 3}, 1);
  {
    auto s = m.step(8);
    s.cache(0).append(k, k);
    s.commit();
  }
  m.rollback(7);
  EXPECT_EQ(m.cache(0).length(1), 1);
  EXPECT_EQ(m.length(), 1);
}

TEST(HybridMemory, MisuseIsRefused) {
  EXPECT_THROW(memory(-1), heed::option_error);
  memory m = blank(2);
  EXPECT_THROW((void)m.step(-1), heed::shape_error);
  EXPECT_THROW((void)m.state<3>(0), heed::shape_error);
  EXPECT_THROW((void)m.state<4>(3), heed::shape_error);
  EXPECT_THROW((void)m.cache(1), heed::shape_error);
  {
    auto s = m.step(1);
    EXPECT_THROW((void)m.step(1), heed::option_error);
    EXPECT_THROW(m.rollback(0), heed::option_error);
    EXPECT_THROW((void)m.fork(), heed::option_error);
    EXPECT_THROW(s.commit(), heed::shape_error);  // the cache has no new token
    s.by_token<4>(0, [](index, auto) {});
    EXPECT_THROW(s.by_token<4>(0, [](index, auto) {}), heed::option_error);
    const auto k = oracle::random_tensor<float, 3>({heads, 1, dim}, 1);
    s.cache(0).append(k, k);
    s.commit();
  }
  EXPECT_EQ(m.length(), 1);
  EXPECT_THROW(m.add_state({1, 2}), heed::option_error);
  EXPECT_THROW(m.add_cache(heed::contiguous_cache<float>({.head_dim = 2})), heed::shape_error);
  EXPECT_THROW(m.rollback(2), heed::option_error);
}

}  // namespace
