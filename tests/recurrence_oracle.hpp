// SPDX-License-Identifier: MIT
// Recurrences with a matrix state by plain loops in double, and random problems for them.
//
// Written from the formulas alone, a token at a time, S an array of rows: nothing here goes through
// the library's kernels.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "heed/linear.hpp"
#include "heed/tensor.hpp"

namespace recurrence_test {

using heed::index;
using heed::linear_form;
using heed::recurrence_options;

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
inline const char* name_of(method m) {
  constexpr const char* names[] = {"retention",
                                   "lightning",
                                   "scalar_gated",
                                   "gated",
                                   "ssd",
                                   "rwkv6",
                                   "delta",
                                   "gated_delta",
                                   "channel_gated_delta",
                                   "low_rank",
                                   "diagonal_low_rank",
                                   "rwkv7"};
  return names[static_cast<int>(m)];
}

struct shape {
  index batch = 1, q_heads = 1, k_heads = 1, v_heads = 1, tokens = 1, d = 4, dv = 4;
  [[nodiscard]] index state_heads() const { return std::max(k_heads, v_heads); }
  [[nodiscard]] index out_heads() const { return std::max(q_heads, state_heads()); }
};

/// How gates are drawn: around one value, or mixed with resets.
enum class gates { mild, zero, tiny, strong, resets };

template <class T>
struct problem {
  shape s;
  heed::tensor<T, 4> q, k, v, g, a, b;
  heed::tensor<T, 3> scalar_g, beta, dt;
  heed::tensor<T, 2> u;
  heed::tensor<T, 1> rate, skip;
  heed::tensor<heed::accumulate_t<T>, 4> state;

  problem(const shape& sh, gates kind, unsigned seed)
      : s(sh),
        q({sh.batch, sh.q_heads, sh.tokens, sh.d}),
        k({sh.batch, sh.k_heads, sh.tokens, sh.d}),
        v({sh.batch, sh.v_heads, sh.tokens, sh.dv}),
        g({sh.batch, sh.state_heads(), sh.tokens, sh.d}),
        a({sh.batch, sh.k_heads, sh.tokens, sh.d}),
        b({sh.batch, sh.k_heads, sh.tokens, sh.d}),
        scalar_g({sh.batch, sh.state_heads(), sh.tokens}),
        beta({sh.batch, sh.state_heads(), sh.tokens}),
        dt({sh.batch, sh.v_heads, sh.tokens}),
        u({sh.state_heads(), sh.d}),
        rate({sh.state_heads()}),
        skip({sh.v_heads}),
        state({sh.batch, sh.state_heads(), sh.d, sh.dv}) {
    std::mt19937 engine(seed);
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> uniform;
    const auto fill = [&](auto& x, auto&& draw) {
      using S = std::remove_cvref_t<decltype(x.data()[0])>;
      for (index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<S>(draw());
    };
    const auto gate = [&] {
      switch (kind) {
        case gates::zero:
          return 0.0;
        case gates::tiny:
          return -1e-3 * uniform(engine);
        case gates::strong:
          return uniform(engine) < 0.3 ? -50.0 : -0.1 * uniform(engine);
        case gates::resets:
          return uniform(engine) < 0.2 ? -std::numeric_limits<double>::infinity()
                                       : -uniform(engine);
        default:
          return std::log(1 - 0.3 * uniform(engine));
      }
    };
    fill(q, [&] { return normal(engine); });
    fill(k, [&] { return normal(engine); });
    fill(v, [&] { return normal(engine); });
    fill(g, gate);
    fill(scalar_g, gate);
    fill(beta, [&] { return uniform(engine); });
    fill(dt, [&] { return 0.1 + uniform(engine); });
    fill(rate, [&] { return -0.05 - uniform(engine); });
    fill(skip, [&] { return normal(engine); });
    fill(u, [&] { return normal(engine); });
    fill(state, [&] { return normal(engine); });
    // Unit keys (less a rounding), so that I - beta k k' does not amplify; a = -k', b = beta k'.
    for (index i = 0; i < sh.batch * sh.k_heads * sh.tokens; ++i) {
      std::vector<double> unit(static_cast<std::size_t>(sh.d));
      double length = 0;
      for (index f = 0; f < sh.d; ++f) length += std::pow(double(k.data()[i * sh.d + f]), 2);
      const double rate_b = uniform(engine);
      for (index f = 0; f < sh.d; ++f) {
        const double x = 0.99 * double(k.data()[i * sh.d + f]) / std::sqrt(length + 1e-12);
        k.data()[i * sh.d + f] = static_cast<T>(x);
        a.data()[i * sh.d + f] = static_cast<T>(-x);
        b.data()[i * sh.d + f] = static_cast<T>(rate_b * x);
      }
    }
  }
};

struct expected {
  heed::tensor<double, 4> out, state;
  heed::tensor<double, 4> out_size;    ///< |q| times the largest column of S so far, and v
  heed::tensor<double, 4> state_size;  ///< the largest |S column| and |v| so far
};

/// The definition. `scale` as the member's default.
template <class T>
expected oracle(method m, const problem<T>& p, bool with_state) {
  const shape& s = p.s;
  const index heads = s.state_heads();
  expected e{heed::tensor<double, 4>({s.batch, s.out_heads(), s.tokens, s.dv}),
             heed::tensor<double, 4>({s.batch, heads, s.d, s.dv}),
             heed::tensor<double, 4>({s.batch, s.out_heads(), s.tokens, s.dv}),
             heed::tensor<double, 4>({s.batch, heads, s.d, s.dv})};
  const bool unscaled = m == method::ssd || m == method::rwkv6 || m == method::rwkv7;
  const double scale = unscaled ? 1 : 1 / std::sqrt(double(s.d));
  const bool low = m == method::low_rank || m == method::diagonal_low_rank || m == method::rwkv7;
  const bool is_delta =
      m == method::delta || m == method::gated_delta || m == method::channel_gated_delta;
  for (index b = 0; b < s.batch; ++b) {
    for (index h = 0; h < heads; ++h) {
      const index kh = h * s.k_heads / heads, vh = h * s.v_heads / heads;
      for (index c = 0; c < s.dv; ++c) {  // columns of S do not meet
        std::vector<double> S(static_cast<std::size_t>(s.d));
        for (index f = 0; f < s.d; ++f) {
          S[std::size_t(f)] = with_state ? double(p.state(b, h, f, c)) : 0.0;
        }
        double largest = 0;
        const auto watch = [&] {
          double size = 0;
          for (const double x : S) size += x * x;
          largest = std::max(largest, std::sqrt(size));
        };
        watch();
        for (index t = 0; t < s.tokens; ++t) {
          const auto gate = [&](index f) -> double {
            switch (m) {
              case method::retention:
                return std::log(1 - std::pow(2.0, -5.0 - double(h)));
              case method::lightning:
                return -8.0 / double(heads) * (1 - 1.0 / 4) * double(h);
              case method::scalar_gated:
              case method::gated_delta:
                return double(p.scalar_g(b, h, t));
              case method::ssd:
                return double(p.rate(h)) * double(p.dt(b, vh, t));
              case method::delta:
              case method::low_rank:
                return 0;
              default:
                return double(p.g(b, h, t, f));
            }
          };
          double value = double(p.v(b, vh, t, c));
          const double raw = value;
          if (m == method::ssd) value *= double(p.dt(b, vh, t));
          const auto key = [&](index f) { return double(p.k(b, kh, t, f)); };
          std::vector<double> read = S;  // what the query meets
          if (m == method::rwkv6) {
            for (index f = 0; f < s.d; ++f) {
              read[std::size_t(f)] += double(p.u(h, f)) * key(f) * value;
            }
          }
          double taken = 0;  // a'S of the old S, or k'S of the decayed one
          for (index f = 0; low && f < s.d; ++f) {
            taken += double(p.a(b, kh, t, f)) * S[std::size_t(f)];
          }
          for (index f = 0; f < s.d; ++f) S[std::size_t(f)] *= std::exp(gate(f));
          for (index f = 0; is_delta && f < s.d; ++f) taken += key(f) * S[std::size_t(f)];
          if (is_delta) value = double(p.beta(b, h, t)) * (value - taken);
          for (index f = 0; f < s.d; ++f) {
            S[std::size_t(f)] += key(f) * value;
            if (low) S[std::size_t(f)] += double(p.b(b, kh, t, f)) * taken;
          }
          if (m != method::rwkv6) read = S;
          watch();
          largest = std::max(largest, std::abs(raw) + std::abs(value));
          const index group = s.out_heads() / heads;
          for (index o = h * group; o < (h + 1) * group; ++o) {
            const index qh = o * s.q_heads / s.out_heads();
            double sum = 0, length = 0;
            for (index f = 0; f < s.d; ++f) {
              const double x = double(p.q(b, qh, t, f));
              sum += x * read[std::size_t(f)];
              length += x * x;
            }
            double bonus_size = 0;  // |q| |u k|
            for (index f = 0; m == method::rwkv6 && f < s.d; ++f) {
              bonus_size += std::pow(double(p.u(h, f)) * key(f), 2);
            }
            e.out(b, o, t, c) = scale * sum;
            e.out_size(b, o, t, c) =
                scale * std::sqrt(length) * largest * (1 + std::sqrt(bonus_size));
            if (m == method::ssd) {
              e.out(b, o, t, c) += double(p.skip(vh)) * raw;
              e.out_size(b, o, t, c) += std::abs(double(p.skip(vh)) * raw);
            }
          }
        }
        for (index f = 0; f < s.d; ++f) {
          e.state(b, h, f, c) = S[std::size_t(f)];
          e.state_size(b, h, f, c) = largest;
        }
      }
    }
  }
  return e;
}

/// The member's public function; `state` may be null.
template <class T, class E, class Out, class State>
void run_into(E& exec, method m, Out&& out, const problem<T>& p, State&& state,
              const recurrence_options& o) {
  const auto call = [&](const auto& function, const auto&... in) {
    if constexpr (std::is_null_pointer_v<std::remove_cvref_t<State>>) {
      function(exec, out, p.q, p.k, p.v, in..., o);
    } else {
      function(exec, out, p.q, p.k, p.v, in..., *state, o);
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

template <class T>
double storage_epsilon() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -10);
  if constexpr (std::is_same_v<T, heed::bfloat16>) return std::ldexp(1.0, -7);
  return double(std::numeric_limits<T>::epsilon());
}

/// Roundings on the way: each token adds a decay, a read of Dk terms and a write to what S and the
/// corrections carry. No step amplifies (decays <= 1, |I + b a'| <= 1 for the keys drawn), so that
/// errors of the steps add up: T (4 units, |g| of the exponentials among them) + Dk.
/// A sum of roundings of random signs stays far below it, and a wrong term far above.
template <class T>
double rounding(const shape& s) {
  return double(4 * s.tokens + s.d + 20) *
         double(std::numeric_limits<heed::accumulate_t<T>>::epsilon());
}

template <class T, int R>
void expect_near(const heed::view<T, 4>& got, const heed::tensor<double, 4>& want,
                 const heed::tensor<double, 4>& size, double eps, const std::string& what) {
  static_assert(R == 4);
  ASSERT_EQ(got.extents(), want.extents()) << what;
  for (index b = 0; b < got.extent(0); ++b) {
    for (index h = 0; h < got.extent(1); ++h) {
      for (index i = 0; i < got.extent(2); ++i) {
        for (index c = 0; c < got.extent(3); ++c) {
          const double w = want(b, h, i, c);
          // Gates that have all but forgotten leave numbers that are not normal.
          ASSERT_NEAR(double(got(b, h, i, c)), w,
                      eps * size(b, h, i, c) +
                          storage_epsilon<std::remove_const_t<T>>() * std::abs(w) + 1e-30)
              << what << " at " << b << ' ' << h << ' ' << i << ' ' << c;
        }
      }
    }
  }
}

inline bool has_parallel_form(method m) { return m < method::delta; }

/// Every form of a member against the definition, with and without a state.
template <class T>
void expect_forms(method m, const problem<T>& p, const recurrence_options& base = {}) {
  for (const bool with_state : {true, false}) {
    const expected want = oracle(m, p, with_state);
    for (const auto form : {linear_form::recurrent, linear_form::chunked, linear_form::parallel}) {
      if (form == linear_form::parallel && !has_parallel_form(m)) continue;
      recurrence_options o = base;
      o.form = form;
      const std::string what = std::string(name_of(m)) + " form " +
                               std::to_string(static_cast<int>(form)) + " tokens " +
                               std::to_string(p.s.tokens) + " d " + std::to_string(p.s.d) + " dv " +
                               std::to_string(p.s.dv);
      heed::tensor<T, 4> out(want.out.extents());
      heed::serial_executor exec;
      if (with_state) {
        auto state = p.state;
        run_into(exec, m, out, p, &state, o);
        expect_near<heed::accumulate_t<T>, 4>(heed::as_view(state), want.state, want.state_size,
                                              rounding<T>(p.s), what + " state");
      } else {
        run_into(exec, m, out, p, nullptr, o);
      }
      expect_near<T, 4>(heed::as_view(out), want.out, want.out_size, rounding<T>(p.s), what);
      if (testing::Test::HasFailure()) return;
    }
  }
}

}  // namespace recurrence_test
