// SPDX-License-Identifier: MIT
// std::mdspan of rank 2 to 4 with any strided layout, and what has its interface: the reference
// implementation (Kokkos mdspan) for standard libraries that have none yet.
//
// Nothing is copied, and nothing of it is included: the names are looked up. An accessor whose
// elements are not plain references behind a plain pointer is refused: kernels read pointers.
#pragma once

#include <concepts>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/tensor/traits.hpp"

namespace heed::inline HEED_TARGET {

/// Has std::mdspan's members, always strides, and plain memory.
template <class M>
concept strided_mdspan = requires(const M& m, typename M::rank_type axis) {
  typename M::extents_type;
  typename M::layout_type;
  typename M::accessor_type;
  requires std::same_as<typename M::data_handle_type, typename M::element_type*>;
  requires std::same_as<typename M::reference, typename M::element_type&>;
  requires M::is_always_strided();
  { M::rank() } -> std::convertible_to<std::size_t>;
  { m.extent(axis) } -> std::convertible_to<index>;
  { m.stride(axis) } -> std::convertible_to<index>;
  { m.data_handle() } -> std::convertible_to<typename M::data_handle_type>;
};

template <strided_mdspan M>
struct tensor_traits<M> {
  static constexpr bool owns_memory = false;
  static auto to_view(const M& m) {
    constexpr int rank = static_cast<int>(M::rank());
    using view_type = view<typename M::element_type, rank>;
    typename view_type::extents_type extents{};
    typename view_type::extents_type strides{};
    for (std::size_t a = 0; a < M::rank(); ++a) {
      extents[a] = static_cast<index>(m.extent(static_cast<typename M::rank_type>(a)));
      strides[a] = static_cast<index>(m.stride(static_cast<typename M::rank_type>(a)));
    }
    return view_type(m.data_handle(), extents, strides);
  }
};

}  // namespace heed::inline HEED_TARGET
