// SPDX-License-Identifier: MIT
// Eigen matrices, maps, refs and blocks, of both storage orders, as rank-2 tensors
// (tokens x channels). Nothing is copied.
//
// An expression that owns no memory (q * 2, q.transpose() * k) is no tensor: call .eval() first.
#pragma once

#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/tensor/traits.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {
template <class T>
concept eigen_dense = std::is_base_of_v<Eigen::DenseBase<T>, T>;

template <class T>
concept eigen_direct = eigen_dense<T> && (int(T::Flags) & int(Eigen::DirectAccessBit)) != 0;

template <class T>
concept eigen_plain = eigen_direct<T> && std::is_base_of_v<Eigen::PlainObjectBase<T>, T>;
}  // namespace detail

template <detail::eigen_direct M>
struct tensor_traits<M> {
  static constexpr bool owns_memory = detail::eigen_plain<M>;

  template <class Self>
  static auto to_view(Self& m) {
    using pointee = std::remove_pointer_t<decltype(m.data())>;
    const auto inner = static_cast<index>(m.innerStride());
    const auto outer = static_cast<index>(m.outerStride());
    return view<pointee, 2>(m.data(), {static_cast<index>(m.rows()), static_cast<index>(m.cols())},
                            {M::IsRowMajor ? outer : inner, M::IsRowMajor ? inner : outer});
  }

  /// The result beside Eigen arguments is an Eigen matrix of the same storage order.
  static auto make_owning(const std::array<index, 2>& extents) {
    constexpr int order = M::IsRowMajor ? Eigen::RowMajor : Eigen::ColMajor;
    using matrix = Eigen::Matrix<typename M::Scalar, Eigen::Dynamic, Eigen::Dynamic, order>;
    return matrix(matrix::Zero(extents[0], extents[1]));
  }
};

}  // namespace heed::inline HEED_TARGET
