// SPDX-License-Identifier: MIT
// 8-bit floats: the code of every number of inputs.npy, and the value of each of the 256 codes.
#include <cstdint>
#include <vector>

#include "conformance/case.hpp"
#include "heed/core.hpp"

namespace conformance {

namespace {

template <class F, class Encode>
void compare(const std::filesystem::path& folder, const std::string& name, const Encode& encode,
             comparison& results) {
  const array inputs = npy::load(folder / "inputs.npy");
  std::vector<double> codes;
  for (const double x : inputs.values) codes.push_back(encode(static_cast<float>(x)).code());
  results.add(name + " codes", codes, npy::load(folder / (name + "_codes.npy")));
  std::vector<double> values;
  for (int code = 0; code < 256; ++code) {
    values.push_back(static_cast<double>(F::from_code(static_cast<std::uint8_t>(code))));
  }
  results.add(name + " values", values, npy::load(folder / (name + "_values.npy")));
}

}  // namespace

bool is_float8_case(const std::filesystem::path& folder) {
  return std::filesystem::exists(folder / "inputs.npy") &&
         std::filesystem::exists(folder / "e4m3fn_codes.npy");
}

void run_float8(const std::filesystem::path& folder, comparison& results) {
  compare<heed::float8_e4m3>(
      folder, "e4m3fn", [](float x) { return heed::float8_e4m3(x); }, results);
  // The codes of this kind go to infinity as IEEE 754's do.
  compare<heed::float8_e5m2>(
      folder, "e5m2", [](float x) { return heed::float8_e5m2::with_infinity(x); }, results);
}

}  // namespace conformance
