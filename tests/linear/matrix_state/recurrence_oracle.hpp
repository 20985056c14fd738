// SPDX-License-Identifier: MIT
// Recurrences with a matrix state by plain loops in double.
//
// Written from the formulas alone, a token at a time: nothing here goes through the library's
// kernels. Beside each number runs a bound on what rounding may have done to it.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "linear/matrix_state/recurrence_problem.hpp"

namespace recurrence_test {

struct expected {
  heed::tensor<double, 4> out, state;
  heed::tensor<double, 4> out_error, state_error;  ///< in units of the accumulator's eps
};

/// `certain` adds every rounding's magnitude; `probable` adds them in quadrature and takes 8 times
/// the root, which roundings of independent sign exceed with a chance of 2 exp(-32): Higham and
/// Mary 2019, SIAM J. Sci. Comput. 41(5). Corrections of random keys wear it off like decays do.
enum class errors { certain, probable };

/// The definition, fed with tokens in pieces. `scale` as the member's default.
///
/// The error of a column of S, as a norm: a step multiplies what there is by |diag(d) - ...| (at
/// most the largest decay, or |a| |b|, for the keys drawn) and adds its roundings, each of the size
/// of the largest column so far: decay (a product, an exponential), write, and where the write is
/// corrected the sum of Dk terms that is taken back. A chunk computes the same numbers in another
/// order: sums of as many terms, of the same sizes. An answer sums Dk terms more.
class definition {
 public:
  definition(method m, const shape& s, errors kind = errors::certain)
      : is_(about(m)), s_(s), kind_(kind), heads_(std::size_t(s.batch * s.state_heads())) {
    for (head& x : heads_) {
      x.S.assign(d() * dv(), 0);
      x.largest.assign(dv(), 0);
      x.worst = x.squares = x.largest;
    }
  }
  template <class A>
  definition(method m, const shape& s, const heed::view<const A, 4>& state,
             errors kind = errors::certain)
      : definition(m, s, kind) {
    for (std::size_t n = 0; n < heads_.size(); ++n) {
      const index b = index(n) / s.state_heads(), h = index(n) % s.state_heads();
      for_each_entry([&](std::size_t r, std::size_t c) {
        heads_[n].S[r * dv() + c] = double(state(b, h, index(r), index(c)));
      });
      watch(heads_[n]);
    }
  }

  template <class T>
  [[nodiscard]] expected operator()(const inputs<T>& p) {
    s_.tokens = p.s.tokens;
    const std::array<index, 4> outs{s_.batch, s_.out_heads(), s_.tokens, s_.dv};
    const std::array<index, 4> states{s_.batch, s_.state_heads(), s_.d, s_.dv};
    expected e{heed::tensor<double, 4>(outs), heed::tensor<double, 4>(states),
               heed::tensor<double, 4>(outs), heed::tensor<double, 4>(states)};
    for (std::size_t n = 0; n < heads_.size(); ++n) {
      const index b = index(n) / s_.state_heads(), h = index(n) % s_.state_heads();
      for (index t = 0; t < s_.tokens; ++t) step(p, heads_[n], b, h, t, e);
      for_each_entry([&](std::size_t r, std::size_t c) {
        e.state(b, h, index(r), index(c)) = heads_[n].S[r * dv() + c];
        e.state_error(b, h, index(r), index(c)) = error(heads_[n], c);
      });
    }
    return e;
  }

 private:
  using numbers = std::vector<double>;
  struct head {
    numbers S, largest, worst, squares;
  };

  [[nodiscard]] std::size_t d() const { return std::size_t(s_.d); }
  [[nodiscard]] std::size_t dv() const { return std::size_t(s_.dv); }
  template <class F>
  void for_each_entry(F&& f) const {
    for (std::size_t r = 0; r < d(); ++r) {
      for (std::size_t c = 0; c < dv(); ++c) f(r, c);
    }
  }
  void watch(head& x) const {
    numbers size(dv());
    for_each_entry(
        [&](std::size_t r, std::size_t c) { size[c] += x.S[r * dv() + c] * x.S[r * dv() + c]; });
    for (std::size_t c = 0; c < dv(); ++c) {
      x.largest[c] = std::max(x.largest[c], std::sqrt(size[c]));
    }
  }
  [[nodiscard]] double error(const head& x, std::size_t c) const {
    return kind_ == errors::certain ? x.worst[c]
                                    : std::min(x.worst[c], 8 * std::sqrt(x.squares[c]));
  }

  template <class T>
  [[nodiscard]] double gate(const inputs<T>& p, index b, index h, index t, index f) const {
    const auto heads = double(s_.state_heads());
    switch (is_.decay) {
      case decays::of_retention:
        return std::log(1 - std::pow(2.0, -5.0 - double(h)));
      case decays::of_lightning:
        return -8.0 / heads * (1 - 1.0 / 4) * double(h);
      case decays::of_token:
        return double(p.scalar_g(b, h / s_.fewer, t));
      case decays::of_rate:
        return double(p.rate(h / s_.fewer)) * double(p.dt(b, h * s_.v_heads / s_.state_heads(), t));
      case decays::of_channel:
        return double(p.g(b, h / s_.fewer, t, f));
      default:
        return 0;
    }
  }

  template <class T>
  void step(const inputs<T>& p, head& x, index b, index h, index t, expected& e) const {
    const index heads = s_.state_heads();
    const index kh = h * s_.k_heads / heads, vh = h * s_.v_heads / heads;
    const bool low = is_.write == writes::low_rank, delta = is_.write == writes::delta;
    numbers decay(d()), key(d()), left(d()), back(d()), bonus(d()), raw(dv()), value(dv()),
        taken(dv());
    double most = 0, length_left = 0, length_back = 0;
    for (std::size_t r = 0; r < d(); ++r) {
      const auto f = index(r);
      const bool again = r > 0 && is_.decay != decays::of_channel;
      decay[r] = again ? decay[0] : std::exp(gate(p, b, h, t, f));
      most = std::max(most, decay[r]);
      key[r] = double(p.k(b, kh, t, f));
      if (low) left[r] = double(p.a(b, kh, t, f));
      if (low) back[r] = double(p.b(b, kh, t, f));
      if (is_.read_before) bonus[r] = double(p.u(h / s_.fewer, f)) * key[r];
      length_left += left[r] * left[r];
      length_back += back[r] * back[r];
    }
    const double dt = is_.decay == decays::of_rate ? double(p.dt(b, vh, t)) : 1;
    for (std::size_t c = 0; c < dv(); ++c) {
      raw[c] = double(p.v(b, vh, t, index(c)));
      value[c] = dt * raw[c];
    }
    numbers& S = x.S;
    numbers read = is_.read_before ? S : numbers();
    for_each_entry([&](std::size_t r, std::size_t c) {
      double& at = S[r * dv() + c];
      if (is_.read_before) read[r * dv() + c] += bonus[r] * value[c];
      taken[c] += left[r] * at;  // low rank: of the old S
      at *= decay[r];
      if (delta) taken[c] += key[r] * at;
    });
    const double beta = delta ? double(p.beta(b, h / s_.fewer, t)) : 1;
    for (std::size_t c = 0; delta && c < dv(); ++c) value[c] = beta * (value[c] - taken[c]);
    for_each_entry([&](std::size_t r, std::size_t c) {
      S[r * dv() + c] += key[r] * value[c] + back[r] * taken[c];
    });
    watch(x);
    // I + b a' keeps of an error that knows nothing of a, on average over its direction:
    double kept = 1;
    if (delta || (low && is_.decay == decays::none)) {
      double squared = 0, along = 0;  // |a|^2 |b|^2 and a'b; the delta rule has a = -k, b = beta k
      if (delta) {
        const double key_squared = std::inner_product(key.begin(), key.end(), key.begin(), 0.0);
        squared = std::pow(beta * key_squared, 2);
        along = -beta * key_squared;
      } else {
        squared = length_left * length_back;
        along = std::inner_product(left.begin(), left.end(), back.begin(), 0.0);
      }
      kept += (2 * along + squared) / double(s_.d);
    }
    most = std::max(most, std::sqrt(length_left * length_back));
    const double roundings = 8 + (low || delta ? double(s_.d) + 8 : 0);
    for (std::size_t c = 0; c < dv(); ++c) {
      x.largest[c] = std::max(x.largest[c], std::abs(raw[c]) + std::abs(value[c]));
      x.worst[c] = most * x.worst[c] + roundings * x.largest[c];
      x.squares[c] = kept * most * most * x.squares[c] + roundings * x.largest[c] * x.largest[c];
    }
    const double scale = is_.scaled && s_.d > 0 ? 1 / std::sqrt(double(s_.d)) : 1;
    const double skip = is_.decay == decays::of_rate ? double(p.skip(vh)) : 0;
    const double own =
        std::sqrt(std::inner_product(bonus.begin(), bonus.end(), bonus.begin(), 0.0));
    const index group = s_.out_heads() / heads;
    for (index o = h * group; o < (h + 1) * group; ++o) {
      numbers sum(dv());
      double length = 0;
      for (std::size_t r = 0; r < d(); ++r) {
        const double query = double(p.q(b, o * s_.q_heads / s_.out_heads(), t, index(r)));
        length += query * query;
        for (std::size_t c = 0; c < dv(); ++c) {
          sum[c] += query * (is_.read_before ? read : S)[r * dv() + c];
        }
      }
      for (std::size_t c = 0; c < dv(); ++c) {
        e.out(b, o, t, index(c)) = scale * sum[c] + skip * raw[c];
        e.out_error(b, o, t, index(c)) =
            scale * std::sqrt(length) *
                (error(x, c) + double(s_.d + 8) * x.largest[c] * (1 + own)) +
            std::abs(skip * raw[c]);
      }
    }
  }

  member is_;
  shape s_;
  errors kind_;
  std::vector<head> heads_;
};

/// Half of what the last digit stored is worth, relative and absolute.
template <class T>
double stored(double x) {
  if constexpr (std::is_same_v<T, heed::half>) {
    return std::ldexp(std::abs(x), -11) + std::ldexp(1.0, -25);
  } else if constexpr (std::is_same_v<T, heed::bfloat16>) {
    return std::ldexp(std::abs(x), -8) + 1e-37;
  } else {
    return std::numeric_limits<T>::epsilon() * std::abs(x) / 2 + 1e-37;
  }
}

/// `got` against `want`, and the largest error found as a part of its bound.
template <class T>
double expect_near(const heed::view<T, 4>& got, const heed::tensor<double, 4>& want,
                   const heed::tensor<double, 4>& error, const std::string& what) {
  using scalar = std::remove_const_t<T>;
  const double eps = double(std::numeric_limits<heed::accumulate_t<scalar>>::epsilon());
  double worst = 0;
  EXPECT_EQ(got.extents(), want.extents()) << what;
  for (index b = 0; b < got.extent(0); ++b) {
    for (index h = 0; h < got.extent(1); ++h) {
      for (index i = 0; i < got.extent(2); ++i) {
        for (index c = 0; c < got.extent(3); ++c) {
          const double w = want(b, h, i, c), off = std::abs(double(got(b, h, i, c)) - w);
          const double bound = eps * error(b, h, i, c) + stored<scalar>(w);
          worst = std::max(worst, off / bound);
          if (off <= bound) continue;
          ADD_FAILURE() << what << " at " << b << ' ' << h << ' ' << i << ' ' << c << ": "
                        << double(got(b, h, i, c)) << " for " << w << ", off by " << off / bound
                        << " bounds";
          return worst;
        }
      }
    }
  }
  return worst;
}

}  // namespace recurrence_test
