// SPDX-License-Identifier: MIT
// Users' tensor types that are as awkward as the language allows, for tests of the adaptors.
//
// grid    owns its cells, upside down and with gaps; no default constructor, no assignment, copies
//         only when asked to by name, no address, a comma and a conversion that must not be used.
// handle  a rank-3 handle to somebody's cells, channels from last to first; const is shallow;
// copies
//         only when asked to, never moves, cannot be made by heed.
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
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
  grid(grid&&) noexcept = default;
  grid& operator=(const grid&) = delete;
  void operator&() const = delete;
  template <class U>
  void operator,(const U&) const = delete;
  template <class U>
  grid(std::initializer_list<U>) = delete;
  template <class U>
  operator U() const = delete;
  static void* operator new(std::size_t) = delete;

  // The last row lies first, and every other cell is unused.
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

template <class T>
class handle {
 public:
  handle(T* cells, const std::array<heed::index, 3>& extents)
      : cells_(std::make_shared<T*>(cells)), extents_(extents) {}
  explicit handle(const handle&) = default;
  handle& operator=(const handle&) = delete;
  void operator&() const = delete;
  template <class U>
  void operator,(const U&) const = delete;
  static void* operator new(std::size_t) = delete;

  [[nodiscard]] T* cells() const { return *cells_; }
  [[nodiscard]] const std::array<heed::index, 3>& extents() const { return extents_; }

 private:
  std::shared_ptr<T*> cells_;
  std::array<heed::index, 3> extents_;
};

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

template <class T>
struct heed::tensor_traits<hostile::handle<T>> {
  static constexpr bool owns_memory = false;
  static auto to_view(const hostile::handle<T>& h) {
    const auto& e = h.extents();
    const heed::index last = e[2] > 0 ? e[2] - 1 : 0;
    return heed::view<T, 3>(h.cells() + last, e, {e[1] * e[2], e[2], -1});
  }
};
