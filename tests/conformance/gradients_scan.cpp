// SPDX-License-Identifier: MIT
// Gradients of S6, HGRN and the convolution. S6 and the convolution are batch x channels x tokens
// there, HGRN batch x tokens x channels.
#include <heed/linear/convolution/convolution_backward.hpp>
#include <heed/linear/scan/backward/hgrn_backward.hpp>
#include <heed/linear/scan/backward/selective_scan_backward.hpp>
#include <string>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

/// An input or a cotangent, or an empty tensor where there is none; and its gradient.
template <class T, int R>
struct operand {
  heed::tensor<T, R> value, gradient;

  [[nodiscard]] bool given() const { return value.size() > 0; }
  [[nodiscard]] heed::view<const T, R> read() const {
    return given() ? heed::view<const T, R>(heed::as_view(value)) : heed::view<const T, R>{};
  }
  [[nodiscard]] heed::view<T, R> write() {
    return given() ? heed::as_view(gradient) : heed::view<T, R>{};
  }
};

template <class V>
[[nodiscard]] V tokens_second(const V& x) {
  return x.data() == nullptr ? x : x.swap_axes(1, 2);
}

template <class T>
class gradient_case {
 public:
  gradient_case(const test_case& c, std::string scalar, double tolerance, comparison& results)
      : case_(c), scalar_(std::move(scalar)), tolerance_(tolerance), results_(results) {}

  template <int R>
  [[nodiscard]] operand<T, R> input(const char* name) const {
    operand<T, R> o;
    if (const array* a = case_.input(name)) {
      o.value = to_tensor<T, R>(*a);
      o.gradient = heed::tensor<T, R>(o.value.extents());
    }
    return o;
  }
  template <int R>
  [[nodiscard]] operand<T, R> cotangent(const char* name) const {
    operand<T, R> o;
    if (case_.meta().at("cotangents").contains(name)) {
      o.value = to_tensor<T, R>(case_.cotangent(name));
    }
    return o;
  }
  template <int R>
  void compare(const char* name, const operand<T, R>& o) const {
    if (!case_.meta().at("gradients").contains(name)) return;
    results_.add_relative(std::string("gradient of ") + name + " in " + scalar_,
                          values_of(heed::as_view(o.gradient)), case_.gradient(name), tolerance_);
  }

 private:
  const test_case& case_;
  std::string scalar_;
  double tolerance_;
  comparison& results_;
};

template <class T>
void convolution(const test_case& c, const gradient_case<T>& data) {
  auto x = data.template input<3>("x");
  auto weight = data.template input<2>("weight");
  auto bias = data.template input<1>("bias");
  auto past = data.template input<3>("past");
  const auto d_out = data.template cotangent<3>("y");
  const auto d_final = data.template cotangent<3>("present");
  heed::convolution_backward_inputs<T> in{x.read(), weight.read(), bias.read(), past.read()};
  in.silu = c.attribute<bool>("silu", true);
  in.d_out = d_out.read();
  in.d_final_state = d_final.read();
  heed::causal_convolution_backward<T>(in, {x.write(), weight.write(), bias.write(), past.write()});
  data.compare("x", x);
  data.compare("weight", weight);
  data.compare("bias", bias);
  data.compare("past", past);
}

template <class T>
void hgrn(const gradient_case<T>& data) {
  auto x = data.template input<3>("x");
  auto g = data.template input<3>("g");
  auto initial = data.template input<2>("initial_state");
  const auto d_out = data.template cotangent<3>("o");
  const auto d_final = data.template cotangent<2>("h");
  for (const index chunk : {1, 7, 64}) {
    heed::hgrn_backward<T>(
        {x.read(), g.read(), initial.read(), d_out.read(), d_final.read(), chunk},
        {x.write(), g.write(), initial.write()});
    data.compare("x", x);
    data.compare("g", g);
    data.compare("initial_state", initial);
  }
}

/// Batch x [groups x] N x tokens.
template <class T>
struct scan_weights {
  operand<T, 4> whole;

  scan_weights(const gradient_case<T>& data, const char* name, bool groups) {
    if (groups) {
      whole = data.template input<4>(name);
      return;
    }
    const auto plain = data.template input<3>(name);
    const auto& e = plain.value.extents();
    whole.value = heed::tensor<T, 4>({e[0], 1, e[1], e[2]});
    std::copy_n(plain.value.data(), plain.value.size(), whole.value.data());
    whole.gradient = heed::tensor<T, 4>(whole.value.extents());
  }
  [[nodiscard]] auto read() const { return whole.read().swap_axes(1, 3).swap_axes(2, 3); }
  [[nodiscard]] auto write() { return whole.write().swap_axes(1, 3).swap_axes(2, 3); }
};

template <class T>
void selective_scan(const test_case& c, const gradient_case<T>& data) {
  auto x = data.template input<3>("u");
  auto dt = data.template input<3>("delta");
  auto a = data.template input<2>("A");
  scan_weights<T> b(data, "B", c.required_input("B").rank() == 4);
  scan_weights<T> weights(data, "C", c.required_input("C").rank() == 4);
  auto skip = data.template input<1>("D");
  auto gate = data.template input<3>("z");
  auto bias = data.template input<1>("delta_bias");
  auto initial = data.template input<3>("initial_state");
  const auto d_out = data.template cotangent<3>("y");
  const auto d_final = data.template cotangent<3>("h");
  for (const index chunk : {1, 7, 64}) {
    heed::selective_scan_backward_inputs<T> in{tokens_second(x.read()),
                                               tokens_second(dt.read()),
                                               a.read(),
                                               b.read(),
                                               weights.read(),
                                               skip.read(),
                                               tokens_second(gate.read()),
                                               bias.read(),
                                               initial.read()};
    in.softplus = c.attribute<bool>("delta_softplus", true);
    in.d_out = tokens_second(d_out.read());
    in.d_final_state = d_final.read();
    in.chunk = chunk;
    heed::selective_scan_backward<T>(
        in,
        {tokens_second(x.write()), tokens_second(dt.write()), a.write(), b.write(), weights.write(),
         skip.write(), tokens_second(gate.write()), bias.write(), initial.write()});
    data.compare("u", x);
    data.compare("delta", dt);
    data.compare("A", a);
    data.compare("B", b.whole);
    data.compare("C", weights.whole);
    data.compare("D", skip);
    data.compare("z", gate);
    data.compare("delta_bias", bias);
    data.compare("initial_state", initial);
  }
}

template <class T>
bool run_as(const test_case& c, const std::string& scalar, double tolerance, comparison& results) {
  const std::string method = c.meta().value("method", "");
  const gradient_case<T> data(c, scalar, tolerance, results);
  if (method == "selective_scan") {
    c.allow_only({"delta_softplus"}, -1, -1);
    selective_scan<T>(c, data);
  } else if (method == "causal_convolution") {
    c.allow_only({"silu"}, -1, -1);
    convolution<T>(c, data);
  } else if (method == "hgrn") {
    c.allow_only({}, -1, -1);
    hgrn<T>(data);
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool run_scan_gradient(const test_case& c, comparison& results) {
  return run_as<double>(c, "double", 1e-10, results) && run_as<float>(c, "float", 1e-4, results);
}

}  // namespace conformance
