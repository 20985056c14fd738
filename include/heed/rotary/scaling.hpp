// SPDX-License-Identifier: MIT
// Context extensions of the rotary embedding: how a scaling changes the frequencies of its pairs.
//
// With theta_i = base^(-2i/r) for the r/2 pairs, s the factor and L the context length the model
// was trained with (`original_context`):
//
// | scaling         | frequency of pair i                                       | cos, sin times |
// |-----------------|-----------------------------------------------------------|------------------|
// | none            | theta_i                                                   | 1 | |
// linear_scaling  | theta_i / s                                               | 1                |
// | ntk_scaling     | (base * s^(r/(r-2)))^(-2i/r)                              | 1 | |
// yarn_scaling    | (1 - g) theta_i / s + g theta_i, g a ramp (below)         | 0.1 ln s + 1     |
// | llama3_scaling  | (1 - g) theta_i / s + g theta_i, g the ramp in rotations  | 1 |
//
// Ramp in rotations, with n_i = L theta_i / (2 pi), how often pair i rotates within L:
//   g = clamp((n_i - low) / (high - low), 0, 1).
// Pairs that rotate often keep their frequency, pairs of less than a rotation are interpolated.
//
// YaRN's paper (eq. 15 to 17) ramps in rotations; the code its authors published, and the models
// trained with it, ramp in the pair's index between the two indices where n_i equals high and low,
// rounded outwards to integers. The two differ by a few per cent in the middle frequencies, so the
// ramp is named: `yarn_ramp::pair_index` (default, what checkpoints mean) or `yarn_ramp::rotations`
// (the paper).
//
// Sources: Chen et al. 2023, arXiv 2306.15595 (linear); Peng et al. 2023, arXiv 2309.00071
// (NTK-aware: definition 1; YaRN: definitions 2 and 3, eq. 22); Grattafiori et al. 2024, arXiv
// 2407.21783 (Llama 3.1; the parameters are those of its published checkpoints).
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <string>
#include <variant>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

struct no_scaling {};

/// Position interpolation: every position divided by `factor`.
struct linear_scaling {
  double factor = 1.0;
};

/// The base grows so that the slowest pair is interpolated by `factor` and the fastest is
/// untouched.
struct ntk_scaling {
  double factor = 1.0;
};

enum class yarn_ramp { pair_index, rotations };

struct yarn_scaling {
  double factor = 1.0;
  double original_context = 4096.0;
  double beta_fast = 32.0;  ///< pairs with more rotations keep their frequency
  double beta_slow = 1.0;   ///< pairs with fewer rotations are interpolated
  yarn_ramp ramp = yarn_ramp::pair_index;
  bool round_ramp = true;  ///< pair_index only: ramp ends rounded outwards to integers
  std::optional<double> magnitude =
      std::nullopt;  ///< of cos and sin; default 0.1 ln s + 1 for s > 1, else 1
};

struct llama3_scaling {
  double factor = 8.0;
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  double original_context = 8192.0;
};

using rotary_scaling =
    std::variant<no_scaling, linear_scaling, ntk_scaling, yarn_scaling, llama3_scaling>;

namespace detail {

inline void require_positive(const char* what, double value) {
  if (!(value > 0.0) || !std::isfinite(value)) {
    fail<option_error>(std::string(what) + " is " + std::to_string(value) +
                       ", must be positive and finite");
  }
}

inline void require_ordered_ramp(const char* what, double low, double high) {
  if (!(low < high)) {
    fail<option_error>(std::string(what) + " ramps from " + std::to_string(low) + " to " +
                       std::to_string(high) + " rotations, must ramp upwards");
  }
}

/// Pair i's frequency of a scaling, checked when made. `dims` is r.
class scaled_frequency {
 public:
  scaled_frequency(const rotary_scaling& scaling, double base, index dims)
      : scaling_(scaling), base_(base), dims_(static_cast<double>(dims)) {
    std::visit([this](const auto& s) { prepare(s); }, scaling_);
  }

  [[nodiscard]] double operator()(index pair) const {
    const double theta = unscaled(static_cast<double>(pair));
    return std::visit([&](const auto& s) { return scaled(s, static_cast<double>(pair), theta); },
                      scaling_);
  }

  [[nodiscard]] double magnitude() const noexcept { return magnitude_; }

 private:
  void prepare(const no_scaling&) {}
  void prepare(const linear_scaling& s) { require_positive("linear_scaling factor", s.factor); }
  void prepare(const ntk_scaling& s) {
    require_positive("ntk_scaling factor", s.factor);
    // For r = 2 the exponent is infinite, but the only pair has frequency 1 whatever the base.
    if (dims_ > 2.0) base_ *= std::pow(s.factor, dims_ / (dims_ - 2.0));
    require_positive("ntk_scaling scaled base", base_);
  }
  void prepare(const yarn_scaling& s) {
    require_positive("yarn_scaling factor", s.factor);
    require_positive("yarn_scaling original_context", s.original_context);
    require_positive("yarn_scaling beta_slow", s.beta_slow);
    require_ordered_ramp("yarn_scaling", s.beta_slow, s.beta_fast);
    magnitude_ = s.magnitude.value_or(s.factor > 1.0 ? 0.1 * std::log(s.factor) + 1.0 : 1.0);
    ramp_begin_ = pair_with_rotations(s.beta_fast, s.original_context);
    ramp_end_ = pair_with_rotations(s.beta_slow, s.original_context);
    if (s.round_ramp) {
      ramp_begin_ = std::floor(ramp_begin_);
      ramp_end_ = std::ceil(ramp_end_);
    }
    ramp_begin_ = (std::max)(ramp_begin_, 0.0);
    ramp_end_ = (std::min)(ramp_end_, dims_ - 1.0);
    // The published code's guard against an empty ramp; it then is a step.
    if (ramp_begin_ == ramp_end_) ramp_end_ += 0.001;
  }
  void prepare(const llama3_scaling& s) {
    require_positive("llama3_scaling factor", s.factor);
    require_positive("llama3_scaling original_context", s.original_context);
    require_positive("llama3_scaling low_frequency_factor", s.low_frequency_factor);
    require_ordered_ramp("llama3_scaling", s.low_frequency_factor, s.high_frequency_factor);
  }

  [[nodiscard]] double scaled(const no_scaling&, double, double theta) const { return theta; }
  [[nodiscard]] double scaled(const linear_scaling& s, double, double theta) const {
    return theta / s.factor;
  }
  [[nodiscard]] double scaled(const ntk_scaling&, double, double theta) const { return theta; }
  [[nodiscard]] double scaled(const yarn_scaling& s, double pair, double theta) const {
    if (s.ramp == yarn_ramp::rotations) {
      return blend(theta, s.factor,
                   rotation_ramp(theta, s.original_context, s.beta_slow, s.beta_fast));
    }
    const double along = (pair - ramp_begin_) / (ramp_end_ - ramp_begin_);
    return blend(theta, s.factor, 1.0 - std::clamp(along, 0.0, 1.0));
  }
  [[nodiscard]] double scaled(const llama3_scaling& s, double, double theta) const {
    return blend(
        theta, s.factor,
        rotation_ramp(theta, s.original_context, s.low_frequency_factor, s.high_frequency_factor));
  }

  [[nodiscard]] double unscaled(double pair) const { return std::pow(base_, -2.0 * pair / dims_); }

  [[nodiscard]] static double blend(double theta, double factor, double keep) {
    return (1.0 - keep) * theta / factor + keep * theta;
  }

  [[nodiscard]] static double rotation_ramp(double theta, double context, double low, double high) {
    const double rotations = context * theta / (2.0 * std::numbers::pi);
    return std::clamp((rotations - low) / (high - low), 0.0, 1.0);
  }

  /// The (fractional) pair that rotates `rotations` times within `context`.
  [[nodiscard]] double pair_with_rotations(double rotations, double context) const {
    return dims_ * std::log(context / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(base_));
  }

  rotary_scaling scaling_;
  double base_;
  double dims_;
  double magnitude_ = 1.0;
  double ramp_begin_ = 0.0;
  double ramp_end_ = 0.0;
};

}  // namespace detail
}  // namespace heed::inline HEED_TARGET
