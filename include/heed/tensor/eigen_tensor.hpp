// SPDX-License-Identifier: MIT
// Eigen::Tensor and Eigen::TensorMap of rank 2 to 4, of both layouts. Nothing is copied.
//
// Eigen's tensor module is heavy, so it is only named here; include it where you use it.
#pragma once

#include <array>

#include "heed/core/target.hpp"
#include "heed/tensor/traits.hpp"

namespace Eigen {
template <typename Scalar, int NumIndices, int Options, typename IndexType>
class Tensor;
template <typename PlainObjectType, int Options, template <class> class MakePointer>
class TensorMap;
}  // namespace Eigen

namespace heed::inline HEED_TARGET {

namespace detail {
template <int Rank, bool RowMajor, class Tensor>
auto eigen_tensor_view(Tensor& t) {
  using pointee = std::remove_pointer_t<decltype(t.data())>;
  typename view<pointee, Rank>::extents_type extents;
  typename view<pointee, Rank>::extents_type strides;
  for (std::size_t a = 0; a < static_cast<std::size_t>(Rank); ++a) {
    extents[a] = static_cast<index>(t.dimensions()[a]);
  }
  strides = view<pointee, Rank>::packed(extents);
  if constexpr (!RowMajor) {
    index step = 1;
    for (std::size_t a = 0; a < static_cast<std::size_t>(Rank); ++a) {
      strides[a] = step;
      step *= extents[a];
    }
  }
  return view<pointee, Rank>(t.data(), extents, strides);
}
}  // namespace detail

template <class Scalar, int Rank, int Options, class I>
struct tensor_traits<Eigen::Tensor<Scalar, Rank, Options, I>> {
  using self = Eigen::Tensor<Scalar, Rank, Options, I>;
  static constexpr bool owns_memory = true;
  static constexpr bool row_major = (Options & Eigen::RowMajorBit) != 0;
  static auto to_view(const self& t) { return detail::eigen_tensor_view<Rank, row_major>(t); }
  static auto to_view(self& t) { return detail::eigen_tensor_view<Rank, row_major>(t); }
  static self make(const std::array<index, static_cast<std::size_t>(Rank)>& extents) {
    std::array<I, static_cast<std::size_t>(Rank)> dims;
    for (std::size_t a = 0; a < dims.size(); ++a) dims[a] = static_cast<I>(extents[a]);
    self t(dims);
    t.setZero();
    return t;
  }
};

template <class Scalar, int Rank, int Options, class I, int MapOptions, template <class> class P>
struct tensor_traits<Eigen::TensorMap<Eigen::Tensor<Scalar, Rank, Options, I>, MapOptions, P>> {
  using self = Eigen::TensorMap<Eigen::Tensor<Scalar, Rank, Options, I>, MapOptions, P>;
  static constexpr bool owns_memory = false;
  static auto to_view(const self& t) {
    return detail::eigen_tensor_view < Rank, (Options & Eigen::RowMajorBit) != 0 > (t);
  }
  static auto make_owning(const std::array<index, static_cast<std::size_t>(Rank)>& extents) {
    return tensor_traits<Eigen::Tensor<Scalar, Rank, Options, I>>::make(extents);
  }
};

template <class Scalar, int Rank, int Options, class I, int MapOptions, template <class> class P>
struct tensor_traits<
    Eigen::TensorMap<const Eigen::Tensor<Scalar, Rank, Options, I>, MapOptions, P>> {
  using self = Eigen::TensorMap<const Eigen::Tensor<Scalar, Rank, Options, I>, MapOptions, P>;
  static constexpr bool owns_memory = false;
  static auto to_view(const self& t) {
    return detail::eigen_tensor_view < Rank, (Options & Eigen::RowMajorBit) != 0 > (t);
  }
  static auto make_owning(const std::array<index, static_cast<std::size_t>(Rank)>& extents) {
    return tensor_traits<Eigen::Tensor<Scalar, Rank, Options, I>>::make(extents);
  }
};

}  // namespace heed::inline HEED_TARGET
