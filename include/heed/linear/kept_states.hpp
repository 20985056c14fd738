// SPDX-License-Identifier: MIT
// Gradients of a recurrence: its states, the last one first, from one kept every `chunk` tokens.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

inline void check_state_chunk(index chunk) {
  if (chunk < 1) fail<option_error>("chunk is " + std::to_string(chunk) + ", must be at least 1");
}

/// Calls back(t, state before, state after) for all tokens, the last one first. States are `width`
/// numbers; forward(t, from, to) makes one from the one before.
template <class A>
class kept_states {
 public:
  kept_states(index tokens, index chunk, index width)
      : tokens_(tokens),
        chunk_(chunk),
        width_(width),
        kept_(size((ceil_div(tokens, chunk) + 1) * width)),
        states_(size(((std::min)(chunk, tokens) + 1) * width)) {}

  /// Of the token before the first one; to be filled before `run`.
  [[nodiscard]] A* first() noexcept { return kept_.data(); }

  template <class Forward, class Back>
  void run(const Forward& forward, const Back& back) noexcept {
    const index chunks = ceil_div(tokens_, chunk_);
    for (index c = 0; c < chunks; ++c) {
      replay(c, forward);
      std::copy_n(at(states_, end(c) - c * chunk_), width_, at(kept_, c + 1));
    }
    for (index c = chunks; c-- > 0;) {
      if (c + 1 < chunks) replay(c, forward);  // those of the last chunk are there
      for (index t = end(c); t-- > c * chunk_;) {
        back(t, at(states_, t - c * chunk_), at(states_, t - c * chunk_ + 1));
      }
    }
  }

 private:
  static std::size_t size(index n) noexcept { return static_cast<std::size_t>(n); }
  [[nodiscard]] A* at(std::vector<A>& states, index n) noexcept {
    return states.data() + n * width_;
  }
  [[nodiscard]] index end(index c) const noexcept { return (std::min)(tokens_, (c + 1) * chunk_); }
  template <class Forward>
  void replay(index c, const Forward& forward) noexcept {
    std::copy_n(at(kept_, c), width_, states_.data());
    for (index t = c * chunk_; t < end(c); ++t) {
      forward(t, at(states_, t - c * chunk_), at(states_, t - c * chunk_ + 1));
    }
  }

  index tokens_, chunk_, width_;
  std::vector<A> kept_, states_;
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
