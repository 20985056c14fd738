// SPDX-License-Identifier: MIT
// What a call of native sparse attention may be given beside q, k and v: gates, options, and for
// each branch keys and values of its own.
//
// | argument                         | axes                                                       |
// |----------------------------------|------------------------------------------------------------|
// | gates: a tensor, or              | [batch, heads, queries, 3]: compressed, selected, window   |
// | nsa::gates(g1, g2, g3), or       | three of [batch, heads, queries]                           |
// | nsa::ungated                     | all 1                                                      |
// | nsa::compressed(kc, vc)          | [batch, kv heads, blocks, ...]: by the caller's own map    |
// | nsa::to_compress(k, v)           | [batch, kv heads, keys, ...]: compressed by their means    |
// | nsa::selected(k, v)              | [batch, kv heads, keys, ...]                               |
// | nsa::window(k, v)                | [batch, kv heads, keys, ...]                               |
// | nsa::selection(s)                | as of selected_attention: nothing is then selected         |
//
// Gates are as they multiply: after the caller's sigmoid. All hold views; their tensors must
// outlive the call.
#pragma once

#include <optional>
#include <type_traits>
#include <utility>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/sparse/nsa/compressed.hpp"
#include "heed/tensor/layout.hpp"
#include "heed/tensor/tensor_like.hpp"

namespace heed::inline HEED_TARGET {

struct native_sparse_options {
  compressed_blocks compression{};             ///< blocks of the compressed branch
  index block = 64;                            ///< tokens a selected block
  index count = 16;                            ///< selected blocks a row, the fixed ones included
  index initial = 1;                           ///< first blocks, always selected
  index local = 2;                             ///< newest blocks, always selected
  index window = 512;                          ///< newest tokens, the row's own included
  std::optional<double> scale = std::nullopt;  ///< 1 / sqrt(head dim) where absent
  index offset = 0;                            ///< position of row 0
  workspace* scratch = nullptr;                ///< kept by the caller for the kernels
};

namespace nsa {

/// What an argument is for.
enum class role { gates, compressed, to_compress, selected, window, selection };

/// Keys and values of a branch.
template <role Role, class K, class V>
struct branch_tokens {
  static constexpr role part = Role;
  K keys;
  V values;
};
/// The indices of each row.
template <class S>
struct row_choices {
  static constexpr role part = role::selection;
  S indices;
};
/// One factor for each row, head and branch.
template <class G>
struct branch_gates {
  static constexpr role part = role::gates;
  G compressed;
  G selected;
  G window;
};
/// No gates: the three branches are summed as they are.
struct no_gates {};
inline constexpr no_gates ungated{};

template <tensor_like K, tensor_like V>
[[nodiscard]] auto compressed(const K& kc, const V& vc) {
  return branch_tokens<role::compressed, view_of<const K&>, view_of<const V&>>{as_view(kc),
                                                                               as_view(vc)};
}
template <tensor_like K, tensor_like V>
[[nodiscard]] auto to_compress(const K& k, const V& v) {
  return branch_tokens<role::to_compress, view_of<const K&>, view_of<const V&>>{as_view(k),
                                                                                as_view(v)};
}
template <tensor_like K, tensor_like V>
[[nodiscard]] auto selected(const K& k, const V& v) {
  return branch_tokens<role::selected, view_of<const K&>, view_of<const V&>>{as_view(k),
                                                                             as_view(v)};
}
template <tensor_like K, tensor_like V>
[[nodiscard]] auto window(const K& k, const V& v) {
  return branch_tokens<role::window, view_of<const K&>, view_of<const V&>>{as_view(k), as_view(v)};
}
template <tensor_like S>
[[nodiscard]] auto selection(const S& s) {
  return row_choices<view_of<const S&>>{as_view(s)};
}
template <tensor_like G>
[[nodiscard]] auto gates(const G& compressed, const G& selected, const G& window) {
  return branch_gates<view_of<const G&>>{as_view(compressed), as_view(selected), as_view(window)};
}

}  // namespace nsa

}  // namespace heed::inline HEED_TARGET
