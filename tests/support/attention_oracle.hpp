// SPDX-License-Identifier: MIT
// What the tests of exact attention share: random tensors in any layout, attention by its
// definition, the textbook in double beside a result, and tolerances made from the sizes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/attention.hpp"
#include "heed/tensor.hpp"

namespace oracle {

using heed::index;
using extents4 = std::array<index, 4>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

// ------------------------------------------------------------------------------------- tensors

/// Half the distance from 1 to the next number: the most a rounding changes a number of size 1.
template <class T>
double unit_roundoff() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -11);
  if constexpr (std::is_same_v<T, heed::bfloat16>) return std::ldexp(1.0, -8);
  return static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
}

/// The smallest step of a scalar near zero.
template <class T>
double denormal_step() {
  if constexpr (std::is_same_v<T, heed::half>) return std::ldexp(1.0, -24);
  if constexpr (std::is_same_v<T, heed::bfloat16>) return std::ldexp(1.0, -133);
  return static_cast<double>(std::numeric_limits<T>::denorm_min());
}

template <class T, int R>
heed::tensor<T, R> random_tensor(const std::array<index, static_cast<std::size_t>(R)>& extents,
                                 unsigned seed, double size = 1.0) {
  heed::tensor<T, R> t(extents);
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal(0.0, size);
  for (index i = 0; i < t.size(); ++i) t.data()[i] = static_cast<T>(normal(engine));
  return t;
}

/// f(b, h, i, c) for every index of four extents.
template <class F>
void each_index(const extents4& e, F&& f) {
  for (index b = 0; b < e[0]; ++b) {
    for (index h = 0; h < e[1]; ++h) {
      for (index i = 0; i < e[2]; ++i) {
        for (index c = 0; c < e[3]; ++c) f(b, h, i, c);
      }
    }
  }
}

/// The numbers of any tensor, widened, as batch x heads x tokens x channels.
template <class Tensor>
heed::tensor<double, 4> widened(const Tensor& t) {
  const auto from = heed::as_rank4(heed::as_view(t));
  heed::tensor<double, 4> to(from.extents());
  each_index(from.extents(), [&](index b, index h, index i, index c) {
    to(b, h, i, c) = static_cast<double>(from(b, h, i, c));
  });
  return to;
}

/// How four axes lie in memory: from the slowest to the fastest, with gaps and directions.
struct layout {
  std::array<int, 4> order{0, 1, 2, 3};
  std::array<index, 4> gap{0, 0, 0, 0};  // elements left unused per step of the axis
  std::array<bool, 4> backwards{false, false, false, false};
  index shift = 0;  // elements before the first
};

/// A tensor in a layout of its own; what the layout leaves unused holds a sentinel.
template <class T>
class laid_out {
 public:
  laid_out(const extents4& e, const layout& l) {
    extents4 strides{};
    index step = 1;
    index first = l.shift;
    for (std::size_t n = 4; n-- > 0;) {
      const auto axis = static_cast<std::size_t>(l.order[n]);
      step += l.gap[axis];
      strides[axis] = l.backwards[axis] ? -step : step;
      if (l.backwards[axis] && e[axis] > 0) first += (e[axis] - 1) * step;
      step *= std::max<index>(e[axis], 1);
    }
    cells_.assign(static_cast<std::size_t>(step + l.shift + 1), sentinel());
    view_ = {cells_.data() + first, e, strides};
  }
  laid_out(const heed::tensor<T, 4>& values, const layout& l) : laid_out(values.extents(), l) {
    each_index(values.extents(),
               [&](index b, index h, index i, index c) { view_(b, h, i, c) = values(b, h, i, c); });
  }
  laid_out(const laid_out&) = delete;
  laid_out& operator=(const laid_out&) = delete;

  [[nodiscard]] const heed::view<T, 4>& view() const { return view_; }
  [[nodiscard]] heed::view<const T, 4> cview() const { return view_; }

  /// How many cells outside the tensor no longer hold the sentinel.
  [[nodiscard]] index overwritten() const {
    std::vector<bool> inside(cells_.size(), false);
    each_index(view_.extents(), [&](index b, index h, index i, index c) {
      inside[static_cast<std::size_t>(&view_(b, h, i, c) - cells_.data())] = true;
    });
    index count = 0;
    for (std::size_t n = 0; n < cells_.size(); ++n) {
      if (!inside[n] && cells_[n] != sentinel()) ++count;
    }
    return count;
  }

 private:
  static T sentinel() { return static_cast<T>(-1024.0F); }
  std::vector<T> cells_;
  heed::view<T, 4> view_;
};

// -------------------------------------------------------------------------------- by definition

struct result {
  heed::tensor<double, 4> output;
  heed::tensor<double, 3> log_sum_exp;
};

/// Attention in double by its definition, one row after another. Shares no code with the library:
/// `score(s, p)` is everything between the scaled product and the softmax, `visible(p)` all masks,
/// `sinks` logits a head.
template <class Score, class Visible>
result by_definition(const heed::tensor<double, 4>& q, const heed::tensor<double, 4>& k,
                     const heed::tensor<double, 4>& v, double scale,
                     const std::vector<index>& offset, Score score, Visible visible,
                     const std::vector<double>& sinks = {}) {
  const index group = k.extent(1) > 0 ? q.extent(1) / k.extent(1) : 1;
  result r{heed::tensor<double, 4>({q.extent(0), q.extent(1), q.extent(2), v.extent(3)}),
           heed::tensor<double, 3>({q.extent(0), q.extent(1), q.extent(2)})};
  for (index b = 0; b < q.extent(0); ++b) {
    for (index h = 0; h < q.extent(1); ++h) {
      for (index i = 0; i < q.extent(2); ++i) {
        std::vector<std::pair<index, double>> seen;
        double top = -infinity;
        bool poisoned = false;
        for (index j = 0; j < k.extent(2); ++j) {
          heed::position p;
          p.batch = b;
          p.head = h;
          p.kv_head = h / group;
          p.row = i;
          p.query = offset[static_cast<std::size_t>(b)] + i;
          p.key = j;
          if (!visible(p)) continue;
          double dot = 0;
          for (index c = 0; c < q.extent(3); ++c) dot += q(b, h, i, c) * k(b, h / group, j, c);
          const double s = score(dot * scale, p);
          poisoned = poisoned || std::isnan(s);
          top = std::max(top, s);
          seen.emplace_back(j, s);
        }
        double sum = 0;
        if (!sinks.empty()) {
          top = std::max(top, sinks[static_cast<std::size_t>(h)]);
          sum = std::exp(sinks[static_cast<std::size_t>(h)] - top);
        }
        for (const auto& [j, s] : seen) {
          if (s != -infinity) sum += std::exp(s - top);
        }
        r.log_sum_exp(b, h, i) = poisoned   ? not_a_number
                                 : sum == 0 ? -infinity
                                            : top + std::log(sum);
        for (index c = 0; c < v.extent(3); ++c) {
          double total = 0;
          for (const auto& [j, s] : seen) {
            if (s != -infinity) total += std::exp(s - top) / sum * v(b, h / group, j, c);
          }
          r.output(b, h, i, c) = poisoned ? not_a_number : total;
        }
      }
    }
  }
  return r;
}

// ----------------------------------------------------------------------------------- tolerances

/// What the error of a result depends on.
struct magnitudes {
  index head_dim = 0;
  index keys = 0;
  double product = 0;  // the most |scale| |q| |k| (Euclidean norms): bounds sums of |q_c k_c|
  double score = 0;    // the most |s| at any stage
  double value = 0;    // the most |v|
};

/// The most of |x| over the finite numbers of a tensor.
template <class Tensor>
double largest(const Tensor& t) {
  double most = 0;
  for (index i = 0; i < t.size(); ++i) {
    const double x = std::abs(static_cast<double>(t.data()[i]));
    if (std::isfinite(x)) most = std::max(most, x);
  }
  return most;
}

inline double largest_row_norm(const heed::tensor<double, 4>& t) {
  double most = 0;
  for (index r = 0; r < t.extent(0) * t.extent(1) * t.extent(2); ++r) {
    double square = 0;
    for (index c = 0; c < t.extent(3); ++c) {
      const double x = t.data()[r * t.extent(3) + c];
      if (std::isfinite(x)) square += x * x;
    }
    most = std::max(most, std::sqrt(square));
  }
  return most;
}

/// The most that a weight loses in proportion before it meets its value: bfloat16 may round it.
template <class T>
double weight_rounding() {
  return std::is_same_v<T, heed::bfloat16> ? unit_roundoff<T>() : 0;
}

/// How far a kernel that accumulates in A and stores T may be from exact arithmetic. With u the
/// unit roundoff of A and a sum of n rounded terms wrong by 4 sqrt(n) u of the terms' size (the
/// probabilistic bound of Higham and Mary 2019, doi 10.1137/18M1226312, at a confidence that no run
/// reaches by chance):
///   score   u (4 sqrt(D) + 4) |scale| |q| |k|, and 8 u |s| for the stages (tanh, modifiers)
///   weight  the score's error; 8 u for the exponential; 3 u |x| for its argument x = s - max,
///           where the mean of |x| under the weights is at most 2 + log M; 4 sqrt(M) u for the sums
///   output  twice the weight's error (it is divided by the sum of all) times the most |v|, and one
///           rounding to T; bfloat16 may round the weights to bfloat16 too.
/// A double kernel is compared with double arithmetic that errs as much: twice.
template <class T>
class tolerance {
 public:
  using A = heed::accumulate_t<T>;
  explicit tolerance(const magnitudes& m) : value_(m.value) {
    const double u = unit_roundoff<A>() * (std::is_same_v<A, double> ? 2 : 1);
    const double keys = static_cast<double>(std::max<index>(m.keys, 1));
    const double score =
        u * ((4 * std::sqrt(static_cast<double>(m.head_dim)) + 4) * m.product + 8 * m.score);
    weight_ = score + u * (8 + 3 * (2 + std::log(keys)) + 4 * std::sqrt(keys));
    u_ = u;
  }
  [[nodiscard]] double output(double exact) const {
    return (2 * weight_ + weight_rounding<T>()) * value_ + unit_roundoff<T>() * std::abs(exact) +
           denormal_step<T>();
  }
  [[nodiscard]] double log_sum_exp(double exact) const {
    return weight_ + 2 * u_ * std::abs(exact);
  }

 private:
  double value_;
  double weight_ = 0;
  double u_ = 0;
};

/// The textbook in double on the widened arguments, and the sizes for the tolerance.
struct expectation {
  heed::tensor<double, 4> output;
  heed::tensor<double, 3> log_sum_exp;
  magnitudes sizes;
};

template <class Q, class K, class V, class... M>
expectation expected(const Q& q, const K& k, const V& v, const heed::attention_options& options,
                     const M&... modifiers) {
  const auto qd = widened(q);
  const auto kd = widened(k);
  const auto vd = widened(v);
  auto stages = heed::naive_attention_stages(qd, kd, vd, options, modifiers...);
  const double scale = options.scale
                           ? *options.scale
                           : 1 / std::sqrt(static_cast<double>(std::max<index>(qd.extent(3), 1)));
  expectation e{std::move(stages.output), std::move(stages.log_sum_exp), {}};
  e.sizes = {qd.extent(3), kd.extent(2),
             std::abs(scale) * largest_row_norm(qd) * largest_row_norm(kd),
             std::max({largest(stages.scaled), largest(stages.softcapped), largest(stages.masked)}),
             largest(vd)};
  return e;
}

/// Within the tolerance, or both the same NaN or infinity.
inline bool agrees(double got, double want, double within) {
  if (std::isnan(want) || std::isnan(got)) return std::isnan(want) && std::isnan(got);
  if (std::isinf(want) || std::isinf(got)) return want == got;
  return std::abs(got - want) <= within;
}

/// "" where the result agrees with the expectation, else the first element that does not.
/// `Accurate` is the scalar whose rounding the result went through.
template <class Accurate, class Out>
std::string difference(const Out& out, const heed::tensor<double, 4>& want, const magnitudes& m) {
  const auto got = heed::as_rank4(heed::as_view(out));
  const tolerance<Accurate> near(m);
  std::string text;
  if (got.extents() != want.extents()) {
    return "extents " + heed::format_extents(got.extents()) + ", not " +
           heed::format_extents(want.extents());
  }
  each_index(want.extents(), [&](index b, index h, index i, index c) {
    const auto x = static_cast<double>(got(b, h, i, c));
    const double y = want(b, h, i, c);
    if (!text.empty() || agrees(x, y, near.output(y))) return;
    std::ostringstream message;
    message.precision(12);
    message << "out(" << b << ", " << h << ", " << i << ", " << c << ") is " << x << ", not " << y
            << " within " << near.output(y);
    text = message.str();
  });
  return text;
}

template <class Accurate, class Lse>
std::string lse_difference(const Lse& lse, const heed::tensor<double, 3>& want,
                           const magnitudes& m) {
  const tolerance<Accurate> near(m);
  const auto got = heed::api::lse_as_rank3<const heed::scalar_of<const Lse&>>(
      heed::view<const heed::scalar_of<const Lse&>, heed::rank_of<const Lse&>>(heed::as_view(lse)));
  std::string text;
  if (got.extents() != want.extents()) {
    return "log-sum-exp extents " + heed::format_extents(got.extents()) + ", not " +
           heed::format_extents(want.extents());
  }
  for (index n = 0; n < want.size() && text.empty(); ++n) {
    const index i = n % want.extent(2);
    const index h = n / want.extent(2) % want.extent(1);
    const index b = n / want.extent(2) / want.extent(1);
    const auto x = static_cast<double>(got(b, h, i));
    const double y = want(b, h, i);
    if (agrees(x, y, near.log_sum_exp(y))) continue;
    std::ostringstream message;
    message.precision(12);
    message << "lse(" << b << ", " << h << ", " << i << ") is " << x << ", not " << y << " within "
            << near.log_sum_exp(y);
    text = message.str();
  }
  return text;
}

/// attention on the arguments against the textbook in double: "" or the difference.
template <class Q, class K, class V, class... M>
std::string check(const Q& q, const K& k, const V& v, const heed::attention_options& options,
                  const M&... modifiers) {
  const expectation e = expected(q, k, v, options, modifiers...);
  const auto got = heed::attention_with_lse(q, k, v, options, modifiers...);
  using T = heed::scalar_of<const Q&>;
  std::string text = difference<T>(got.output, e.output, e.sizes);
  return text.empty() ? lse_difference<T>(got.log_sum_exp, e.log_sum_exp, e.sizes) : text;
}

/// The same bits, NaN like NaN.
template <class X, class Y>
bool same_bits(const X& x, const Y& y) {
  if (x.extents() != y.extents()) return false;
  for (index i = 0; i < x.size(); ++i) {
    const auto a = static_cast<double>(x.data()[i]);
    const auto b = static_cast<double>(y.data()[i]);
    if (a != b && !(std::isnan(a) && std::isnan(b))) return false;
  }
  return true;
}

}  // namespace oracle
