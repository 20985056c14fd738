// SPDX-License-Identifier: MIT
// heed in Python, for comparisons: attention, linear attention, a recurrence and a cache over NumPy
// arrays of floats, batch x heads x tokens x channels in any strides, without a copy of any input.
//
//   import heed
//   out = heed.attention(q, k, v, causal=True, window=255)
//
// An array of another type is refused rather than converted. The interpreter is free for other
// threads while heed computes. README.md says how it is built.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/linear.hpp>
#include <heed/parallel.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace py = pybind11;

namespace {

using heed::index_t;
using numbers = py::array_t<float>;

/// The array's own memory. Strides are of elements, of any sign.
template <int Rank>
heed::view<const float, Rank> view_of(const std::string& name, const py::array& a) {
  if (!py::isinstance<numbers>(a)) {  // the type alone: another order of bytes is another type
    throw py::type_error(name + " holds " + std::string(py::str(a.dtype())) + ", needs float32");
  }
  if (a.ndim() != Rank) {
    throw heed::shape_error(name + " has " + std::to_string(a.ndim()) + " axes, needs " +
                            std::to_string(Rank));
  }
  constexpr auto size = static_cast<py::ssize_t>(sizeof(float));
  bool aligned = reinterpret_cast<std::uintptr_t>(a.data()) % alignof(float) == 0;
  typename heed::view<const float, Rank>::extents_type extents{};
  typename heed::view<const float, Rank>::extents_type strides{};
  for (int axis = 0; axis < Rank; ++axis) {
    const auto i = static_cast<std::size_t>(axis);
    aligned = aligned && a.strides(axis) % size == 0;
    extents[i] = a.shape(axis);
    strides[i] = a.strides(axis) / size;
  }
  if (!aligned) throw heed::shape_error(name + " is not aligned as float32 is: copy it first");
  return {static_cast<const float*>(a.data()), extents, strides};
}

using view4 = heed::view<const float, 4>;

/// A new array for the queries' results, and heed's view of it.
struct result {
  result(const view4& q, const view4& v)
      : values({q.extent(0), q.extent(1), q.extent(2), v.extent(3)}),
        view(values.mutable_data(), {q.extent(0), q.extent(1), q.extent(2), v.extent(3)}) {}
  numbers values;
  heed::view<float, 4> view;
};

/// The threads of every call. A call keeps those it began with.
std::shared_ptr<heed::thread_pool>& threads() {
  static auto pool = std::make_shared<heed::thread_pool>();
  return pool;
}

/// Computes while other threads of the interpreter run. No Python object is touched meanwhile.
template <class Compute>
void beside_python(const Compute& compute) {
  const py::gil_scoped_release free;
  compute();
}

numbers attention(const py::array& q, const py::array& k, const py::array& v, bool causal,
                  std::optional<index_t> window, std::optional<double> scale, index_t offset) {
  const auto q4 = view_of<4>("q", q);
  const auto k4 = view_of<4>("k", k);
  const auto v4 = view_of<4>("v", v);
  result out(q4, v4);
  const auto pool = threads();
  beside_python([&] {
    const heed::attention_options options{.scale = scale, .offset = offset};
    const heed::window back{.left = window};  // without a width it hides nothing
    if (causal) {
      heed::attention_into(*pool, out.view, q4, k4, v4, options, heed::causal() && back);
    } else {
      heed::attention_into(*pool, out.view, q4, k4, v4, options, back);
    }
  });
  return out.values;
}

numbers linear_attention(const py::array& q, const py::array& k, const py::array& v, bool causal) {
  const auto q4 = view_of<4>("q", q);
  const auto k4 = view_of<4>("k", k);
  const auto v4 = view_of<4>("v", v);
  result out(q4, v4);
  const auto pool = threads();
  beside_python(
      [&] { heed::linear_attention_into(*pool, out.view, q4, k4, v4, {.causal = causal}); });
  return out.values;
}

numbers gated_delta_attention(const py::array& q, const py::array& k, const py::array& v,
                              const py::array& log_decay, const py::array& beta) {
  const auto q4 = view_of<4>("q", q);
  const auto k4 = view_of<4>("k", k);
  const auto v4 = view_of<4>("v", v);
  const auto decay3 = view_of<3>("log_decay", log_decay);
  const auto beta3 = view_of<3>("beta", beta);
  result out(q4, v4);
  const auto pool = threads();
  beside_python(
      [&] { heed::gated_delta_attention_into(*pool, out.view, q4, k4, v4, decay3, beta3); });
  return out.values;
}

class cache {
 public:
  cache(index_t batch, index_t kv_heads, index_t capacity, index_t head_dim)
      : rows_({.batch = batch, .kv_heads = kv_heads, .capacity = capacity, .head_dim = head_dim}) {}

  numbers decode(const py::array& q, const py::array& k, const py::array& v, bool causal) {
    const auto q4 = view_of<4>("q", q);
    const auto k4 = view_of<4>("k", k);
    const auto v4 = view_of<4>("v", v);
    result out(q4, v4);
    const auto pool = threads();
    beside_python([&] {
      const std::lock_guard one_at_a_time(busy_);
      if (causal) {
        heed::decode_into(*pool, out.view, q4, k4, v4, rows_, {}, heed::causal());
      } else {
        heed::decode_into(*pool, out.view, q4, k4, v4, rows_);
      }
    });
    return out.values;
  }
  [[nodiscard]] index_t length() const { return rows_.length(); }
  [[nodiscard]] index_t capacity() const { return rows_.capacity(); }

 private:
  heed::contiguous_cache<float> rows_;
  std::mutex busy_;
};

}  // namespace

PYBIND11_MODULE(heed, m) {
  m.doc() = "Attention on CPUs. Arrays are float32, batch x heads x tokens x channels.";
  m.def(
      "set_threads", [](index_t count) { threads() = std::make_shared<heed::thread_pool>(count); },
      py::arg("count"),
      "Threads of the calls to come; all of the machine's unless said. No bit depends on it.");
  m.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::kw_only(),
        py::arg("causal") = false, py::arg("window") = py::none(), py::arg("scale") = py::none(),
        py::arg("offset") = 0,
        "Softmax attention. `window`: keys back that a query sees beside its own; `offset`: the "
        "position of query 0 on the key axis; `scale`: 1 / sqrt(head dim) unless said.");
  m.def("linear_attention", &linear_attention, py::arg("q"), py::arg("k"), py::arg("v"),
        py::kw_only(), py::arg("causal") = false, "Linear attention with the feature map elu + 1.");
  m.def("gated_delta_attention", &gated_delta_attention, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("log_decay"), py::arg("beta"),
        "The gated delta rule; log_decay and beta are batch x heads x tokens.");
  py::class_<cache>(m, "Cache", "A KV cache of fixed capacity.")
      .def(py::init<index_t, index_t, index_t, index_t>(), py::kw_only(), py::arg("batch"),
           py::arg("kv_heads"), py::arg("capacity"), py::arg("head_dim"))
      .def("decode", &cache::decode, py::arg("q"), py::arg("k"), py::arg("v"), py::kw_only(),
           py::arg("causal") = true,
           "Appends k and v, then attends q, the newest tokens, to the cache.")
      .def("__len__", &cache::length)
      .def_property_readonly("capacity", &cache::capacity);
}
