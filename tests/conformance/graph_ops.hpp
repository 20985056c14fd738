// SPDX-License-Identifier: MIT
// Operators of tensor graphs: elementwise ones as functions of numbers, others on whole arrays.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "conformance/case.hpp"

namespace conformance {

/// A whole array that does not depend on the scores.
struct constant {
  kind what = kind::floating;
  std::vector<heed::index> dims;
  std::vector<double> data;

  [[nodiscard]] static constant vector(std::vector<double> numbers) {
    const auto n = static_cast<heed::index>(numbers.size());
    return {kind::integer, {n}, std::move(numbers)};
  }
  [[nodiscard]] std::vector<heed::index> indices() const {
    std::vector<heed::index> out;
    for (const double x : data) out.push_back(static_cast<heed::index>(x));
    return out;
  }
  /// The element at `at` when the array is broadcast, right-aligned.
  [[nodiscard]] double broadcast(const heed::index* at, std::size_t rank) const {
    heed::index offset = 0;
    for (std::size_t a = 0; a < dims.size(); ++a) {
      const heed::index i = dims[a] == 1 ? 0 : at[rank - dims.size() + a];
      offset = offset * dims[a] + i;
    }
    return data[static_cast<std::size_t>(offset)];
  }
};

namespace graph_ops {

using scalar_op = double (*)(const double* x, std::size_t count, kind what);

template <class F>
constexpr double fold(const double* x, std::size_t n, F f) {
  double y = x[0];
  for (std::size_t i = 1; i < n; ++i) y = f(y, x[i]);
  return y;
}

/// Elementwise operators: their value, and the kind of the result where it is not the operands'.
[[nodiscard]] inline const std::map<std::string, std::pair<scalar_op, std::optional<kind>>>&
elementwise() {
  using cd = const double*;
  using n = std::size_t;
  static const std::map<std::string, std::pair<scalar_op, std::optional<kind>>> table{
      {"Add", {[](cd x, n, kind) { return x[0] + x[1]; }, {}}},
      {"Sub", {[](cd x, n, kind) { return x[0] - x[1]; }, {}}},
      {"Mul", {[](cd x, n, kind) { return x[0] * x[1]; }, {}}},
      {"Div",
       {[](cd x, n, kind w) { return w == kind::integer ? std::trunc(x[0] / x[1]) : x[0] / x[1]; },
        {}}},
      {"Mod",
       {[](cd x, n, kind w) {
          return w == kind::integer ? x[0] - x[1] * std::floor(x[0] / x[1]) : std::fmod(x[0], x[1]);
        },
        {}}},
      {"Pow", {[](cd x, n, kind) { return std::pow(x[0], x[1]); }, {}}},
      {"Min",
       {[](cd x, n c, kind) {
          return fold(x, c, [](double a, double b) { return std::min(a, b); });
        },
        {}}},
      {"Max",
       {[](cd x, n c, kind) {
          return fold(x, c, [](double a, double b) { return std::max(a, b); });
        },
        {}}},
      {"Sum",
       {[](cd x, n c, kind) { return fold(x, c, [](double a, double b) { return a + b; }); }, {}}},
      {"Neg", {[](cd x, n, kind) { return -x[0]; }, {}}},
      {"Abs", {[](cd x, n, kind) { return std::abs(x[0]); }, {}}},
      {"Sign", {[](cd x, n, kind) { return double(x[0] > 0) - double(x[0] < 0); }, {}}},
      {"Sqrt", {[](cd x, n, kind) { return std::sqrt(x[0]); }, {}}},
      {"Exp", {[](cd x, n, kind) { return std::exp(x[0]); }, {}}},
      {"Log", {[](cd x, n, kind) { return std::log(x[0]); }, {}}},
      {"Sin", {[](cd x, n, kind) { return std::sin(x[0]); }, {}}},
      {"Cos", {[](cd x, n, kind) { return std::cos(x[0]); }, {}}},
      {"Tanh", {[](cd x, n, kind) { return std::tanh(x[0]); }, {}}},
      {"Erf", {[](cd x, n, kind) { return std::erf(x[0]); }, {}}},
      {"Sigmoid", {[](cd x, n, kind) { return 1 / (1 + std::exp(-x[0])); }, {}}},
      {"Softplus", {[](cd x, n, kind) { return std::log1p(std::exp(x[0])); }, {}}},
      {"Relu", {[](cd x, n, kind) { return x[0] > 0 ? x[0] : 0; }, {}}},
      {"Reciprocal", {[](cd x, n, kind) { return 1 / x[0]; }, {}}},
      {"Floor", {[](cd x, n, kind) { return std::floor(x[0]); }, {}}},
      {"Ceil", {[](cd x, n, kind) { return std::ceil(x[0]); }, {}}},
      {"Round", {[](cd x, n, kind) { return std::nearbyint(x[0]); }, {}}},
      {"Clip",
       {[](cd x, n c, kind) {
          const double low = c > 1 ? std::max(x[0], x[1]) : x[0];
          return c > 2 ? std::min(low, x[2]) : low;
        },
        {}}},
      {"Identity", {[](cd x, n, kind) { return x[0]; }, {}}},
      {"Less", {[](cd x, n, kind) { return double(x[0] < x[1]); }, kind::boolean}},
      {"LessOrEqual", {[](cd x, n, kind) { return double(x[0] <= x[1]); }, kind::boolean}},
      {"Greater", {[](cd x, n, kind) { return double(x[0] > x[1]); }, kind::boolean}},
      {"GreaterOrEqual", {[](cd x, n, kind) { return double(x[0] >= x[1]); }, kind::boolean}},
      {"Equal", {[](cd x, n, kind) { return double(x[0] == x[1]); }, kind::boolean}},
      {"And", {[](cd x, n, kind) { return double(x[0] != 0 && x[1] != 0); }, kind::boolean}},
      {"Or", {[](cd x, n, kind) { return double(x[0] != 0 || x[1] != 0); }, kind::boolean}},
      {"Xor", {[](cd x, n, kind) { return double((x[0] != 0) != (x[1] != 0)); }, kind::boolean}},
      {"Not", {[](cd x, n, kind) { return double(x[0] == 0); }, kind::boolean}},
      {"IsNaN", {[](cd x, n, kind) { return double(std::isnan(x[0])); }, kind::boolean}},
      {"IsInf", {[](cd x, n, kind) { return double(std::isinf(x[0])); }, kind::boolean}},
      // Where's operands of the result's kind are the second and third.
      {"Where", {[](cd x, n, kind) { return x[0] != 0 ? x[1] : x[2]; }, {}}},
  };
  return table;
}

/// Cast to one of the element types by the standard's numbers.
[[nodiscard]] inline std::pair<scalar_op, kind> cast(int to) {
  switch (to) {
    case 1:
      return {[](const double* x, std::size_t, kind) { return double(float(x[0])); },
              kind::floating};
    case 10:
      return {[](const double* x, std::size_t, kind) {
                return double(float(Eigen::half(float(x[0]))));
              },
              kind::floating};
    case 11:
      return {[](const double* x, std::size_t, kind) { return x[0]; }, kind::floating};
    case 9:
      return {[](const double* x, std::size_t, kind) { return double(x[0] != 0); }, kind::boolean};
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
    case 7:
    case 12:
    case 13:
      return {[](const double* x, std::size_t, kind) { return std::trunc(x[0]); }, kind::integer};
    default:
      throw unsupported("Cast to element type " + std::to_string(to));
  }
}

[[nodiscard]] inline std::vector<heed::index> broadcast_dims(const std::vector<constant>& in) {
  std::vector<heed::index> dims;
  for (const constant& c : in) {
    if (c.dims.size() > dims.size()) dims.insert(dims.begin(), c.dims.size() - dims.size(), 1);
    for (std::size_t a = 0; a < c.dims.size(); ++a) {
      heed::index& d = dims[dims.size() - c.dims.size() + a];
      if (d != c.dims[a] && d != 1 && c.dims[a] != 1) {
        throw std::runtime_error("a graph broadcasts extents that differ");
      }
      if (d == 1) d = c.dims[a];
    }
  }
  return dims;
}

/// Calls f(multi-index) for every element of `dims`, last axis fastest.
template <class F>
void for_each_element(const std::vector<heed::index>& dims, F&& f) {
  std::vector<heed::index> at(dims.size(), 0);
  heed::index count = 1;
  for (const heed::index d : dims) count *= d;
  for (heed::index i = 0; i < count; ++i) {
    f(at);
    for (std::size_t a = dims.size(); a-- > 0;) {
      if (++at[a] < dims[a]) break;
      at[a] = 0;
    }
  }
}

[[nodiscard]] inline constant map(scalar_op op, kind result, kind operands,
                                  const std::vector<constant>& in) {
  constant out{result, broadcast_dims(in), {}};
  std::vector<double> x(in.size());
  for_each_element(out.dims, [&](const std::vector<heed::index>& at) {
    for (std::size_t i = 0; i < in.size(); ++i) x[i] = in[i].broadcast(at.data(), at.size());
    out.data.push_back(op(x.data(), x.size(), operands));
  });
  return out;
}

[[nodiscard]] inline std::size_t axis_of(heed::index axis, std::size_t rank) {
  return static_cast<std::size_t>(axis < 0 ? axis + static_cast<heed::index>(rank) : axis);
}

[[nodiscard]] inline constant reshape(constant x, std::vector<heed::index> dims) {
  heed::index known = 1;
  for (std::size_t a = 0; a < dims.size(); ++a) {
    if (dims[a] == 0) dims[a] = x.dims[a];
    if (dims[a] > 0) known *= dims[a];
  }
  for (heed::index& d : dims) {
    if (d < 0) d = known == 0 ? 0 : static_cast<heed::index>(x.data.size()) / known;
  }
  x.dims = std::move(dims);
  return x;
}

[[nodiscard]] inline constant unsqueeze(constant x, const std::vector<heed::index>& axes) {
  const std::size_t rank = x.dims.size() + axes.size();
  std::vector<bool> added(rank, false);
  for (const heed::index a : axes) added[axis_of(a, rank)] = true;
  std::vector<heed::index> dims;
  for (std::size_t a = 0, from = 0; a < rank; ++a) dims.push_back(added[a] ? 1 : x.dims[from++]);
  x.dims = std::move(dims);
  return x;
}

[[nodiscard]] inline constant squeeze(constant x, const std::vector<heed::index>& axes) {
  std::vector<heed::index> dims;
  for (std::size_t a = 0; a < x.dims.size(); ++a) {
    bool drop = axes.empty() && x.dims[a] == 1;
    for (const heed::index s : axes) drop = drop || axis_of(s, x.dims.size()) == a;
    if (!drop) dims.push_back(x.dims[a]);
  }
  x.dims = std::move(dims);
  return x;
}

[[nodiscard]] inline constant gather(const constant& x, const constant& at, std::size_t axis) {
  constant out{x.what, {}, {}};
  out.dims.assign(x.dims.begin(), x.dims.begin() + static_cast<std::ptrdiff_t>(axis));
  out.dims.insert(out.dims.end(), at.dims.begin(), at.dims.end());
  out.dims.insert(out.dims.end(), x.dims.begin() + static_cast<std::ptrdiff_t>(axis) + 1,
                  x.dims.end());
  for_each_element(out.dims, [&](const std::vector<heed::index>& i) {
    const double where = at.broadcast(i.data() + axis, at.dims.size());
    std::vector<heed::index> from(i.begin(), i.begin() + static_cast<std::ptrdiff_t>(axis));
    const auto w = static_cast<heed::index>(where);
    from.push_back(w < 0 ? w + x.dims[axis] : w);
    from.insert(from.end(), i.begin() + static_cast<std::ptrdiff_t>(axis + at.dims.size()),
                i.end());
    out.data.push_back(x.broadcast(from.data(), from.size()));
  });
  return out;
}

[[nodiscard]] inline constant concat(const std::vector<constant>& in) {
  constant out = in.at(0);
  for (std::size_t i = 1; i < in.size(); ++i) {
    if (in[i].dims.size() != 1) throw unsupported("Concat of rank above 1");
    out.data.insert(out.data.end(), in[i].data.begin(), in[i].data.end());
  }
  if (out.dims.size() != 1) throw unsupported("Concat of rank above 1");
  out.dims[0] = static_cast<heed::index>(out.data.size());
  return out;
}

[[nodiscard]] inline constant slice(const constant& x, const std::vector<constant>& in) {
  if (x.dims.size() != 1 || in.size() < 3) throw unsupported("Slice of rank above 1");
  const heed::index n = x.dims[0];
  const auto bound = [n](double v) {
    const double clamped = std::clamp(v < 0 ? v + double(n) : v, 0.0, double(n));
    return static_cast<heed::index>(clamped);
  };
  if (in.size() > 4 && in[4].data.at(0) != 1) throw unsupported("Slice with steps");
  constant out{x.what, {0}, {}};
  for (heed::index i = bound(in[1].data.at(0)); i < bound(in[2].data.at(0)); ++i) {
    out.data.push_back(x.data[static_cast<std::size_t>(i)]);
  }
  out.dims[0] = static_cast<heed::index>(out.data.size());
  return out;
}

[[nodiscard]] inline constant range(double start, double limit, double delta, kind what) {
  constant out{what, {0}, {}};
  const auto count = static_cast<heed::index>(std::max(std::ceil((limit - start) / delta), 0.0));
  for (heed::index i = 0; i < count; ++i) out.data.push_back(start + double(i) * delta);
  out.dims[0] = count;
  return out;
}

}  // namespace graph_ops

}  // namespace conformance
