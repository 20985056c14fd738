// SPDX-License-Identifier: MIT
// Where kernels read keys and values: the source concept, and the plain strided one.
//
// A source hands out runs: consecutive tokens whose rows lie a fixed stride apart. A plain tensor
// is one run per head; a paged cache has one per page. Channels of a row are `channel_stride`
// apart.
#pragma once

#include <concepts>
#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

/// `count` rows, `stride` elements apart, from `data` on.
template <class T>
struct row_run {
  const T* data = nullptr;
  index stride = 0;
  index count = 0;
};

/// `keys(batch, kv_head, j)` and `values(...)`: the run that begins at token j and ends where the
/// source's memory does, at least one token for j < length(batch).
template <class S>
concept key_value_source = requires(const S& s, index i) {
  typename S::key_scalar;
  typename S::value_scalar;
  { s.batch() } -> std::convertible_to<index>;
  { s.kv_heads() } -> std::convertible_to<index>;
  { s.head_dim() } -> std::convertible_to<index>;
  { s.value_dim() } -> std::convertible_to<index>;
  { s.length(i) } -> std::convertible_to<index>;
  { s.keys(i, i, i) } -> std::same_as<row_run<typename S::key_scalar>>;
  { s.values(i, i, i) } -> std::same_as<row_run<typename S::value_scalar>>;
  { s.key_channel_stride() } -> std::convertible_to<index>;
  { s.value_channel_stride() } -> std::convertible_to<index>;
};

/// A source whose rows are codes that only it can widen: `widen_keys(batch, kv_head, rows, to)` and
/// `widen_values(...)` write rows of floats, each right after the last. Its scalars are types that
/// nothing else can read.
template <class S>
concept widening_source =
    key_value_source<S> && requires(const S& s, index i, range rows, float* to) {
      s.widen_keys(i, i, rows, to);
      s.widen_values(i, i, rows, to);
    };

/// `count` tokens of codes of 8 or 4 bits: x = scale (code - zero). Scales and zeros are one for each
/// token, one for each token and `group` channels, or where `by_channel`, one for each channel. 4
/// bits: byte i of a row holds channel i in its low half, channel i + ceil(n / 2) in its high half.
/// Tokens kept in full have no codes, and their rows at `full`.
struct code_run {
  const std::uint8_t* codes = nullptr;
  index stride = 0;  // bytes from row to row
  index left = 0;    // rows of codes from here on, which may be prefetched
  const float* scale = nullptr;
  const float* zero = nullptr;
  index group = 0;          // channels that share a scale; 0: all of a row
  index group_step = 0;     // from the scales of one group to those of the next
  bool by_channel = false;  // keys alone
  const float* full = nullptr;
  index count = 0;
};

/// A widening source of which few queries read the codes themselves: `key_codes(batch, kv_head, j)`
/// and `value_codes(...)` are the run of codes that begins at token j, of `code_bits` each.
template <class S>
concept coded_source = widening_source<S> && requires(const S& s, index i) {
  { S::code_bits } -> std::convertible_to<int>;
  { s.key_codes(i, i, i) } -> std::same_as<code_run>;
  { s.value_codes(i, i, i) } -> std::same_as<code_run>;
};

/// Whether a source's runs of codes are pages, which it says by `static constexpr bool codes_in_pages`:
/// kernels then look for all rows of a block before they read them.
template <class S>
inline constexpr bool has_coded_pages = [] {
  if constexpr (requires { S::codes_in_pages; }) return S::codes_in_pages;
  return false;
}();

}  // namespace heed::inline HEED_TARGET
