// SPDX-License-Identifier: MIT
// Kernelised linear attention with its feature maps, cosFormer and Performer: pair by pair.
#include <numbers>
#include <optional>

#include "heed/linear.hpp"
#include "soak/families.hpp"
#include "soak/trial.hpp"

namespace soak {

namespace {

constexpr double eps = std::numeric_limits<float>::epsilon();

struct linear_case {
  index batch, kv_heads, heads, queries, keys, dim, value_dim;
  bool causal;
  heed::tensor<float, 4> q, k, v, out;

  explicit linear_case(trial& t, double size = 1) {
    const bool large = t.one_in("large", 200);
    batch = t.between("batch", 1, 2);
    kv_heads = t.between("kv heads", 1, 3);
    heads = kv_heads * t.one_of("group", {1, 1, 2, 3});
    causal = !t.one_in("not causal", 3);
    queries = t.extent("queries", 1, large ? 150 : 25);
    keys = causal ? queries : t.extent("keys", 1, large ? 150 : 25);
    dim = t.extent("dim", 1, large ? 70 : 12);
    value_dim = t.extent("value dim", 1, large ? 70 : 12);
    q = heed::tensor<float, 4>({batch, heads, queries, dim});
    k = heed::tensor<float, 4>({batch, kv_heads, keys, dim});
    v = heed::tensor<float, 4>({batch, kv_heads, keys, value_dim});
    out = heed::tensor<float, 4>({batch, heads, queries, value_dim});
    t.fill(q, size);
    t.fill(k, size);
    t.fill(v);
  }

  /// Compares `out` with sum_j w_ij v_j, over sum_j w_ij + add where `normalise`; `weight(b, h, i,
  /// j, size)` returns w_ij and adds to `size` the absolute sum of its terms. Terms are within
  /// `term_error` eps of exact.
  template <class Weight>
  void expect(const Weight& weight, bool normalise, double add, double term_error) const {
    heed::tensor<double, 4> want(out.extents()), within(out.extents());
    for (index b = 0; b < batch; ++b) {
      for (index h = 0; h < heads; ++h) {
        for (index i = 0; i < queries; ++i) {
          std::vector<double> sum(static_cast<std::size_t>(value_dim)), all(sum.size());
          double den = add, den_all = add;
          for (index j = 0; j < (causal ? i + 1 : keys); ++j) {
            double size = 0;
            const double w = weight(b, h, i, j, size);
            den += w;
            den_all += size;
            for (index c = 0; c < value_dim; ++c) {
              const double x = v(b, h / (heads / kv_heads), j, c);
              sum[static_cast<std::size_t>(c)] += w * x;
              all[static_cast<std::size_t>(c)] += size * std::abs(x);
            }
          }
          const double d = normalise ? den : 1;
          const double rounded = eps * (static_cast<double>(keys) + term_error);
          for (std::size_t c = 0; c < sum.size(); ++c) {
            const double y = d == 0 ? 0 : sum[c] / d;
            want(b, h, i, index(c)) = y;
            within(b, h, i, index(c)) =
                (d == 0
                     ? 0
                     : rounded * (all[c] + (normalise ? std::abs(y) * den_all : 0)) / std::abs(d)) +
                eps * std::abs(y) + 1e-36;
          }
        }
      }
    }
    trial::require("output", difference(out, want, within));
  }
};

template <class Map, class Phi>
void kernelised_case(trial& t, const Map& map, const Phi& phi, bool positive) {
  linear_case x(t);
  heed::linear_options o;
  o.causal = x.causal;
  o.normalise = positive && !t.one_in("unnormalised", 3);
  if (!o.normalise && t.one_in("scale", 2)) o.scale = 0.25;
  o.eps = t.one_in("eps", 2) ? 1e-6 : 0.1;
  o.chunk = t.between("chunk", 1, 70);
  o.scratch = t.scratch;
  const index form = t.between("form", 0, 4);
  if (form < 4) o.form = static_cast<heed::linear_form>(form);
  const double scale =
      o.normalise ? 1 : o.scale.value_or(1 / std::sqrt(static_cast<double>(x.dim)));
  const auto weight = [&](index b, index h, index i, index j, double& size) {
    double sum = 0;
    for (index c = 0; c < x.dim; ++c) {
      const double term =
          scale * phi(x.q(b, h, i, c)) * phi(x.k(b, h / (x.heads / x.kv_heads), j, c));
      sum += term;
      size += std::abs(term);
    }
    return sum;
  };
  if (x.causal && t.one_in("in pieces", 2)) {  // one state, as many pieces as it takes
    heed::linear_state<float> state(
        {.batch = x.batch, .kv_heads = x.kv_heads, .features = x.dim, .value_dim = x.value_dim});
    if (o.form == heed::linear_form::parallel) o.form.reset();  // it keeps no state
    for (index begin = 0; begin < x.queries;) {
      const index end = std::min(x.queries, begin + t.between("piece", 1, x.queries));
      const auto piece = [&](auto& y) { return heed::as_view(y).slice(2, begin, end); };
      heed::linear_attention_into(t.exec, piece(x.out), piece(std::as_const(x.q)),
                                  piece(std::as_const(x.k)), piece(std::as_const(x.v)), state, o,
                                  map);
      begin = end;
    }
  } else {
    heed::linear_attention_into(t.exec, x.out, x.q, x.k, x.v, o, map);
  }
  x.expect(weight, o.normalise, o.normalise ? o.eps : 0, 3 * static_cast<double>(x.dim) + 64);
}

}  // namespace

void kernelised(trial& t) {
  switch (t.between("map", 0, 2)) {
    case 0:
      return kernelised_case(
          t, heed::elu_plus_one{}, [](double x) { return x > 0 ? x + 1 : std::exp(x); }, true);
    case 1:
      return kernelised_case(t, heed::identity_features{}, [](double x) { return x; }, false);
    default:
      return kernelised_case(
          t, heed::squared_relu_features{}, [](double x) { return x > 0 ? x * x : 0; }, true);
  }
}

void cosformer(trial& t) {
  linear_case x(t);
  heed::cosformer_options o;
  o.causal = x.causal;
  o.eps = 0.1;
  o.scratch = t.scratch;
  const index tokens = std::max(x.queries, x.keys);
  o.horizon = tokens + t.between("further", 0, 50);
  o.first_position = t.between("first", 0, 5);
  heed::cosformer_attention_into(t.exec, x.out, x.q, x.k, x.v, o);
  const auto weight = [&](index b, index h, index i, index j, double& size) {
    double sum = 0;
    for (index c = 0; c < x.dim; ++c) {
      sum += std::max(0.0F, x.q(b, h, i, c)) *
             double(std::max(0.0F, x.k(b, h / (x.heads / x.kv_heads), j, c)));
    }
    size = 2 * sum;  // cos a cos b and sin a sin b apart
    return sum * std::cos(std::numbers::pi / 2 * double(i - j) / double(*o.horizon));
  };
  x.expect(weight, true, o.eps, 6 * static_cast<double>(x.dim) + 64);
}

void performer(trial& t) {
  linear_case x(t, 0.7);
  const index features = t.extent("features", 1, 40);
  heed::random_directions<float> w(x.dim, features, t.bits());
  heed::performer_options o;
  o.causal = x.causal;
  o.scratch = t.scratch;
  if (t.one_in("scale", 3)) o.scale = 0.3;
  heed::performer_attention_into(t.exec, x.out, x.q, x.k, x.v, w, o);
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(x.dim)));
  const auto directions = heed::as_view(w.columns());
  double largest = 0;
  /// The exponents of a token's features, and their largest.
  const auto exponents = [&](const auto& of, index b, index h, index i, double& most) {
    std::vector<double> e(static_cast<std::size_t>(features));
    double half = 0;
    for (index c = 0; c < x.dim; ++c) half += scale * std::pow(double(of(b, h, i, c)), 2) / 2;
    most = -std::numeric_limits<double>::infinity();
    for (index f = 0; f < features; ++f) {
      double dot = 0, all = half;
      for (index c = 0; c < x.dim; ++c) {
        const double term = double(directions(c, f)) * std::sqrt(scale) * double(of(b, h, i, c));
        dot += term;
        all += std::abs(term);
      }
      e[static_cast<std::size_t>(f)] = dot - half;
      most = std::max(most, dot - half);
      largest = std::max(largest, all);
    }
    return e;
  };
  std::vector<std::vector<double>> keys;
  for (index b = 0; b < x.batch; ++b) {
    for (index h = 0; h < x.kv_heads; ++h) {
      for (index j = 0; j < x.keys; ++j) {
        double most = 0;
        keys.push_back(exponents(x.k, b, h, j, most));
      }
    }
  }
  std::vector<double> query;
  index of_row = -1;
  const auto weight = [&](index b, index h, index i, index j, double& size) {
    if (const index row = (b * x.heads + h) * x.queries + i; row != of_row) {
      double most = 0;
      query = exponents(x.q, b, h, i, most);
      for (double& e : query) e = std::exp(e - most);
      of_row = row;
    }
    const index kv = h / (x.heads / x.kv_heads);
    const auto& key = keys[static_cast<std::size_t>((b * x.kv_heads + kv) * x.keys + j)];
    double sum = 0;
    for (std::size_t f = 0; f < key.size(); ++f) sum += query[f] * std::exp(key[f]);
    size = sum;
    return sum;
  };
  // A feature's error is that of its exponent: a sum of dim terms, for query and key.
  for (index i = 0; i < x.queries; ++i) {
    double most = 0;
    for (index h = 0; h < x.heads; ++h) (void)exponents(x.q, 0, h, i, most);
  }
  x.expect(
      weight, true, 0,
      static_cast<double>(features) + 64 + 4 * (static_cast<double>(x.dim) + 8) * (1 + largest));
}

}  // namespace soak
