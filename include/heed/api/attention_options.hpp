// SPDX-License-Identifier: MIT
// The options every form of exact attention takes.
#pragma once

#include <concepts>
#include <optional>
#include <span>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"

namespace heed::inline HEED_TARGET {

/// Where row 0 of the queries stands on the key axis: one number, or one per batch (the numbers
/// must outlive the call). May be negative.
class offsets {
 public:
  constexpr offsets() noexcept = default;
  template <std::integral I>
  constexpr offsets(I all) noexcept  // NOLINT(google-explicit-constructor)
      : all_(static_cast<index>(all)) {}
  template <class R>
    requires std::convertible_to<const R&, std::span<const index>>
  constexpr offsets(const R& per_batch) noexcept  // NOLINT(google-explicit-constructor)
      : per_batch_(per_batch), given_(true) {}

  [[nodiscard]] constexpr index operator[](index batch) const noexcept {
    return given_ ? per_batch_[static_cast<std::size_t>(batch)] : all_;
  }
  /// Throws unless there is one number, or one per batch.
  void check(index batch) const {
    if (given_) {
      require_equal("offset", "entries", static_cast<index>(per_batch_.size()), "the call batch",
                    batch);
    }
  }

 private:
  index all_ = 0;
  std::span<const index> per_batch_;
  bool given_ = false;
};

/// Row 0 at key 0, the default.
[[nodiscard]] constexpr offsets top_left() noexcept { return 0; }
/// The last row at the last key: queries are the newest tokens.
[[nodiscard]] constexpr offsets bottom_right(index queries, index keys) noexcept {
  return keys - queries;
}

struct attention_options {
  /// Multiplies q.k, once; finite. 1 / sqrt(head dim) where absent.
  std::optional<double> scale = std::nullopt;
  /// Position of row 0.
  offsets offset = 0;
  /// Scratch the caller keeps between calls; two calls at once are refused. Without it a call
  /// allocates its own.
  workspace* scratch = nullptr;
};

}  // namespace heed::inline HEED_TARGET
