// SPDX-License-Identifier: MIT
// The recurrences with a matrix state as a table, random problems for them in any layout of memory,
// and the call of each.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "heed/linear.hpp"
#include "heed/tensor.hpp"

namespace recurrence_test {

using heed::index;
using heed::linear_form;
using heed::recurrence_options;

/// What a member's definition is made of.
enum class decays { none, of_retention, of_lightning, of_token, of_rate, of_channel };
enum class writes { outer, delta, low_rank };
struct member {
  const char* name;
  decays decay;
  writes write;
  bool scaled;               ///< the default scale is 1 / sqrt(Dk), else 1
  bool read_before = false;  ///< and a bonus on the current token
};
enum class method {
  retention,
  lightning,
  scalar_gated,
  gated,
  ssd,
  rwkv6,
  delta,
  gated_delta,
  channel_gated_delta,
  low_rank,
  diagonal_low_rank,
  rwkv7
};
inline constexpr member members[] = {
    {"retention", decays::of_retention, writes::outer, true},
    {"lightning", decays::of_lightning, writes::outer, true},
    {"scalar_gated", decays::of_token, writes::outer, true},
    {"gated", decays::of_channel, writes::outer, true},
    {"ssd", decays::of_rate, writes::outer, false},
    {"rwkv6", decays::of_channel, writes::outer, false, true},
    {"delta", decays::none, writes::delta, true},
    {"gated_delta", decays::of_token, writes::delta, true},
    {"channel_gated_delta", decays::of_channel, writes::delta, true},
    {"low_rank", decays::none, writes::low_rank, true},
    {"diagonal_low_rank", decays::of_channel, writes::low_rank, true},
    {"rwkv7", decays::of_channel, writes::low_rank, false}};
inline const member& about(method m) { return members[static_cast<int>(m)]; }

/// f(member) for each of them, until one fails.
template <class F>
void for_each_method(F&& f) {
  for (std::size_t i = 0; i < std::size(members) && !testing::Test::HasFailure(); ++i) {
    SCOPED_TRACE(members[i].name);
    f(static_cast<method>(i));
  }
}

/// f(form) for each form that the member has.
template <class F>
void for_each_form(method m, F&& f) {
  for (const auto form : {linear_form::recurrent, linear_form::chunked, linear_form::parallel}) {
    if (form == linear_form::parallel && about(m).write != writes::outer) continue;
    SCOPED_TRACE("form " + std::to_string(static_cast<int>(form)));
    f(form);
  }
}

struct shape {
  index batch = 1, q_heads = 1, k_heads = 1, v_heads = 1, tokens = 1, d = 4, dv = 4;
  index fewer = 1;  ///< state heads to one of the gates, of beta and of what a head has
  [[nodiscard]] index state_heads() const { return std::max(k_heads, v_heads); }
  [[nodiscard]] index gate_heads() const { return state_heads() / fewer; }
  [[nodiscard]] index out_heads() const { return std::max(q_heads, state_heads()); }
  [[nodiscard]] std::string text() const {
    std::string s = "batch, heads of q k v, tokens, d, dv, fewer:";
    for (const index e : {batch, q_heads, k_heads, v_heads, tokens, d, dv, fewer}) {
      s += ' ' + std::to_string(e);
    }
    return s;
  }
};

/// How elements lie: in the order of the axes; [batch, tokens, heads, ...]; three apart with NaN
/// between them; every stride negative.
enum class layout { in_order, token_major, apart, backwards };

/// A tensor with its memory. The view follows a copy.
template <class T, int R>
class laid_out {
 public:
  using extents_type = std::array<index, static_cast<std::size_t>(R)>;

  explicit laid_out(const extents_type& e, layout how = layout::in_order)
      : extents_(e), memory_(1, static_cast<T>(std::numeric_limits<double>::quiet_NaN())) {
    std::array<std::size_t, static_cast<std::size_t>(R)> order{};
    for (std::size_t a = 0; a < e.size(); ++a) order[a] = a;
    if (how == layout::token_major && R >= 3) std::swap(order[1], order[R >= 3 ? 2 : 0]);
    index step = how == layout::apart ? 3 : 1;
    for (std::size_t a = e.size(); a-- > 0;) {
      strides_[order[a]] = how == layout::backwards ? -step : step;
      if (how == layout::backwards && e[order[a]] > 0) first_ += step * (e[order[a]] - 1);
      step *= e[order[a]];
    }
    memory_.resize(static_cast<std::size_t>(step) + 1, memory_[0]);
    if (step == 0) first_ = 0;
  }
  [[nodiscard]] heed::view<T, R> view() { return {memory_.data() + first_, extents_, strides_}; }
  [[nodiscard]] heed::view<const T, R> view() const {
    return {memory_.data() + first_, extents_, strides_};
  }
  [[nodiscard]] index size() const { return view().size(); }
  [[nodiscard]] const std::vector<T>& memory() const { return memory_; }

  /// f(element, its number in the order of the axes).
  template <class F>
  void each(F&& f) {
    for (index i = 0; i < size(); ++i) {
      index at = first_, rest = i;
      for (std::size_t a = extents_.size(); a-- > 0;) {
        at += rest % extents_[a] * strides_[a];
        rest /= extents_[a];
      }
      f(memory_[static_cast<std::size_t>(at)], i);
    }
  }

 private:
  extents_type extents_{}, strides_{};
  std::vector<T> memory_;
  index first_ = 0;
};

template <class V, class W>
[[nodiscard]] bool same_bits(const V& a, const W& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(*a.data())) ==
             0;
}

/// How gates are drawn: around one value, mixed with resets, or at the ends of their range.
enum class gates { mild, zero, tiny, strong, resets, vanishing, denormal };
inline constexpr gates all_gates[] = {gates::mild,    gates::zero,   gates::tiny,
                                      gates::strong,  gates::resets, gates::vanishing,
                                      gates::denormal};

/// Numbers of a counter, cheap enough for a million tokens.
class draws {
 public:
  explicit draws(std::uint64_t seed) : at_(seed * 0x9E3779B97F4A7C15U) {}
  /// In [0, 1).
  double uniform() {
    std::uint64_t z = at_ += 0x9E3779B97F4A7C15U;  // SplitMix64
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
    return static_cast<double>((z ^ (z >> 31U)) >> 11U) / 9007199254740992.0;
  }
  /// Of mean 0 and variance 1.
  double centred() { return std::sqrt(12.0) * (uniform() - 0.5); }
  double gate(gates kind) {
    const double u = uniform();
    switch (kind) {
      case gates::zero:
        return 0;
      case gates::tiny:
        return -1e-3 * u;
      case gates::strong:
        return u < 0.3 ? -50 : -0.1 * u;
      case gates::resets:
        return u < 0.2 ? -std::numeric_limits<double>::infinity() : -u;
      case gates::vanishing:
        return u < 0.3 ? -1e4 : u < 0.6 ? -88.5 : -u;  // exp(-88.5f) is denormal
      case gates::denormal:
        return -1e-40 * u;
      default:
        return std::log(1 - 0.3 * u);
    }
  }

 private:
  std::uint64_t at_;
};

/// What the functions read; `tokens` are some of them.
template <class T>
struct inputs {
  shape s;
  heed::view<const T, 4> q, k, v, g, a, b;
  heed::view<const T, 3> scalar_g, beta, dt;
  heed::view<const T, 2> u;
  heed::view<const T, 1> rate, skip;

  [[nodiscard]] inputs tokens(index from, index to) const {
    inputs x = *this;
    x.s.tokens = to - from;
    for (auto* p : {&x.q, &x.k, &x.v, &x.g, &x.a, &x.b}) *p = p->slice(2, from, to);
    for (auto* p : {&x.scalar_g, &x.beta, &x.dt}) *p = p->slice(2, from, to);
    return x;
  }
};

template <class T>
struct problem {
  shape s;
  laid_out<T, 4> q, k, v, g, a, b;
  laid_out<T, 3> scalar_g, beta, dt;
  laid_out<T, 2> u;
  laid_out<T, 1> rate, skip;
  laid_out<heed::accumulate_t<T>, 4> state;

  problem(const shape& sh, gates kind, std::uint64_t seed, layout how = layout::in_order)
      : s(sh),
        q({sh.batch, sh.q_heads, sh.tokens, sh.d}, how),
        k({sh.batch, sh.k_heads, sh.tokens, sh.d}, how),
        v({sh.batch, sh.v_heads, sh.tokens, sh.dv}, how),
        g({sh.batch, sh.gate_heads(), sh.tokens, sh.d}, how),
        a({sh.batch, sh.k_heads, sh.tokens, sh.d}, how),
        b({sh.batch, sh.k_heads, sh.tokens, sh.d}, how),
        scalar_g({sh.batch, sh.gate_heads(), sh.tokens}, how),
        beta({sh.batch, sh.gate_heads(), sh.tokens}, how),
        dt({sh.batch, sh.v_heads, sh.tokens}, how),
        u({sh.gate_heads(), sh.d}, how),
        rate({sh.gate_heads()}, how),
        skip({sh.v_heads}, how),
        state({sh.batch, sh.state_heads(), sh.d, sh.dv}, how) {
    draws from(seed);
    const auto fill = [&](auto& x, auto&& draw) {
      x.each(
          [&](auto& e, index) { e = static_cast<std::remove_reference_t<decltype(e)>>(draw()); });
    };
    fill(q, [&] { return from.centred(); });
    fill(v, [&] { return from.centred(); });
    fill(g, [&] { return from.gate(kind); });
    fill(scalar_g, [&] { return from.gate(kind); });
    fill(beta, [&] { return 2 * from.uniform(); });
    fill(dt, [&] { return 0.1 + from.uniform(); });
    fill(rate, [&] { return kind == gates::mild ? -0.05 - from.uniform() : from.gate(kind); });
    fill(skip, [&] { return from.centred(); });
    fill(u, [&] { return from.centred(); });
    fill(state, [&] { return from.centred(); });
    // Unit keys (less a rounding), so that I - beta k k' does not amplify for beta up to 2; a =
    // -k', b = beta k' with beta up to 1, since diag(d) + b a' may.
    std::vector<double> key(static_cast<std::size_t>(sh.d));
    const auto kv = k.view(), av = a.view(), bv = b.view();
    for (index i = 0; i < sh.batch * sh.k_heads * sh.tokens; ++i) {
      double length = 0;
      for (double& x : key) length += std::pow(x = from.centred(), 2);
      const double by = from.uniform();
      const index t = i % sh.tokens, h = i / sh.tokens % sh.k_heads, n = i / sh.tokens / sh.k_heads;
      for (index f = 0; f < sh.d; ++f) {
        const double x = 0.99 * key[std::size_t(f)] / std::sqrt(length + 1e-12);
        kv(n, h, t, f) = static_cast<T>(x);
        av(n, h, t, f) = static_cast<T>(-x);
        bv(n, h, t, f) = static_cast<T>(by * x);
      }
    }
  }

  [[nodiscard]] inputs<T> in() const {
    return {s,        q.view(),    k.view(),        v.view(),    g.view(),
            a.view(), b.view(),    scalar_g.view(), beta.view(), dt.view(),
            u.view(), rate.view(), skip.view()};
  }
};

/// The member's public function; a null state is none.
template <class T, class E, class State>
void run(E& exec, method m, const heed::view<T, 4>& out, const inputs<T>& p, const State& state,
         const recurrence_options& o) {
  const auto call = [&](const auto& function, const auto&... in) {
    if constexpr (std::is_null_pointer_v<State>) {
      function(exec, out, p.q, p.k, p.v, in..., o);
    } else {
      function(exec, out, p.q, p.k, p.v, in..., state, o);
    }
  };
  switch (m) {
    case method::retention:
      return call(heed::retention_into);
    case method::lightning:
      return call(heed::lightning_attention_into, heed::layer_position{.layer = 1, .layers = 4});
    case method::scalar_gated:
      return call(heed::scalar_gated_attention_into, p.scalar_g);
    case method::gated:
      return call(heed::gated_attention_into, p.g);
    case method::ssd:
      return call(heed::ssd_into, p.dt, p.rate, p.skip);
    case method::rwkv6:
      return call(heed::rwkv6_into, p.g, p.u);
    case method::delta:
      return call(heed::delta_attention_into, p.beta);
    case method::gated_delta:
      return call(heed::gated_delta_attention_into, p.scalar_g, p.beta);
    case method::channel_gated_delta:
      return call(heed::channel_gated_delta_attention_into, p.g, p.beta);
    case method::low_rank:
      return call(heed::low_rank_attention_into, p.a, p.b);
    case method::diagonal_low_rank:
      return call(heed::diagonal_low_rank_attention_into, p.a, p.b, p.g);
    case method::rwkv7:
      return call(heed::rwkv7_into, p.g, p.a, p.b);
  }
}

}  // namespace recurrence_test
