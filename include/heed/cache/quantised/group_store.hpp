// SPDX-License-Identifier: MIT
// Rows of codes in groups of tokens, in equal parts (a batch entry's, or a page's), and the newest
// rows of each sequence, which are kept in full until their group is complete.
//
// | tensor        | axes                                                           |
// |---------------|----------------------------------------------------------------|
// | codes         | [parts, heads, rows, bytes of a row], 8 bits                   |
// | scales, zeros | by channel: [parts, heads, groups, channels], float            |
// |               | else: [parts, heads, rows, 1], float                           |
// | newest        | [sequences, heads, group, channels], float                     |
//
// By channel, each channel of a group has a scale and a zero point (keys); else each row (values).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "heed/cache/quantised/quantised_row.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/copy_strided.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/tensor/scalar.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

/// A code of a key that means nothing without its channel's scale, or of a value without its row's.
template <int Bits>
struct kivi_code {
  std::uint8_t bits;
};
template <int Bits>
struct accumulator<kivi_code<Bits>> {
  using type = float;
};

namespace detail {

inline constexpr index longest_group = 256;

/// Throws shape_error unless 1 to 256 tokens are a group; `what` says whose.
inline index checked_token_group(index group, const char* what) {
  if (group < 1 || group > longest_group) {
    fail<shape_error>(std::string(what) + " of " + std::to_string(group) +
                      " tokens, needs 1 to 256");
  }
  return group;
}

template <int Bits, bool ByChannel>
class group_store {
 public:
  /// `rows` are whole groups.
  group_store(index parts, index heads, index rows, index channels, index group, index sequences)
      : channels_(channels),
        group_(group),
        codes_({parts, heads, rows, code_bytes<Bits>(channels)}),
        scales_({parts, heads, ByChannel ? rows / group : rows, ByChannel ? channels : 1}),
        zeros_(scales_.extents()),
        newest_({sequences, heads, group, channels}) {}

  [[nodiscard]] index parts() const noexcept { return codes_.extent(0); }
  [[nodiscard]] index heads() const noexcept { return codes_.extent(1); }
  [[nodiscard]] index rows() const noexcept { return codes_.extent(2); }
  [[nodiscard]] index channels() const noexcept { return channels_; }
  [[nodiscard]] index group() const noexcept { return group_; }
  [[nodiscard]] index sequences() const noexcept { return newest_.extent(0); }
  /// Bytes of a complete group of a head with its scales.
  [[nodiscard]] static constexpr index group_bytes(index group, index channels) noexcept {
    return group * code_bytes<Bits>(channels) + 8 * (ByChannel ? channels : group);
  }
  /// Bytes of a head's newest rows of a sequence.
  [[nodiscard]] static constexpr index newest_bytes(index group, index channels) noexcept {
    return static_cast<index>(sizeof(float)) * group * channels;
  }

  /// `left` rows of codes from row j on; the run ends with them, or where the scales do.
  [[nodiscard]] code_run run(index part, index head, index j, index left) const noexcept {
    const index at = scale_at(part, head, j);
    return {.codes = codes_.data() + code_at(part, head, j),
            .stride = codes_.extent(3),
            .left = left,
            .scale = scales_.data() + at,
            .zero = zeros_.data() + at,
            .by_channel = ByChannel,
            .count = ByChannel ? (std::min)(left, group_ - j % group_) : left};
  }
  /// `count` of a sequence's newest rows, from the one at place `at` of its group on.
  [[nodiscard]] code_run newest_run(index sequence, index head, index at,
                                    index count) const noexcept {
    return {.full = newest_.data() + newest_at(sequence, head, at), .count = count};
  }
  [[nodiscard]] float* newest(index sequence, index head) noexcept {
    return newest_.data() + newest_at(sequence, head, 0);
  }
  [[nodiscard]] const float* newest(index sequence, index head) const noexcept {
    return newest_.data() + newest_at(sequence, head, 0);
  }

  /// `count` rows of a sequence from row `first` of a part on become those of `from`: its newest,
  /// and codes where they complete a group.
  template <class S>
  void write(index part, index head, index first, index count, kernel::rectangle<const S> from,
             index sequence) noexcept {
    for (index i = 0; i < count;) {
      const index at = (first + i) % group_;
      const index n = (std::min)(group_ - at, count - i);
      float* const to = newest_.data() + newest_at(sequence, head, at);
      kernel::copy_tile<S, float>({from.at(i, 0), from.row, from.column}, {to, channels_, 1}, n,
                                  channels_);
      i += n;
      if (at + n == group_) quantise_newest(sequence, part, head, first + i - group_);
    }
  }
  /// The rows j .. j + count of codes as floats, each right after the last.
  void widen(index part, index head, index j, index count, float* to) const noexcept {
    for (const index end = j + count; j < end; ++j, to += channels_) {
      const index at = scale_at(part, head, j);
      widen_codes<Bits, ByChannel>(codes_.data() + code_at(part, head, j), scales_.data() + at,
                                   zeros_.data() + at, channels_, to);
    }
  }
  /// `count` of a sequence's newest rows, from the one at place `at` of its group on.
  void copy_newest(index sequence, index head, index at, index count, float* to) const noexcept {
    std::copy_n(newest_.data() + newest_at(sequence, head, at), count * channels_, to);
  }

  /// use(tensor, rows that share one of its rows) for codes, scales and zeros.
  template <class Store, class Use>
  static void each_coded(Store& store, const Use& use) {
    const index sharing = ByChannel ? store.group_ : 1;
    use(store.codes_, index{1});
    use(store.scales_, sharing);
    use(store.zeros_, sharing);
  }
  /// use(data, count of numbers) for all that the first `count` rows of a head of a part consist of;
  /// they are whole groups.
  template <class Store, class Use>
  static void each_number(Store& store, index part, index head, index count, const Use& use) {
    const index scales = (ByChannel ? count / store.group_ : count) * store.scales_.extent(3);
    use(store.codes_.data() + store.code_at(part, head, 0), count * store.codes_.extent(3));
    use(store.scales_.data() + store.scale_at(part, head, 0), scales);
    use(store.zeros_.data() + store.scale_at(part, head, 0), scales);
  }

 private:
  [[nodiscard]] index code_at(index part, index head, index j) const noexcept {
    return ((part * heads() + head) * rows() + j) * codes_.extent(3);
  }
  [[nodiscard]] index scale_at(index part, index head, index j) const noexcept {
    return ((part * heads() + head) * scales_.extent(2) + (ByChannel ? j / group_ : j)) *
           scales_.extent(3);
  }
  [[nodiscard]] index newest_at(index sequence, index head, index at) const noexcept {
    return ((sequence * heads() + head) * group_ + at) * channels_;
  }

  /// A sequence's newest rows, which are complete, become the group of codes at row `first`.
  void quantise_newest(index sequence, index part, index head, index first) noexcept {
    const float* const rows = newest(sequence, head);
    std::uint8_t* const codes = codes_.data() + code_at(part, head, first);
    float* const scale = scales_.data() + scale_at(part, head, first);
    float* const zero = zeros_.data() + scale_at(part, head, first);
    const index stride = codes_.extent(3);
    if constexpr (ByChannel) {
      float column[std::size_t{longest_group}];
      for (index c = 0; c < channels_; ++c) {
        for (index i = 0; i < group_; ++i) column[i] = rows[i * channels_ + c];
        const row_scale s = quantise<Bits>(column, group_, [&](index i, std::uint8_t code) {
          store_code<Bits>(codes + i * stride, channels_, c, code);
        });
        scale[c] = s.scale;
        zero[c] = s.zero;
      }
    } else {
      for (index i = 0; i < group_; ++i) {
        const row_scale s = quantise_row<Bits>(rows + i * channels_, channels_, codes + i * stride);
        scale[i] = s.scale;
        zero[i] = s.zero;
      }
    }
  }

  index channels_;
  index group_;
  tensor<std::uint8_t, 4> codes_;
  tensor<float, 4> scales_;
  tensor<float, 4> zeros_;
  tensor<float, 4> newest_;  // token j at place j % group
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
