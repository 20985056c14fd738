// SPDX-License-Identifier: MIT
// Inputs and outputs of a recurrence whose scalar no longer matters: rows of tokens, brought to the
// accumulator type and back.
//
// A member of the family has up to eight inputs, each perhaps of another scalar. Below the check
// their types are gone: what is left is an address, strides, and a function that copies a
// rectangle.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/kernel/chunk/gemm.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/prefetch_stream.hpp"
#include "heed/simd/packet.hpp"
#include "heed/tensor/view.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Rows that the next chunk will want, where their channels lie side by side.
inline void prefetch_rows(prefetch_stream& stream, const void* data, index offset,
                          const std::array<index, 4>& strides, index channels, index bytes,
                          index rows) noexcept {
  if (strides[3] != 1 || data == nullptr) return;
  stream.add(static_cast<const std::byte*>(data) + offset * bytes, strides[2] * bytes,
             channels * bytes, rows);
}

/// An input [batch, heads, tokens, channels]; absent where `copy` is null. An axis of extent 1 that
/// should have more is read by all: a gate of each head alone has batch and tokens of stride 0.
template <class A>
struct token_input {
  using copy_function = void (*)(const void* data, index offset, index row, index column,
                                 matrix_rows<A> to, index rows, index columns) noexcept;
  const void* data = nullptr;
  std::array<index, 4> extents{};
  std::array<index, 4> strides{};
  copy_function copy = nullptr;
  bool packets_fit = false;  ///< the rows may be read where they lie
  index bytes = 0;           ///< of a number; 0 where there is nothing to prefetch

  [[nodiscard]] bool present() const noexcept { return copy != nullptr; }
  [[nodiscard]] index heads() const noexcept { return extents[1]; }
  [[nodiscard]] index channels() const noexcept { return extents[3]; }

  /// Where tokens from `token` on of a head lie: consecutive ones of `heads` share a head.
  [[nodiscard]] index offset(index b, index head, index of_heads, index token) const noexcept {
    return b * strides[0] + head * extents[1] / std::max<index>(of_heads, 1) * strides[1] +
           token * strides[2];
  }

  /// Rows of the tokens, zero up to whole packets.
  void load(index b, index head, index of_heads, range t, matrix_rows<A> to) const noexcept {
    copy(data, offset(b, head, of_heads, t.begin), strides[2], strides[3], to, t.size(),
         channels());
    const index padded = round_up(channels(), simd::lanes<A>);
    if (padded == channels()) return;
    for (index i = 0; i < t.size(); ++i) std::fill(to[i] + channels(), to[i] + padded, A(0));
  }

  /// The first channel of each token, as one row.
  void load_numbers(index b, index head, index of_heads, range t, A* to) const noexcept {
    copy(data, offset(b, head, of_heads, t.begin), 0, strides[2], {to, 0}, 1, t.size());
  }

  void prefetch_rows(prefetch_stream& stream, index b, index head, index of_heads,
                     range t) const noexcept {
    detail::prefetch_rows(stream, data, offset(b, head, of_heads, t.begin), strides, channels(),
                          bytes, t.size());
  }

  /// The same rows where they lie, or copied to `to`.
  [[nodiscard]] matrix_rows<const A> rows(index b, index head, index of_heads, range t,
                                          matrix_rows<A> to) const noexcept {
    if (packets_fit) {
      return {static_cast<const A*>(data) + offset(b, head, of_heads, t.begin), strides[2]};
    }
    load(b, head, of_heads, t, to);
    return {to.data, to.stride};
  }
};

/// An output [batch, heads, tokens, channels].
template <class A>
struct token_output {
  using copy_function = void (*)(matrix_rows<const A> from, void* data, index offset, index row,
                                 index column, index rows, index columns) noexcept;
  void* data = nullptr;
  std::array<index, 4> extents{};
  std::array<index, 4> strides{};
  copy_function copy = nullptr;
  bool packets_fit = false;
  index bytes = 0;

  [[nodiscard]] index offset(index b, index head, index token) const noexcept {
    return b * strides[0] + head * strides[1] + token * strides[2];
  }
  void prefetch_rows(prefetch_stream& stream, index b, index head, range t) const noexcept {
    detail::prefetch_rows(stream, data, offset(b, head, t.begin), strides, extents[3], bytes,
                          t.size());
  }
  void store(index b, index head, range t, matrix_rows<const A> from) const noexcept {
    copy(from, data, offset(b, head, t.begin), strides[2], strides[3], t.size(), extents[3]);
  }
  /// Rows to write to: the output's own, or `scratch`, which `store` then copies to it.
  [[nodiscard]] matrix_rows<A> rows(index b, index head, range t,
                                    matrix_rows<A> scratch) const noexcept {
    if (!packets_fit) return scratch;
    return {static_cast<A*>(data) + offset(b, head, t.begin), strides[2]};
  }
};

template <class A, class T>
[[nodiscard]] token_input<A> make_token_input(const view<const T, 4>& x) noexcept {
  token_input<A> in{x.data(), x.extents(), x.strides(), nullptr, false};
  in.copy = [](const void* data, index offset, index row, index column, matrix_rows<A> to,
               index rows, index columns) noexcept {
    copy_tile(rectangle<const T>{static_cast<const T*>(data) + offset, row, column},
              rectangle<A>{to.data, to.stride, 1}, rows, columns);
  };
  in.packets_fit = std::is_same_v<T, A> && x.stride(3) == 1 && x.extent(3) % simd::lanes<A> == 0;
  in.bytes = static_cast<index>(sizeof(T));
  return in;
}

template <class A, class T>
[[nodiscard]] token_output<A> make_token_output(const view<T, 4>& x) noexcept {
  token_output<A> out{x.data(), x.extents(), x.strides(), nullptr, false};
  out.copy = [](matrix_rows<const A> from, void* data, index offset, index row, index column,
                index rows, index columns) noexcept {
    copy_tile(rectangle<const A>{from.data, from.stride, 1},
              rectangle<T>{static_cast<T*>(data) + offset, row, column}, rows, columns);
  };
  out.packets_fit = std::is_same_v<T, A> && x.stride(3) == 1 && x.extent(3) % simd::lanes<A> == 0;
  out.bytes = static_cast<index>(sizeof(T));
  return out;
}

}  // namespace heed::inline HEED_TARGET::detail
