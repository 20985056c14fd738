// SPDX-License-Identifier: MIT
// Diagonal scans, causal convolution and rotary embedding against plain loops in double which carry
// a bound of the rounding errors.
#include <vector>

#include "heed/linear.hpp"
#include "heed/rotary.hpp"
#include "soak/families.hpp"
#include "soak/trial.hpp"

namespace soak {

namespace {

constexpr double eps = std::numeric_limits<float>::epsilon();
constexpr double least = std::numeric_limits<float>::min();
using tensor3 = heed::tensor<float, 3>;
using double3 = heed::tensor<double, 3>;

/// A number in double, and how far the same steps in float may end from it.
struct bounded {
  double value = 0;
  double error = 0;
};
bounded exp_of(const bounded& x) {
  const double e = std::exp(x.value);
  return {e, e * (x.error + (3 + std::abs(x.value)) * eps) + least};
}
bounded advance(const bounded& e, const bounded& h, const bounded& in) {
  const double value = e.value * h.value + in.value;
  return {value, e.value * h.error + e.error * std::abs(h.value) + in.error +
                     eps * (std::abs(e.value * h.value) + std::abs(value))};
}

/// A scan composes its segments: more roundings of the same sizes.
double slack(const heed::scan_options& o) { return o.form == heed::linear_form::scan ? 4 : 1.2; }

struct scan_case {
  index batch, tokens, channels;
  heed::scan_options options;
  explicit scan_case(trial& t) {
    const bool large = t.one_in("large", 100);
    batch = t.between("batch", 1, 2);
    tokens = t.extent("tokens", 0, large ? 300 : 25);
    channels = t.extent("channels", 1, large ? 200 : 25);
    if (t.one_in("scan", 4)) options.form = heed::linear_form::scan;
    options.scratch = t.scratch;
  }
  [[nodiscard]] tensor3 numbers(trial& t, double size = 1) const {
    tensor3 x({batch, tokens, channels});
    t.fill(x, size);
    return x;
  }
  template <class F>
  void each_channel(F&& f) const {
    for (index b = 0; b < batch; ++b) {
      for (index c = 0; c < channels; ++c) f(b, c);
    }
  }
};

struct expectation {
  double3 value, error;
  explicit expectation(const std::array<index, 3>& e) : value(e), error(e) {}
  void set(index a, index b, index c, const bounded& x, double by) {
    value(a, b, c) = x.value;
    error(a, b, c) = by * x.error + eps * std::abs(x.value) + 4 * least;
  }
  void check(const char* what, const tensor3& got) const {
    trial::require(what, difference(got, value, error));
  }
};

}  // namespace

void hgrn(trial& t) {
  const scan_case s(t);
  const tensor3 x = s.numbers(t);
  tensor3 g = s.numbers(t);
  for (index i = 0; i < g.size(); ++i) g.data()[i] = -std::abs(g.data()[i]);
  heed::tensor<float, 2> state({s.batch, s.channels});
  t.fill(state);
  const auto start = state;
  tensor3 out(x.extents());
  heed::hgrn_into(t.exec, out, x, g, state, s.options);
  expectation want(x.extents()), after({s.batch, s.channels, 1});
  s.each_channel([&](index b, index c) {
    bounded h{start(b, c), 0};
    for (index i = 0; i < s.tokens; ++i) {
      h = advance(exp_of({g(b, i, c), 0}), h, {x(b, i, c), 0});
      want.set(b, i, c, h, slack(s.options));
    }
    after.set(b, c, 0, h, slack(s.options));
  });
  want.check("output", out);
  tensor3 kept({s.batch, s.channels, 1});
  std::copy_n(state.data(), state.size(), kept.data());
  after.check("state", kept);
}

void rwkv4(trial& t) {
  const scan_case s(t);
  const tensor3 k = s.numbers(t, 2), v = s.numbers(t);
  heed::tensor<float, 1> decay({s.channels}), bonus({s.channels});
  t.fill(decay);
  t.fill(bonus);
  tensor3 out(k.extents());
  heed::rwkv4_into(t.exec, out, k, v, decay, bonus, s.options);
  expectation want(k.extents());
  s.each_channel([&](index b, index c) {
    const double w = -std::exp(double(decay(c)));
    for (index i = 0; i < s.tokens; ++i) {
      std::vector<double> p;
      for (index j = 0; j < i; ++j) p.push_back(k(b, j, c) + double(i - 1 - j) * w);
      p.push_back(double(bonus(c)) + k(b, i, c));
      double most = p[0], size = 0, sum = 0, all = 0, error = 0;
      for (const double x : p) most = std::max(most, x);
      for (const double x : p) size = std::max(size, std::abs(x));
      for (index j = 0; j <= i; ++j) sum += std::exp(p[std::size_t(j)] - most);
      for (index j = 0; j <= i; ++j) {
        all += std::exp(p[std::size_t(j)] - most) / sum * double(v(b, j, c));
      }
      for (index j = 0; j <= i; ++j) {
        error += std::exp(p[std::size_t(j)] - most) / sum *
                 (std::abs(double(v(b, j, c))) + std::abs(all)) *
                 (8 + 2 * (size + 4) * double(i - j + 1));
      }
      want.set(b, i, c, {all, eps * error}, slack(s.options));
    }
  });
  want.check("output", out);
}

void selective_scan(trial& t) {
  const scan_case s(t);
  const index groups = s.channels % 2 == 0 ? t.one_of("groups", {1, 2}) : 1;
  const index states = t.between("states", 1, 18);
  const tensor3 x = s.numbers(t), gate = s.numbers(t, 2);
  tensor3 dt = s.numbers(t, 0.5);
  heed::tensor<float, 2> a({s.channels, states});
  heed::tensor<float, 4> b({s.batch, s.tokens, groups, states}), c(b.extents());
  heed::tensor<float, 1> skip({s.channels}), bias({s.channels});
  tensor3 state({s.batch, s.channels, states});
  t.fill(a);
  t.fill(b);
  t.fill(c);
  t.fill(skip);
  t.fill(bias, 0.5);
  t.fill(state);
  for (index i = 0; i < a.size(); ++i) a.data()[i] = -std::abs(a.data()[i]);
  heed::selective_scan_options<float> o;
  o.form = s.options.form;
  o.scratch = t.scratch;
  o.softplus = t.one_in("softplus", 2);
  if (!o.softplus) {
    for (index i = 0; i < dt.size(); ++i) dt.data()[i] = std::abs(dt.data()[i]);
    for (index i = 0; i < bias.size(); ++i) bias.data()[i] = std::abs(bias.data()[i]);
  }
  const bool skips = t.one_in("skip", 2), biased = t.one_in("bias", 2), gated = t.one_in("gate", 2);
  if (skips) o.skip = heed::as_view(std::as_const(skip));
  if (biased) o.dt_bias = heed::as_view(std::as_const(bias));
  if (gated) o.gate = heed::as_view(gate);
  const tensor3 start = state;
  tensor3 out(x.extents());
  heed::selective_scan_into(t.exec, out, x, dt, a, b, c, state, o);

  expectation want(x.extents()), after(state.extents());
  const double by = slack(s.options);
  s.each_channel([&](index n, index k) {
    const index g = k / (s.channels / groups);
    std::vector<bounded> h;
    for (index i = 0; i < states; ++i) h.push_back({start(n, k, i), 0});
    for (index i = 0; i < s.tokens; ++i) {
      const double in = x(n, i, k);
      bounded step{dt(n, i, k), 0};
      if (biased) {
        step.error = eps * (std::abs(step.value) + std::abs(double(bias(k))));
        step.value += double(bias(k));
      }
      if (o.softplus) {
        step.value = std::max(step.value, 0.0) + std::log1p(std::exp(-std::abs(step.value)));
        step.error += 8 * eps * step.value + least;
      }
      bounded y;
      double terms = 0;
      for (index f = 0; f < states; ++f) {
        const double rate = a(k, f), bi = b(n, i, g, f), ci = c(n, i, g, f);
        const double log_decay = step.value * rate;
        const bounded e =
            exp_of({log_decay, std::abs(rate) * step.error + eps * std::abs(log_decay)});
        bounded& at = h[std::size_t(f)];
        at = advance(e, at,
                     {step.value * in * bi,
                      std::abs(in * bi) * (step.error + 2 * eps * std::abs(step.value))});
        y.value += ci * at.value;
        y.error += std::abs(ci) * at.error;
        terms += std::abs(ci * at.value);
      }
      y.error += double(states + 2) * eps * terms;
      if (skips) {
        const double d = double(skip(k)) * in;
        y.value += d;
        y.error += eps * (std::abs(d) + std::abs(y.value));
      }
      if (gated) {
        const double z = gate(n, i, k), silu = z / (1 + std::exp(-z));
        y.error = std::abs(silu) * (y.error + (7 + std::abs(z)) * eps * std::abs(y.value));
        y.value *= silu;
      }
      want.set(n, i, k, y, by);
    }
    for (index f = 0; f < states; ++f) after.set(n, k, f, h[std::size_t(f)], by);
  });
  want.check("output", out);
  after.check("state", state);
}

void convolution(trial& t) {
  const index batch = t.between("batch", 1, 2), channels = t.extent("channels", 1, 60);
  const index tokens = t.extent("tokens", 0, t.one_in("large", 100) ? 400 : 40);
  const index taps = t.between("taps", 1, 6);
  const bool along_channels = t.one_in("tokens first", 2);
  tensor3 memory(along_channels ? std::array<index, 3>{batch, tokens, channels}
                                : std::array<index, 3>{batch, channels, tokens});
  t.fill(memory, 2);
  const auto view = heed::as_view(std::as_const(memory));
  const auto x = along_channels ? view.swap_axes(1, 2) : view;
  heed::tensor<float, 2> weight({channels, taps});
  heed::tensor<float, 1> bias({channels});
  tensor3 state({batch, channels, taps - 1});
  t.fill(weight);
  t.fill(bias);
  t.fill(state);
  const tensor3 start = state;
  heed::causal_convolution_options<float, float> o{.silu = t.one_in("silu", 2)};
  const bool biased = t.one_in("bias", 2), kept = t.one_in("state", 2);
  if (biased) o.bias = heed::as_view(std::as_const(bias));
  if (kept) o.state = heed::as_view(state);
  tensor3 out({batch, channels, tokens});
  for (index begin = 0; begin < tokens || begin == 0;) {  // in pieces where a state carries them
    const index end = kept ? std::min(tokens, begin + t.between("piece", 1, 40)) : tokens;
    heed::causal_convolution_into(t.exec, heed::as_view(out).slice(2, begin, end),
                                  x.slice(2, begin, end), weight, o);
    begin = std::max<index>(end, 1);
  }
  expectation want(out.extents());
  const auto input = [&](index b, index c, index i) -> double {
    if (i >= 0) return x(b, c, i);
    return kept ? start(b, c, taps - 1 + i) : 0;
  };
  for (index b = 0; b < batch; ++b) {
    for (index c = 0; c < channels; ++c) {
      for (index i = 0; i < tokens; ++i) {
        double sum = biased ? double(bias(c)) : 0, all = std::abs(sum);
        for (index j = 0; j < taps; ++j) {
          const double term = double(weight(c, j)) * input(b, c, i + j - (taps - 1));
          sum += term;
          all += std::abs(term);
        }
        bounded y{sum, double(taps + 1) * eps * all};
        if (o.silu) {
          y.value = sum / (1 + std::exp(-sum));
          y.error = 1.1 * y.error + (std::abs(sum) + 8) * eps * std::abs(y.value);
        }
        want.set(b, c, i, y, 1);
      }
      for (index j = 0; kept && j < taps - 1; ++j) {
        if (double(state(b, c, j)) != input(b, c, tokens - (taps - 1) + j)) {
          throw wrong("state: not the last inputs");
        }
      }
    }
  }
  want.check("output", out);
}

void rotary(trial& t) {
  const index batch = t.between("batch", 1, 2), heads = t.between("heads", 1, 3);
  const index tokens = t.extent("tokens", 0, 20);
  const index rotated = 2 * t.extent("pairs", 1, 40);
  const index dim = rotated + t.one_of("rest", {0, 0, 1, 7});
  heed::tensor<float, 4> x({batch, heads, tokens, dim});
  t.fill(x);
  const auto before = x;
  const auto how = t.one_in("interleaved", 2) ? heed::rotary_layout::interleaved
                                              : heed::rotary_layout::half_split;
  const double base = t.one_in("large base", 2) ? 500000.0 : 10000.0;
  const double factor = t.one_in("scaled", 2) ? 4 : 1;
  const heed::rotary_embedding rope(how, rotated,
                                    {.base = base, .scaling = heed::linear_scaling{factor}});
  std::vector<index> ids(static_cast<std::size_t>(tokens));
  const index offset = t.between("offset", -100, 100000);
  const bool listed = t.one_in("positions", 2);
  for (std::size_t n = 0; n < ids.size(); ++n) {
    ids[n] = listed ? t.between("position", 0, 2000) : offset + index(n);
  }
  if (listed) {
    heed::apply_rotary(x, rope, ids);
  } else {
    heed::apply_rotary(x, rope, offset);
  }
  heed::tensor<double, 4> want(x.extents()), within(x.extents());
  for (index i = 0; i < x.size(); ++i) {
    const index c = i % dim, n = i / dim % tokens, row = i - c;
    want.data()[i] = before.data()[i];
    within.data()[i] = 0;
    if (c >= rotated) continue;
    const bool pairs = how == heed::rotary_layout::interleaved;
    const index pair = pairs ? c / 2 : c % (rotated / 2);
    const bool second = pairs ? c % 2 == 1 : c >= rotated / 2;
    const double a = before.data()[row + (pairs ? 2 * pair : pair)];
    const double b = before.data()[row + (pairs ? 2 * pair + 1 : pair + rotated / 2)];
    const double angle = double(ids[std::size_t(n)]) / factor *
                         std::pow(base, -2.0 * double(pair) / double(rotated));
    want.data()[i] = second ? b * std::cos(angle) + a * std::sin(angle)
                            : a * std::cos(angle) - b * std::sin(angle);
    // The angle in double: 1e-16 of up to 1e5 rotations.
    within.data()[i] = (3.5 * eps + 1e-10) * std::hypot(a, b);
  }
  trial::require("output", difference(x, want, within));
}

}  // namespace soak
