// SPDX-License-Identifier: MIT
// Rows of codes and their scales, in equal parts: a batch entry's, or a page's. What a cache of
// codes keeps its keys in, and its values.
//
// | tensor        | axes                                                     |
// |---------------|----------------------------------------------------------|
// | codes         | [parts, heads, rows, bytes of a row], 8 bits             |
// | scales, zeros | [parts, heads, groups of channels, rows], float          |
//
// A row has a scale and a zero point for each group of channels, which follow one another; for all of
// them where no group is given.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

#include "heed/cache/quantised/quantised_row.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// A code that means nothing without its row's scale.
template <int Bits>
struct quantised_code {
  std::uint8_t bits;
};
template <int Bits>
struct accumulator<quantised_code<Bits>> {
  using type = float;
};

namespace detail {

/// Throws shape_error unless a group of channels has at least one.
inline std::optional<index> checked_group(std::optional<index> group) {
  if (group && *group < 1) {
    fail<shape_error>("a cache has groups of " + std::to_string(*group) +
                      " channels, needs at least 1");
  }
  return group;
}
/// Groups of a row.
[[nodiscard]] constexpr index groups_of(index channels, std::optional<index> group) noexcept {
  return group && *group < channels ? ceil_div(channels, *group) : 1;
}

template <int Bits>
class code_store {
 public:
  code_store(index parts, index heads, index rows, index channels, std::optional<index> group)
      : channels_(channels),
        groups_(groups_of(channels, checked_group(group))),
        group_(groups_ > 1 ? *group : 0),
        codes_({parts, heads, rows, code_bytes<Bits>(channels)}),
        scales_({parts, heads, groups_, rows}),
        zeros_(scales_.extents()),
        wide_({channels}) {}

  [[nodiscard]] index parts() const noexcept { return codes_.extent(0); }
  [[nodiscard]] index heads() const noexcept { return codes_.extent(1); }
  [[nodiscard]] index rows() const noexcept { return codes_.extent(2); }
  [[nodiscard]] index channels() const noexcept { return channels_; }
  /// Channels that share a scale.
  [[nodiscard]] index group() const noexcept { return group_ > 0 ? group_ : channels_; }
  [[nodiscard]] index groups() const noexcept { return groups_; }
  /// Bytes of a row with its scales.
  [[nodiscard]] static index row_bytes(index channels, std::optional<index> group) noexcept {
    return code_bytes<Bits>(channels) + 8 * groups_of(channels, group);
  }

  [[nodiscard]] row_scale scale(index part, index head, index j, index g) const noexcept {
    const index at = scale_at(part, head, j) + g * rows();
    return {scales_.data()[at], zeros_.data()[at]};
  }
  /// `count` rows from row j on.
  [[nodiscard]] code_run run(index part, index head, index j, index count) const noexcept {
    const index at = scale_at(part, head, j);
    return {.codes = codes_.data() + code_at(part, head, j),
            .stride = codes_.extent(3),
            .left = count,
            .scale = scales_.data() + at,
            .zero = zeros_.data() + at,
            .group = group_,
            .group_step = rows(),
            .count = count};
  }
  /// `count` rows from row `first` on become codes of those of `from`.
  template <class S>
  void write(index part, index head, index first, index count,
             kernel::rectangle<const S> from) noexcept {
    for (index i = 0; i < count; ++i) {
      for (index c = 0; c < channels_; ++c) wide_.data()[c] = static_cast<float>(*from.at(i, c));
      std::uint8_t* const codes = codes_.data() + code_at(part, head, first + i);
      for (index g = 0; g < groups_; ++g) {
        const index begin = g * group();
        const row_scale s =
            quantise<Bits>(wide_.data() + begin, (std::min)(group(), channels_ - begin),
                           [&](index c, std::uint8_t code) {
                             store_code<Bits>(codes, channels_, begin + c, code);
                           });
        const index at = scale_at(part, head, first + i) + g * rows();
        scales_.data()[at] = s.scale;
        zeros_.data()[at] = s.zero;
      }
    }
  }
  /// The rows j .. j + count of a head as floats, each right after the last.
  void widen(index part, index head, index j, index count, float* to) const noexcept {
    for (const index end = j + count; j < end; ++j, to += channels_) {
      const index at = scale_at(part, head, j);
      widen_codes<Bits, false>(codes_.data() + code_at(part, head, j), scales_.data() + at,
                               zeros_.data() + at, channels_, to, group_, rows());
    }
  }
  /// The first `count` rows of part `from` in place of those of part `to`, of all heads.
  void copy_rows(index from, index to, index count) noexcept {
    for (index h = 0; h < heads(); ++h) {
      std::copy_n(codes_.data() + code_at(from, h, 0), count * codes_.extent(3),
                  codes_.data() + code_at(to, h, 0));
      for (index g = 0; g < groups_; ++g) {
        for (auto* const x : {&scales_, &zeros_}) {
          std::copy_n(x->data() + scale_at(from, h, 0) + g * rows(), count,
                      x->data() + scale_at(to, h, 0) + g * rows());
        }
      }
    }
  }
  /// use(data, count of numbers) for all that the first `count` rows of a head consist of.
  template <class Store, class Use>
  static void each_number(Store& store, index part, index head, index count, const Use& use) {
    use(store.codes_.data() + store.code_at(part, head, 0), count * store.codes_.extent(3));
    for (index g = 0; g < store.groups_; ++g) {
      const index at = store.scale_at(part, head, 0) + g * store.rows();
      use(store.scales_.data() + at, count);
      use(store.zeros_.data() + at, count);
    }
  }

 private:
  [[nodiscard]] index code_at(index part, index head, index j) const noexcept {
    return ((part * heads() + head) * rows() + j) * codes_.extent(3);
  }
  [[nodiscard]] index scale_at(index part, index head, index j) const noexcept {
    return (part * heads() + head) * groups_ * rows() + j;
  }

  index channels_;
  index groups_;
  index group_;  // 0: of all channels
  tensor<std::uint8_t, 4> codes_;
  tensor<float, 4> scales_;
  tensor<float, 4> zeros_;
  tensor<float, 1> wide_;  // a row on its way in
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
