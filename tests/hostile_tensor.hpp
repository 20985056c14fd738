// SPDX-License-Identifier: MIT
// A user's tensor type that is as awkward as the language allows, for tests of the adaptors.
//
// It has no default constructor, cannot be assigned, takes no address, overloads the comma,
// converts to nothing, keeps its rows upside down with gaps between channels, and hides behind a
// handle that copies only when asked to.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "heed/tensor.hpp"

namespace hostile {

template <class T>
class grid {
 public:
  grid() = delete;
  grid(heed::index tokens, heed::index channels)
      : tokens_(tokens),
        channels_(channels),
        cells_(static_cast<std::size_t>(tokens * channels * gap), T(-1000)) {}
  explicit grid(const grid&) = default;
  grid& operator=(const grid&) = delete;
  void operator&() const = delete;
  template <class U>
  void operator,(const U&) const = delete;
  template <class U>
  grid(std::initializer_list<U>) = delete;

  // The last row stands first, and every other cell is unused.
  static constexpr heed::index gap = 2;
  [[nodiscard]] heed::index tokens() const { return tokens_; }
  [[nodiscard]] heed::index channels() const { return channels_; }
  [[nodiscard]] T* first_row() { return cells_.data() + offset(); }
  [[nodiscard]] const T* first_row() const { return cells_.data() + offset(); }
  [[nodiscard]] const std::vector<T>& cells() const { return cells_; }

 private:
  [[nodiscard]] heed::index offset() const {
    return tokens_ == 0 ? 0 : (tokens_ - 1) * channels_ * gap;
  }
  heed::index tokens_;
  heed::index channels_;
  std::vector<T> cells_;
};

// A binary comma found by argument-dependent lookup wherever a grid is an operand.
template <class T, class U>
void operator,(const U&, const grid<T>&) = delete;

}  // namespace hostile

template <class T>
struct heed::tensor_traits<hostile::grid<T>> {
  static constexpr bool owns_memory = true;
  static auto to_view(hostile::grid<T>& g) { return strided(g.first_row(), g); }
  static auto to_view(const hostile::grid<T>& g) { return strided(g.first_row(), g); }
  static hostile::grid<T> make(const std::array<heed::index, 2>& extents) {
    return hostile::grid<T>(extents[0], extents[1]);
  }

 private:
  template <class P>
  static heed::view<P, 2> strided(P* first, const hostile::grid<T>& g) {
    constexpr heed::index gap = hostile::grid<T>::gap;
    return {first, {g.tokens(), g.channels()}, {-g.channels() * gap, gap}};
  }
};
