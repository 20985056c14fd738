// SPDX-License-Identifier: MIT
// A small interpreter of tensor graphs over scores, for modifiers that a case brings along.
//
// A graph takes one tensor, the scores [batch, heads, queries, keys], and gives one back. Nodes
// that do not depend on the scores (positions, masks, constants) are computed once, as whole
// arrays. Nodes that do must be elementwise; the graph is then a function of one score and its
// position, which is what a score modifier is. A node that mixes scores (a reduction, a product) is
// `unsupported`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "case.hpp"

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
  /// The element that stands at `at` when the array is broadcast, right-aligned.
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

class score_graph {
 public:
  score_graph(const nlohmann::json& graph, const std::vector<heed::index>& score_dims)
      : score_dims_(score_dims) {
    if (!graph.is_object() || !graph.contains("nodes"))
      throw unsupported("a modifier by name only");
    if (graph.at("inputs").size() != 1) throw unsupported("a modifier of several tensors");
    slots_[graph.at("inputs").at(0).at("name").get<std::string>()] = {std::nullopt, 0,
                                                                      kind::floating};
    for (const auto& c : graph.value("initializers", nlohmann::json::array())) {
      define(c.at("name").get<std::string>(), parse(c));
    }
    for (const auto& node : graph.at("nodes")) add(node);
    const std::string result = graph.at("outputs").at(0).at("name").get<std::string>();
    if (slots_.count(result) == 0) throw std::runtime_error("a graph lacks its output " + result);
    result_ = slots_.at(result);
  }

  /// The new score at a position.
  [[nodiscard]] double operator()(double score, const heed::position& p) const {
    const heed::index at[] = {p.batch, p.head, p.row, p.key};
    std::vector<double> registers(steps_.size() + 1);
    registers[0] = score;
    std::vector<double> x;
    for (std::size_t s = 0; s < steps_.size(); ++s) {
      x.clear();
      for (const slot& in : steps_[s].in) x.push_back(read(in, registers, at));
      registers[s + 1] = steps_[s].op(x.data(), x.size(), steps_[s].operands);
    }
    return read(result_, registers, at);
  }

 private:
  /// A value of the graph: a constant, or the register that holds it for the score at hand.
  struct slot {
    std::optional<constant> whole;
    std::size_t at = 0;
    kind what = kind::floating;
  };
  struct step {
    graph_ops::scalar_op op = nullptr;
    kind operands = kind::floating;
    std::vector<slot> in;
  };

  static double read(const slot& s, const std::vector<double>& registers, const heed::index* at) {
    return s.whole ? s.whole->broadcast(at, 4) : registers[s.at];
  }

  static double number(const nlohmann::json& j) {
    return j.is_string()    ? std::stod(j.get<std::string>())
           : j.is_boolean() ? double(j.get<bool>())
                            : j.get<double>();
  }
  static constant parse(const nlohmann::json& j) {
    const std::string type = j.value("dtype", "float32");
    constant c;
    c.what = type == "bool"                            ? kind::boolean
             : type.find("float") != std::string::npos ? kind::floating
                                                       : kind::integer;
    c.dims = j.value("dims", std::vector<heed::index>{});
    for (const auto& x : j.at("data")) c.data.push_back(number(x));
    return c;
  }

  void define(const std::string& name, constant c) {
    const kind what = c.what;
    slots_[name] = {std::move(c), 0, what};
  }

  void add(const nlohmann::json& node) {
    const std::string op = node.at("op").get<std::string>();
    const nlohmann::json attrs = node.value("attrs", nlohmann::json::object());
    const std::string name = node.at("outputs").at(0).get<std::string>();
    std::vector<slot> in;
    bool whole = true;
    for (const auto& input : node.at("inputs")) {
      const std::string from = input.get<std::string>();
      if (from.empty()) throw unsupported(op + " without an operand");
      if (slots_.count(from) == 0) throw std::runtime_error("a graph reads undefined " + from);
      in.push_back(slots_.at(from));
      whole = whole && in.back().whole.has_value();
    }

    graph_ops::scalar_op scalar = nullptr;
    kind result = in.empty() ? kind::floating : in.back().what;
    if (op == "Cast") {
      std::tie(scalar, result) = graph_ops::cast(attrs.at("to").get<int>());
    } else if (op == "CastLike") {
      if (in.at(1).what != kind::floating) throw unsupported("CastLike to integers");
      scalar = graph_ops::cast(11).first;
      result = kind::floating;
    } else if (const auto found = graph_ops::elementwise().find(op);
               found != graph_ops::elementwise().end()) {
      scalar = found->second.first;
      result = found->second.second.value_or(result);
    }

    if (scalar != nullptr && !whole) {
      const kind operands = in.back().what;
      for (const slot& s : in) {
        if (s.whole && s.whole->dims.size() > 4) throw unsupported("constants of rank above 4");
      }
      steps_.push_back({scalar, operands, std::move(in)});
      slots_[name] = {std::nullopt, steps_.size(), result};
    } else if (op == "Shape" && !whole) {
      define(name, constant::vector({score_dims_.begin(), score_dims_.end()}));
    } else if (!whole) {
      throw unsupported(op + " over scores");
    } else {
      std::vector<constant> arrays;
      for (const slot& s : in) arrays.push_back(*s.whole);
      define(name, scalar != nullptr ? graph_ops::map(scalar, result, arrays.back().what, arrays)
                                     : shaped(op, arrays, attrs));
    }
  }

  /// Operators that make or rearrange whole arrays.
  static constant shaped(const std::string& op, const std::vector<constant>& in,
                         const nlohmann::json& attrs) {
    const auto axes = [&] {
      return in.size() > 1 ? in[1].indices() : attrs.value("axes", std::vector<heed::index>{});
    };
    if (op == "Constant") {
      if (attrs.at("value").is_object()) return parse(attrs.at("value"));
      return {kind::floating, {}, {number(attrs.at("value"))}};
    }
    if (op == "ConstantOfShape") {
      constant c{kind::floating, in.at(0).indices(), {}};
      double fill = 0;
      if (attrs.contains("value")) {
        const constant v = parse(attrs.at("value"));
        fill = v.data.at(0);
        c.what = v.what;
      }
      graph_ops::for_each_element(c.dims, [&](const auto&) { c.data.push_back(fill); });
      return c;
    }
    if (op == "Shape") {
      return constant::vector({in.at(0).dims.begin(), in.at(0).dims.end()});
    }
    if (op == "Size") {
      return {kind::integer, {}, {static_cast<double>(in.at(0).data.size())}};
    }
    if (op == "Gather") {
      const auto axis =
          graph_ops::axis_of(attrs.value("axis", heed::index{0}), in.at(0).dims.size());
      return graph_ops::gather(in.at(0), in.at(1), axis);
    }
    if (op == "Range") {
      return graph_ops::range(in.at(0).data.at(0), in.at(1).data.at(0), in.at(2).data.at(0),
                              in.at(0).what);
    }
    if (op == "Reshape") return graph_ops::reshape(in.at(0), in.at(1).indices());
    if (op == "Unsqueeze") return graph_ops::unsqueeze(in.at(0), axes());
    if (op == "Squeeze") return graph_ops::squeeze(in.at(0), axes());
    if (op == "Concat") return graph_ops::concat(in);
    if (op == "Slice") return graph_ops::slice(in.at(0), in);
    if (op == "Expand") {
      constant like{in.at(0).what, in.at(1).indices(), {}};
      constant out{in.at(0).what, graph_ops::broadcast_dims({in.at(0), like}), {}};
      graph_ops::for_each_element(out.dims, [&](const std::vector<heed::index>& at) {
        out.data.push_back(in[0].broadcast(at.data(), at.size()));
      });
      return out;
    }
    throw unsupported("graph operator " + op);
  }

  std::vector<heed::index> score_dims_;
  std::map<std::string, slot> slots_;
  std::vector<step> steps_;
  slot result_;
};

}  // namespace conformance
