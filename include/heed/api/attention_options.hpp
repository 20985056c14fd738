// SPDX-License-Identifier: MIT
// The options every form of exact attention takes.
#pragma once

#include <concepts>
#include <iterator>
#include <optional>
#include <span>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"

namespace heed::inline HEED_TARGET {

/// The position of row 0 of the queries on the key axis: one number, or one per batch (the numbers
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
  template <class R>
    requires(!std::convertible_to<const R&, std::span<const index>> &&
             requires(const R& r) { std::begin(r); })
  constexpr offsets(const R&) {  // NOLINT(google-explicit-constructor)
    static_assert(std::convertible_to<const R&, std::span<const index>>,
                  "heed: offsets are one number, or contiguous numbers of heed::index "
                  "(std::ptrdiff_t), one a batch, in a container that outlives the call");
  }

  /// Queries that are the last `queries` tokens of each batch entry of a source, which must outlive
  /// the call: length(batch) - queries.
  template <class Source>
  [[nodiscard]] static constexpr offsets of_newest(const Source& source, index queries) noexcept {
    offsets o(-queries);
    o.source_ = &source;
    o.length_ = [](const void* s, index batch) noexcept {
      return static_cast<index>(static_cast<const Source*>(s)->length(batch));
    };
    return o;
  }

  [[nodiscard]] constexpr index operator[](index batch) const noexcept {
    if (length_ != nullptr) return length_(source_, batch) + all_;
    return given_ ? per_batch_[static_cast<std::size_t>(batch)] : all_;
  }
  /// Whether row 0 is at key 0 because nothing else was given.
  [[nodiscard]] constexpr bool is_default() const noexcept {
    return length_ == nullptr && !given_ && all_ == 0;
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
  const void* source_ = nullptr;
  index (*length_)(const void*, index) noexcept = nullptr;
};

/// Row 0 at key 0, the default.
[[nodiscard]] constexpr offsets top_left() noexcept { return 0; }
/// The last row at the last key: queries are the newest tokens.
[[nodiscard]] constexpr offsets bottom_right(index queries, index keys) noexcept {
  return keys - queries;
}

/// A call takes them in braces, `{.scale = 1}`. A misspelt name there ends in "no match";
/// `attention_options{.scael = 1}` has the compiler name it.
struct attention_options {
  /// Multiplies q.k, once; a finite number of the accumulator (option_error otherwise).
  /// 1 / sqrt(head dim) where absent.
  std::optional<double> scale = std::nullopt;
  /// Position of row 0.
  offsets offset = 0;
  /// Scratch the caller keeps between calls; two calls at once are refused. Without it a call
  /// allocates its own.
  workspace* scratch = nullptr;

  /// These options with another offset. An absent scale is not copied as a whole: g++ 12 would warn
  /// of its payload, which nobody set.
  [[nodiscard]] attention_options with_offset(const offsets& other) const noexcept {
    attention_options o;
    if (scale) o.scale = *scale;
    o.offset = other;
    o.scratch = scratch;
    return o;
  }
};

}  // namespace heed::inline HEED_TARGET
