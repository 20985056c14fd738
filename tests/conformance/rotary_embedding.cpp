// SPDX-License-Identifier: MIT
// RotaryEmbedding: explicit tables, looked up by position ids or already gathered.
#include <heed/rotary.hpp>

#include "conformance/case.hpp"

namespace conformance {

namespace {

template <class T>
void run_as(const test_case& c, const char* scalar, comparison& results) {
  const array& input = c.required_input(0);
  const array& cos = c.required_input(1);
  const array& sin = c.required_input(2);
  const array& expected = *c.output(0);
  const auto layout = c.attribute<int>("interleaved", 0) != 0 ? heed::rotary_layout::interleaved
                                                              : heed::rotary_layout::half_split;
  const auto heads = c.attribute<heed::index>("num_heads", 1);
  const auto rotated = c.attribute<heed::index>("rotary_embedding_dim", 0);

  operand<T> x(input, heads);
  heed::require_equal("cos", "pairs", cos.shape.back(), "the case",
                      (rotated > 0 ? rotated : x.view().extent(3)) / 2);
  if (cos.rank() == 2) {
    const array* ids = c.input(3);
    const auto cos_table = to_tensor<T, 2>(cos);
    const auto sin_table = to_tensor<T, 2>(sin);
    if (ids != nullptr) {
      const auto positions = to_tensor<heed::index, 2>(*ids);
      heed::apply_rotary(x.view(), layout, cos_table, sin_table, positions);
    } else {
      heed::apply_rotary(x.view(), layout, cos_table, sin_table);
    }
  } else {
    const auto cos_rows = to_tensor<T, 3>(cos);
    const auto sin_rows = to_tensor<T, 3>(sin);
    heed::apply_rotary(x.view(), layout, cos_rows, sin_rows);
  }
  results.add(std::string("output in ") + scalar, x.values(), expected);
}

}  // namespace

void run_rotary_embedding(const test_case& c, comparison& results) {
  c.allow_only({"interleaved", "num_heads", "rotary_embedding_dim"}, 3, 0);
  if (c.required_input(0).is_half()) {
    run_as<heed::half>(c, "half", results);
  } else {
    run_as<float>(c, "float", results);
  }
  run_as<double>(c, "double", results);
}

}  // namespace conformance
