// SPDX-License-Identifier: MIT
// A rotary position embedding as a value: layout, rotated dims and the frequency of every pair.
//
//   pair i of a head at position p is rotated by the angle  p * frequency(i),  i = 0 .. r/2 - 1
//   [a', b'] = magnitude * [a cos - b sin, b cos + a sin]
//
// The r rotated dims are a prefix of the head's D channels; the rest passes through. Which two
// channels are pair i is the layout, and libraries disagree on it, so it has no default:
//
// | layout      | pair i          | used by                                            |
// |-------------|-----------------|----------------------------------------------------|
// | interleaved | (2i, 2i + 1)    | the paper, llama2.c, GPT-J, ONNX interleaved = 1   |
// | half_split  | (i, i + r/2)    | GPT-NeoX, most converted checkpoints, ONNX default |
//
// Frequencies are kept, and angles computed, in double: at position 1,000,000 the angle is then
// right to 1e-9, where float would be wrong by several hundredths of a rotation. Construction
// allocates r/2 doubles; afterwards a rotary_embedding is immutable and safe to share.
//
// Source: Su et al. 2021, arXiv 2104.09864, eq. 15 and 34. Scalings: heed/rotary/scaling.hpp.
#pragma once

#include <cmath>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/rotary/scaling.hpp"

namespace heed::inline HEED_TARGET {

/// Which two channels are pair i, and which models have them so: see the table above.
enum class rotary_layout { interleaved, half_split };

struct rotary_options {
  double base = 10000.0;
  rotary_scaling scaling = no_scaling{};
};

class rotary_embedding {
 public:
  /// `heed::rotary_embedding rope(heed::rotary_layout::half_split, 128, {.base = 500000.0})`.
  /// Throws shape_error when `rotated_dims` is odd or less than 2, option_error when the base is
  /// not above 1, a parameter of the scaling is outside its domain, or all of them together give a
  /// frequency or a magnitude that is not finite.
  rotary_embedding(rotary_layout layout, index rotated_dims, const rotary_options& options = {})
      : layout_(layout) {
    if (rotated_dims < 2 || rotated_dims % 2 != 0) {
      fail<shape_error>("rotary_embedding has " + std::to_string(rotated_dims) +
                        " rotated dims, needs an even number of at least 2");
    }
    if (!(options.base > 1.0) || !std::isfinite(options.base)) {
      fail<option_error>("rotary_embedding base is " + std::to_string(options.base) +
                         ", must be above 1 and finite");
    }
    const detail::scaled_frequency frequency(options.scaling, options.base, rotated_dims);
    frequencies_.resize(static_cast<std::size_t>(rotated_dims / 2));
    for (std::size_t i = 0; i < frequencies_.size(); ++i) {
      frequencies_[i] = frequency(static_cast<index>(i));
    }
    magnitude_ = frequency.magnitude();
    check_numbers();
  }

  /// Frequencies of one's own, in radians per token, one a pair: for a scaling that heed lacks.
  /// Throws option_error where one of the numbers is not finite.
  rotary_embedding(rotary_layout layout, std::vector<double> frequencies, double magnitude = 1.0)
      : layout_(layout), frequencies_(std::move(frequencies)), magnitude_(magnitude) {
    check_numbers();
  }

  [[nodiscard]] rotary_layout layout() const noexcept { return layout_; }
  [[nodiscard]] index rotated_dims() const noexcept { return 2 * pairs(); }
  [[nodiscard]] index pairs() const noexcept { return static_cast<index>(frequencies_.size()); }
  [[nodiscard]] std::span<const double> frequencies() const noexcept { return frequencies_; }
  [[nodiscard]] double magnitude() const noexcept { return magnitude_; }

 private:
  /// Angles at every position are finite.
  void check_numbers() const {
    constexpr double most = 1e280;
    for (std::size_t i = 0; i < frequencies_.size(); ++i) {
      if (!(std::abs(frequencies_[i]) <= most)) {
        fail<option_error>("rotary_embedding frequency of pair " + std::to_string(i) + " is " +
                           std::to_string(frequencies_[i]) + ", must be finite");
      }
    }
    if (!std::isfinite(magnitude_)) {
      fail<option_error>("rotary_embedding magnitude is " + std::to_string(magnitude_) +
                         ", must be finite");
    }
  }

  rotary_layout layout_;
  std::vector<double> frequencies_;
  double magnitude_ = 1.0;
};

}  // namespace heed::inline HEED_TARGET
