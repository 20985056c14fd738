// SPDX-License-Identifier: MIT
// One conformance case: its description, inputs and expected outputs, and how results are compared.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "conformance/npy.hpp"
#include "heed/tensor.hpp"

namespace conformance {

/// What a case needs that heed does not offer: the case is skipped.
struct unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct expected_output {
  int slot = 0;
  std::string name;
  array values;
};

/// A case folder. Two forms of meta.json exist: `op` with numbered slots, and `source` with names.
class test_case {
 public:
  explicit test_case(std::filesystem::path folder) : folder_(std::move(folder)) {
    std::ifstream file(folder_ / "meta.json");
    meta_ = nlohmann::json::parse(file);
    if (!meta_.contains("inputs")) {
      load_named_files();
      return;
    }
    if (is_operator()) {
      for (const auto& in : meta_.at("inputs")) {
        inputs_.push_back({in.at("slot").get<int>(), in.at("name").get<std::string>(),
                           npy::load(folder_ / in.at("file").get<std::string>())});
      }
      for (const auto& out : meta_.at("outputs")) {
        outputs_.push_back({out.at("slot").get<int>(), out.at("name").get<std::string>(),
                            npy::load(folder_ / out.at("file").get<std::string>())});
      }
    } else {
      for (const auto& in : meta_.at("inputs").items()) {
        inputs_.push_back({-1, in.key(), npy::load(folder_ / ("in_" + in.key() + ".npy"))});
      }
      for (const auto& out : meta_.at("outputs").items()) {
        outputs_.push_back({-1, out.key(), npy::load(folder_ / ("out_" + out.key() + ".npy"))});
      }
    }
  }

  [[nodiscard]] std::string name() const {
    return meta_.value("name", folder_.filename().string());
  }
  /// The operator, or for a recurrence its name.
  [[nodiscard]] std::string op() const { return meta_.value("op", meta_.value("name", "")); }
  /// The function that computed the case, of one that has a `source`.
  [[nodiscard]] std::string function() const {
    const std::string source = meta_.value("source", "");
    return source.substr(source.find_last_of(':') + 1);
  }
  [[nodiscard]] bool is_operator() const {
    return meta_.contains("op") && meta_.at("inputs").is_array();
  }
  /// Gradients of a method: inputs by name, with files `cot_NAME` and `grad_NAME` beside theirs.
  [[nodiscard]] bool is_gradient() const { return op() == "Gradient"; }
  [[nodiscard]] array cotangent(const std::string& name) const {
    return npy::load(folder_ / ("cot_" + name + ".npy"));
  }
  [[nodiscard]] array gradient(const std::string& name) const {
    return npy::load(folder_ / ("grad_" + name + ".npy"));
  }
  [[nodiscard]] const nlohmann::json& meta() const { return meta_; }

  [[nodiscard]] const array* input(int slot) const {
    for (const auto& in : inputs_) {
      if (in.slot == slot) return &in.values;
    }
    return nullptr;
  }
  [[nodiscard]] const array* input(const std::string& name) const {
    for (const auto& in : inputs_) {
      if (in.name == name) return &in.values;
    }
    return nullptr;
  }
  template <class Key>
  [[nodiscard]] const array& required_input(const Key& key) const {
    const array* in = input(key);
    if (in == nullptr) throw std::runtime_error("the case lacks a required input");
    return *in;
  }
  [[nodiscard]] const array* output(int slot) const {
    for (const auto& out : outputs_) {
      if (out.slot == slot) return &out.values;
    }
    return nullptr;
  }
  [[nodiscard]] const array& output(const std::string& name) const {
    for (const auto& out : outputs_) {
      if (out.name == name) return out.values;
    }
    throw std::runtime_error("the case lacks output " + name);
  }

  [[nodiscard]] const array* find_output(const std::string& name) const {
    for (const auto& out : outputs_) {
      if (out.name == name) return &out.values;
    }
    return nullptr;
  }

  template <class T>
  [[nodiscard]] T attribute(const std::string& key, T otherwise) const {
    return attributes().value(key, otherwise);
  }
  [[nodiscard]] const nlohmann::json* attribute(const std::string& key) const {
    const auto found = attributes().find(key);
    return found == attributes().end() ? nullptr : &*found;
  }
  /// A case is not passed by ignoring what it needs.
  void allow_only(const std::vector<std::string>& known, int last_input, int last_output) const {
    for (const auto& item : attributes().items()) {
      bool found = false;
      for (const auto& k : known) found = found || k == item.key();
      if (!found) throw unsupported("attribute " + item.key());
    }
    for (const auto& in : inputs_) {
      if (in.slot > last_input) throw unsupported("input " + in.name);
    }
    for (const auto& out : outputs_) {
      if (out.slot > last_output) throw unsupported("output " + out.name);
    }
  }

 private:
  [[nodiscard]] const nlohmann::json& attributes() const {
    static const nlohmann::json none = nlohmann::json::object();
    const auto found = meta_.find(is_operator() ? "attributes" : "params");
    return found == meta_.end() ? none : *found;
  }

  /// A case that lists nothing: its files are named in_NAME and out_NAME.
  void load_named_files() {
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      if (entry.path().extension() != ".npy") continue;
      const std::string name = entry.path().stem().string();
      if (name.rfind("in_", 0) == 0) {
        inputs_.push_back({-1, name.substr(3), npy::load(entry.path())});
      } else if (name.rfind("out_", 0) == 0) {
        outputs_.push_back({-1, name.substr(4), npy::load(entry.path())});
      }
    }
  }

  std::filesystem::path folder_;
  nlohmann::json meta_;
  std::vector<expected_output> inputs_;  // the same three facts describe an input
  std::vector<expected_output> outputs_;
};

/// A case's input as a heed tensor of scalar T. Throws where the rank differs.
template <class T, int Rank>
[[nodiscard]] heed::tensor<T, Rank> to_tensor(const array& a) {
  if (a.rank() != static_cast<std::size_t>(Rank)) {
    throw std::runtime_error("an input has rank " + std::to_string(a.rank()) + ", expected " +
                             std::to_string(Rank));
  }
  typename heed::tensor<T, Rank>::extents_type extents{};
  for (std::size_t i = 0; i < extents.size(); ++i) extents[i] = a.shape[i];
  heed::tensor<T, Rank> out(extents);
  for (std::size_t i = 0; i < a.values.size(); ++i) out.data()[i] = static_cast<T>(a.values[i]);
  return out;
}

[[nodiscard]] inline std::vector<heed::index> to_indices(const array& a) {
  std::vector<heed::index> out;
  for (const double x : a.values) out.push_back(static_cast<heed::index>(x));
  return out;
}

/// Queries, keys, values or an output as batch x heads x tokens x channels. Packed rank-3 arrays,
/// batch x tokens x (heads * channels), are seen so through strides.
template <class T>
class operand {
 public:
  operand(const array& a, heed::index heads) {
    if (a.rank() == 3) {
      packed_ = to_tensor<T, 3>(a);
      view_ = heed::split_heads(packed_, heads);
    } else {
      plain_ = to_tensor<T, 4>(a);
      view_ = heed::as_view(plain_);
    }
  }
  operand(const operand&) = delete;
  operand& operator=(const operand&) = delete;

  [[nodiscard]] heed::view<T, 4> view() const { return view_; }
  /// The elements in the array's own order.
  [[nodiscard]] std::vector<double> values() const {
    const T* first = packed_.size() > 0 ? packed_.data() : plain_.data();
    std::vector<double> out;
    for (heed::index i = 0; i < view_.size(); ++i) out.push_back(static_cast<double>(first[i]));
    return out;
  }

 private:
  heed::tensor<T, 3> packed_;
  heed::tensor<T, 4> plain_;
  heed::view<T, 4> view_;
};

/// The elements of any view, last axis fastest.
template <class T, int Rank>
[[nodiscard]] std::vector<double> values_of(const heed::view<T, Rank>& v) {
  std::vector<double> out;
  if constexpr (Rank == 1) {
    for (heed::index i = 0; i < v.extent(0); ++i) out.push_back(static_cast<double>(v(i)));
  } else {
    for (heed::index i = 0; i < v.extent(0); ++i) {
      const auto inner = values_of(v[i]);
      out.insert(out.end(), inner.begin(), inner.end());
    }
  }
  return out;
}

/// An array batch x tokens x heads x channels, seen heads first.
template <class T>
struct token_major {
  heed::tensor<T, 4> memory;
  explicit token_major(const array& a) : memory(to_tensor<T, 4>(a)) {}
  [[nodiscard]] heed::view<T, 4> view() { return heed::heads_first(memory); }
};

/// Collects comparisons; remembers the largest error and the first result out of tolerance.
class comparison {
 public:
  comparison(double rtol, double atol) : rtol_(rtol), atol_(atol) {}

  void add(const std::string& what, const std::vector<double>& got, const array& expected) {
    ++results_;
    if (got.size() != expected.values.size()) {
      note(what + " has " + std::to_string(got.size()) + " elements, expected " +
           std::to_string(expected.values.size()));
      return;
    }
    // Half has 11 bits: a sum of products that was rounded at each step is off by about 1e-3.
    const double atol = expected.is_half() ? 1e-3 : atol_;
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double want = expected.values[i];
      const bool same = got[i] == want || (std::isnan(got[i]) && std::isnan(want));
      const double error = same ? 0.0 : std::abs(got[i] - want);
      if (!(error <= largest_)) largest_ = std::isnan(error) ? INFINITY : error;
      // 0 times an infinity that was met exactly is no tolerance.
      if (!same && !(error <= atol + rtol_ * std::abs(want))) note(what);
    }
  }

  /// Errors are measured against the largest number expected, for a sum's rounding errors are of
  /// the size of its terms.
  void add_relative(const std::string& what, const std::vector<double>& got, const array& expected,
                    double tolerance) {
    ++results_;
    double size = 0;
    for (const double x : expected.values) size = std::max(size, std::abs(x));
    bool same = got.size() == expected.values.size();
    for (std::size_t i = 0; same && i < got.size(); ++i) {
      const double error = std::abs(got[i] - expected.values[i]);
      const double relative = error == 0 ? 0.0 : error / size;
      if (!(relative <= largest_)) largest_ = std::isnan(relative) ? INFINITY : relative;
      same = relative <= tolerance;
    }
    if (!same) note(what);
  }

  [[nodiscard]] bool passed() const { return failure_.empty() && results_ > 0; }
  [[nodiscard]] double largest() const { return largest_; }
  [[nodiscard]] const std::string& failure() const { return failure_; }

 private:
  void note(const std::string& what) {
    if (failure_.empty()) failure_ = what;
  }
  double rtol_;
  double atol_;
  double largest_ = 0;
  int results_ = 0;
  std::string failure_;
};

// The operators. Each throws `unsupported` for what heed does not offer.
void run_attention(const test_case& c, comparison& results);
void run_flex_attention(const test_case& c, comparison& results);
void run_rotary_embedding(const test_case& c, comparison& results);
void run_linear_attention(const test_case& c, comparison& results);
void run_causal_convolution(const test_case& c, comparison& results);
void run_latent_attention(const test_case& c, comparison& results);
/// Numbers, their 8-bit codes, and the value of every code: a folder without a description.
[[nodiscard]] bool is_float8_case(const std::filesystem::path& folder);
void run_float8(const std::filesystem::path& folder, comparison& results);
/// The cases of the `gradients` folder, by method.
void run_gradient(const test_case& c, comparison& results);
/// Those with a matrix state; false where the case is none of them.
[[nodiscard]] bool run_matrix_state_gradient(const test_case& c, comparison& results);
[[nodiscard]] bool run_scan_gradient(const test_case& c, comparison& results);
/// The recurrences of the `fla` folder, by name.
void run_recurrence(const test_case& c, comparison& results);
/// Those that are softmax attention under a mask; false for any other.
[[nodiscard]] bool run_masked_attention(const test_case& c, comparison& results);
/// Those of native sparse attention; false for any other.
[[nodiscard]] bool run_native_sparse(const test_case& c, comparison& results);
/// Those that are diagonal scans; false for any other.
[[nodiscard]] bool run_scan(const test_case& c, comparison& results);
/// Those with a matrix state; false where the case is none of them.
[[nodiscard]] bool run_gated_recurrence(const test_case& c, comparison& results);

}  // namespace conformance
