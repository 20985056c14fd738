// SPDX-License-Identifier: MIT
// The recurrences of the `fla` folder with a matrix state, by the function that is their source.
//
// Tensors are batch x tokens x heads x channels unless the note says head-first. Every form that
// the member has is compared, in float and in double.
#include <algorithm>
#include <cmath>
#include <heed/linear.hpp>
#include <initializer_list>
#include <string>
#include <vector>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

bool mentions(const std::string& text, const char* word) {
  return text.find(word) != std::string::npos;
}

template <class T>
class gated_case {
 public:
  gated_case(const test_case& c, std::string scalar, comparison& results)
      : c_(c),
        scalar_(std::move(scalar)),
        results_(results),
        head_first_(mentions(c.meta().value("note", ""), "head-first")) {}

  /// Rows of tokens, heads first whatever the case's layout.
  [[nodiscard]] heed::tensor<T, 4> rows(std::initializer_list<const char*> names) const {
    const auto x = to_tensor<T, 4>(find(names));
    return head_first_ ? x : heads_first(x);
  }
  [[nodiscard]] heed::tensor<T, 3> numbers(std::initializer_list<const char*> names) const {
    const auto x = to_tensor<T, 3>(find(names));
    if (head_first_) return x;
    heed::tensor<T, 3> y({x.extent(0), x.extent(2), x.extent(1)});
    for (index b = 0; b < x.extent(0); ++b) {
      for (index t = 0; t < x.extent(1); ++t) {
        for (index h = 0; h < x.extent(2); ++h) y(b, h, t) = x(b, t, h);
      }
    }
    return y;
  }
  template <int Rank>
  [[nodiscard]] heed::tensor<T, Rank> plain(const char* name) const {
    return to_tensor<T, Rank>(find({name}));
  }

  /// `transposed`: the source's state is [batch, heads, Dv, Dk].
  template <class F, class Q, class K, class V, class... In>
  void compare(const F& into, const heed::recurrence_options& options, bool transposed,
               bool parallel, const Q& q, const K& k, const V& v, const In&... in) const {
    for (const auto form :
         {heed::linear_form::recurrent, heed::linear_form::chunked, heed::linear_form::parallel}) {
      if (form == heed::linear_form::parallel && !parallel) continue;
      auto o = options;
      o.form = form;
      if (!o.scale && c_.attribute("scale") != nullptr && c_.attribute("scale")->is_number()) {
        o.scale = c_.attribute("scale")->get<double>();
      }
      const index heads = std::max(k.extent(1), v.extent(1));
      heed::tensor<T, 4> state({q.extent(0), heads, k.extent(3), v.extent(3)});
      for (const char* name : {"initial_state", "initial_states"}) {
        if (c_.input(name) == nullptr) continue;
        const auto given = to_tensor<T, 4>(*c_.input(name));
        state = transposed ? transpose_state(given) : given;
      }
      heed::tensor<T, 4> out({q.extent(0), std::max(q.extent(1), heads), q.extent(2), v.extent(3)});
      into(out, q, k, v, in..., state, o);
      const std::string how = ", form " + std::to_string(static_cast<int>(form)) + ", " + scalar_;
      const auto mine = head_first_ ? out : heads_first(out);
      bool compared = false;
      for (const auto& item : c_.meta().at("outputs").items()) {
        const std::string name = item.key();
        const array& want = c_.output(name);
        if (name == "o" || name == "out" || name == "Y" || name == "y") {
          results_.add(name + how, values_of(heed::as_view(mine)), want);
          compared = true;
        } else {
          const auto kept = transposed ? transpose_state(state) : state;
          results_.add(name + how, values_of(heed::as_view(kept)), want);
        }
      }
      if (!compared) throw std::runtime_error("the case has no output of a known name");
    }
  }

 private:
  [[nodiscard]] const array& find(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      if (c_.input(name) != nullptr) return *c_.input(name);
    }
    throw std::runtime_error(std::string("the case lacks input ") + *names.begin());
  }
  [[nodiscard]] static heed::tensor<T, 4> heads_first(const heed::tensor<T, 4>& x) {
    heed::tensor<T, 4> y({x.extent(0), x.extent(2), x.extent(1), x.extent(3)});
    for (index b = 0; b < x.extent(0); ++b) {
      for (index t = 0; t < x.extent(1); ++t) {
        for (index h = 0; h < x.extent(2); ++h) {
          for (index d = 0; d < x.extent(3); ++d) y(b, h, t, d) = x(b, t, h, d);
        }
      }
    }
    return y;
  }
  [[nodiscard]] static heed::tensor<T, 4> transpose_state(const heed::tensor<T, 4>& x) {
    heed::tensor<T, 4> y({x.extent(0), x.extent(1), x.extent(3), x.extent(2)});
    for (index b = 0; b < x.extent(0); ++b) {
      for (index h = 0; h < x.extent(1); ++h) {
        for (index r = 0; r < x.extent(2); ++r) {
          for (index d = 0; d < x.extent(3); ++d) y(b, h, d, r) = x(b, h, r, d);
        }
      }
    }
    return y;
  }

  const test_case& c_;
  std::string scalar_;
  comparison& results_;
  bool head_first_;
};

template <class T>
bool run_as(const test_case& c, const std::string& scalar, comparison& results) {
  const gated_case<T> x(c, scalar, results);
  const std::string source = c.meta().value("source", "");
  const heed::recurrence_options defaults;
  if (mentions(source, "ssd_minimal")) {
    // x and A come multiplied by dt; the state is [head dim, state dim].
    x.compare(heed::scalar_gated_attention_into, {.scale = 1.0}, true, true, x.rows({"C"}),
              x.rows({"B"}), x.rows({"X", "x"}), x.numbers({"A"}));
    return true;
  }
  // Names first: what is no member of this core must not be read.
  const bool known = mentions(source, "naive_retention") ||
                     mentions(source, "recurrent_simple_gla") ||
                     mentions(source, "recurrent_gla") || mentions(source, "recurrent_rwkv6") ||
                     mentions(source, "recurrent_kda") || mentions(source, "gated_delta_rule") ||
                     mentions(source, "delta_rule_recurrence") ||
                     mentions(source, "dplr_recurrence") || mentions(source, "iplr_recurrence");
  if (!known) return false;
  const auto q = x.rows({"q", "r"}), k = x.rows({"k"}), v = x.rows({"v"});
  if (mentions(source, "naive_retention")) {
    x.compare(heed::retention_into, defaults, false, true, q, k, v);
  } else if (mentions(source, "simple_gla")) {
    x.compare(heed::scalar_gated_attention_into, defaults, false, true, q, k, v, x.numbers({"g"}));
  } else if (mentions(source, "recurrent_gla")) {
    x.compare(heed::gated_attention_into, defaults, false, true, q, k, v, x.rows({"gk", "g"}));
  } else if (mentions(source, "rwkv6")) {
    // heed's own default is 1, as in the paper.
    x.compare(heed::rwkv6_into, {.scale = 1 / std::sqrt(double(q.extent(3)))}, false, true, q, k, v,
              x.rows({"w"}), x.template plain<2>("u"));
  } else if (mentions(source, "kda")) {
    x.compare(heed::channel_gated_delta_attention_into, defaults, false, false, q, k, v,
              x.rows({"g"}), x.numbers({"beta"}));
  } else if (mentions(source, "gated_delta_rule")) {
    x.compare(heed::gated_delta_attention_into, defaults, false, false, q, k, v, x.numbers({"g"}),
              x.numbers({"beta"}));
  } else if (mentions(source, "delta_rule_recurrence")) {
    x.compare(heed::delta_attention_into, defaults, false, false, q, k, v, x.numbers({"beta"}));
  } else if (mentions(source, "dplr_recurrence")) {
    x.compare(heed::diagonal_low_rank_attention_into, defaults, false, false, q, k, v,
              x.rows({"alpha", "a"}), x.rows({"beta", "b"}), x.rows({"gk", "g"}));
  } else {
    x.compare(heed::low_rank_attention_into, defaults, false, false, q, k, v,
              x.rows({"alpha", "a"}), x.rows({"beta", "b"}));
  }
  return true;
}

}  // namespace

bool run_gated_recurrence(const test_case& c, comparison& results) {
  return run_as<float>(c, "float", results) && run_as<double>(c, "double", results);
}

}  // namespace conformance
