// SPDX-License-Identifier: MIT
// What every call asks of the types of its queries, keys and values.
#pragma once

#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/traits.hpp"

namespace heed::inline HEED_TARGET::api {

/// Compile errors for queries, keys and values that do not fit together by their types.
template <class Q, class K, class V>
constexpr void require_tensors() {
  static_assert(tensor_like<Q>,
                "heed: q is not a tensor; specialise heed::tensor_traits for its type");
  static_assert(tensor_like<K>,
                "heed: k is not a tensor; specialise heed::tensor_traits for its type");
  static_assert(tensor_like<V>,
                "heed: v is not a tensor; specialise heed::tensor_traits for its type");
  if constexpr (tensor_like<Q> && tensor_like<K> && tensor_like<V>) {
    static_assert(attention_scalar<scalar_of<Q>> && attention_scalar<scalar_of<K>> &&
                      attention_scalar<scalar_of<V>>,
                  "heed: queries, keys and values are float, double, half or bfloat16");
    static_assert(std::is_same_v<accumulate_t<scalar_of<Q>>, accumulate_t<scalar_of<K>>> &&
                      std::is_same_v<accumulate_t<scalar_of<Q>>, accumulate_t<scalar_of<V>>>,
                  "heed: q, k and v accumulate in different types; double goes with double alone");
    static_assert(rank_of<Q> == rank_of<K> && rank_of<Q> == rank_of<V>,
                  "heed: q, k and v have different ranks");
  }
}

}  // namespace heed::inline HEED_TARGET::api
