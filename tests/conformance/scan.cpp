// SPDX-License-Identifier: MIT
// Diagonal scans of the `fla` folder: HGRN and Mamba's selective scan.
#include <heed/linear.hpp>
#include <string>

#include "conformance/case.hpp"

namespace conformance {

namespace {

using heed::index;

/// h = exp(g) h + x, over batch x tokens x channels.
template <class T>
void hgrn(const test_case& c, const std::string& scalar, comparison& results) {
  const auto x = to_tensor<T, 3>(c.required_input("x"));
  const auto g = to_tensor<T, 3>(c.required_input("g"));
  heed::tensor<T, 2> state({x.extents()[0], x.extents()[2]});
  if (const array* initial = c.input("initial_state")) state = to_tensor<T, 2>(*initial);
  const auto out = heed::hgrn(x, g, state);
  results.add("o in " + scalar, values_of(heed::as_view(out)), c.output("o"));
  results.add("h in " + scalar, values_of(heed::as_view(state)), c.output("h"));
}

/// Batch x channels x tokens as batch x tokens x channels, by strides.
template <class T>
[[nodiscard]] heed::view<const T, 3> tokens_second(const heed::tensor<T, 3>& t) {
  return heed::as_view(t).swap_axes(1, 2);
}

/// b or c, batch x [groups x] N x tokens, as batch x tokens x groups x N.
template <class T>
class scan_weights {
 public:
  explicit scan_weights(const array& a) {
    if (a.rank() == 4) {
      memory_ = to_tensor<T, 4>(a);
    } else {
      const auto plain = to_tensor<T, 3>(a);
      const auto& e = plain.extents();
      memory_ = heed::tensor<T, 4>({e[0], 1, e[1], e[2]});
      for (index i = 0; i < plain.size(); ++i) memory_.data()[i] = plain.data()[i];
    }
  }
  [[nodiscard]] heed::view<const T, 4> view() const {
    return heed::view<const T, 4>(heed::as_view(memory_)).swap_axes(1, 3).swap_axes(2, 3);
  }

 private:
  heed::tensor<T, 4> memory_;
};

template <class T>
void selective_scan(const test_case& c, const std::string& scalar, comparison& results) {
  const auto x = to_tensor<T, 3>(c.required_input("u"));
  const auto dt = to_tensor<T, 3>(c.required_input("delta"));
  const auto a = to_tensor<T, 2>(c.required_input("A"));
  const scan_weights<T> b(c.required_input("B"));
  const scan_weights<T> weights(c.required_input("C"));
  heed::tensor<T, 1> skip, bias;
  heed::tensor<T, 3> gate;
  heed::selective_scan_options<T> options;
  options.softplus = c.attribute<bool>("delta_softplus", false);
  if (const array* in = c.input("D")) options.skip = heed::as_view(skip = to_tensor<T, 1>(*in));
  if (const array* in = c.input("delta_bias")) {
    options.dt_bias = heed::as_view(bias = to_tensor<T, 1>(*in));
  }
  if (const array* in = c.input("z")) {
    gate = to_tensor<T, 3>(*in);
    options.gate = tokens_second(gate);
  }
  heed::tensor<T, 3> state({x.extents()[0], x.extents()[1], a.extents()[1]});
  heed::tensor<T, 3> out(x.extents());
  heed::selective_scan_into(heed::as_view(out).swap_axes(1, 2), tokens_second(x), tokens_second(dt),
                            a, b.view(), weights.view(), state, options);
  results.add("y in " + scalar, values_of(heed::as_view(out)), c.output("y"));
  if (c.attribute<bool>("return_last_state", false)) {
    results.add("h in " + scalar, values_of(heed::as_view(state)), c.output("h"));
  }
}

}  // namespace

bool run_scan(const test_case& c, comparison& results) {
  if (c.op() == "hgrn") {
    hgrn<float>(c, "float", results);
    hgrn<double>(c, "double", results);
  } else if (c.op() == "mamba1_selective_scan") {
    selective_scan<float>(c, "float", results);
    selective_scan<double>(c, "double", results);
  } else {
    return false;
  }
  return true;
}

}  // namespace conformance
