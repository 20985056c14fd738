// SPDX-License-Identifier: MIT
// std::mdspan of rank 2 to 4 with any strided layout, where the standard library has it.
// Nothing is copied. An accessor that is not the default one is refused: kernels read pointers.
#pragma once

#if __has_include(<version>)
#include <version>
#endif

#if defined(__cpp_lib_mdspan)
#include <mdspan>

#include "heed/tensor/traits.hpp"

namespace heed {

template <class T, class Extents, class Layout>
requires(Layout::template mapping<Extents>::is_always_strided()) struct tensor_traits<
    std::mdspan<T, Extents, Layout, std::default_accessor<T>>> {
  using self = std::mdspan<T, Extents, Layout, std::default_accessor<T>>;
  static constexpr bool owns_memory = false;
  static auto to_view(const self& m) {
    constexpr int rank = static_cast<int>(Extents::rank());
    typename view<T, rank>::extents_type extents;
    typename view<T, rank>::extents_type strides;
    for (std::size_t a = 0; a < Extents::rank(); ++a) {
      extents[a] = static_cast<index>(m.extent(a));
      strides[a] = static_cast<index>(m.stride(a));
    }
    return view<T, rank>(m.data_handle(), extents, strides);
  }
};

}  // namespace heed
#endif
