// SPDX-License-Identifier: MIT
// A small interpreter of tensor graphs over scores, for modifiers that a case brings along.
//
// A graph takes one tensor, the scores [batch, heads, queries, keys], and gives one back. Nodes
// that do not depend on the scores (positions, masks, constants) are computed once, as whole
// arrays. Nodes that do must be elementwise; the graph is then a function of one score and its
// position, which is what a score modifier is. A node that mixes scores (a reduction, a product) is
// `unsupported`.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "conformance/graph_ops.hpp"

namespace conformance {

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
