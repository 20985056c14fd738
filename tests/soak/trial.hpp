// SPDX-License-Identifier: MIT
// One random case of a soak run: what was drawn, under its name, and what went wrong.
//
// Every number of a case follows from (seed, family, case number), so that a failure is repeated by
// naming the three.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "heed/core.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace soak {

using heed::index;

/// Thrown by a case whose result is not the expected one.
struct wrong : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Runs a call as so many workers would, one after another from any of them.
struct rotated_workers {
  index workers = 1;
  index first = 0;
  [[nodiscard]] index concurrency() const noexcept { return workers; }
  template <class Body>
  void run(index count, Body&& body) const {
    for (index w = 0; w < count; ++w) body((w + first) % count);
  }
};

class trial {
 public:
  trial(std::uint64_t seed, std::uint64_t family, std::uint64_t number)
      : at_(mix(mix(mix(seed) + family) + number)) {
    exec.workers = 1 + static_cast<index>(bits() % 4);
    exec.first = static_cast<index>(bits() % 4);
    if (bits() % 2 == 0) scratch = &memory();
  }

  rotated_workers exec;
  heed::workspace* scratch = nullptr;  ///< kept between cases, or none

  std::uint64_t bits() noexcept { return mix(at_ += 0x9E3779B97F4A7C15U); }
  /// In [0, 1).
  double uniform() noexcept { return static_cast<double>(bits() >> 11U) * 0x1p-53; }
  /// Of mean 0 and variance 1.
  double centred() noexcept { return std::sqrt(12.0) * (uniform() - 0.5); }

  index between(const char* name, index least, index most) {
    const auto span = static_cast<std::uint64_t>(most - least + 1);
    return note(name, least + static_cast<index>(bits() % span));
  }
  index one_of(const char* name, std::initializer_list<index> of) {
    return note(name, of.begin()[bits() % of.size()]);
  }
  bool one_in(const char* name, std::uint64_t n) {
    return note(name, bits() % n == 0 ? 1 : 0) != 0;
  }
  /// An extent: small, anything up to `most`, or next to a multiple of a packet.
  index extent(const char* name, index least, index most) {
    switch (bits() % 4) {
      case 0:
        return between(name, least, std::min<index>(most, least + 3));
      case 1: {
        const index near = 8 * (1 + static_cast<index>(bits() % 8));
        const index off = static_cast<index>(bits() % 3) - 1;
        return note(name, std::clamp<index>(near + off, least, most));
      }
      default:
        return between(name, least, most);
    }
  }
  template <class Tensor>
  void fill(Tensor&& x, double size = 1) {
    using T = std::remove_const_t<std::remove_reference_t<decltype(*x.data())>>;
    for (index i = 0; i < x.size(); ++i) x.data()[i] = static_cast<T>(size * centred());
  }

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  index note(const char* name, index value) {
    text_.append(text_.empty() ? "" : ", ").append(name).append(" ").append(std::to_string(value));
    return value;
  }
  /// Ends the case unless `difference` is "".
  static void require(const char* what, const std::string& difference) {
    if (!difference.empty()) throw wrong(std::string(what) + ": " + difference);
  }

 private:
  static heed::workspace& memory() {
    static heed::workspace kept;
    return kept;
  }
  static std::uint64_t mix(std::uint64_t x) noexcept {  // SplitMix64's finaliser
    x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
    x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
    return x ^ (x >> 31U);
  }
  std::uint64_t at_;
  std::string text_;
};

/// "" where |got - want| <= within for every element of rank-3 or rank-4 tensors, else the first
/// that is not.
template <class Got, class Want, class Within>
std::string difference(const Got& got, const Want& want, const Within& within) {
  if (got.extents() != want.extents()) {
    return "extents " + heed::format_extents(got.extents()) + ", not " +
           heed::format_extents(want.extents());
  }
  constexpr std::size_t rank = std::tuple_size_v<std::remove_cvref_t<decltype(got.extents())>>;
  std::array<index, rank> at{};
  for (index n = 0; n < want.size(); ++n) {
    index rest = n;
    for (std::size_t a = rank; a-- > 0;) {
      at[a] = rest % want.extents()[a];
      rest /= want.extents()[a];
    }
    const auto of = [&](const auto& t) {
      return std::apply([&](auto... i) { return static_cast<double>(t(i...)); }, at);
    };
    const double x = of(got), y = of(want), bound = of(within);
    const bool same = std::isnan(y) ? std::isnan(x) : x == y || std::abs(x - y) <= bound;
    if (!same) {
      return "at " + heed::format_extents(at) + " is " + std::to_string(x) + ", not " +
             std::to_string(y) + " within " + std::to_string(bound * 1e6) + "e-6";
    }
  }
  return {};
}

}  // namespace soak
