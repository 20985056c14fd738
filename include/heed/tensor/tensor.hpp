// SPDX-License-Identifier: MIT
// An owning row-major tensor over a pluggable storage.
//
// A storage is any type with `data()` and `size()` (in elements). Supplied: `owned_storage`
// (Eigen-backed, 64-byte aligned) here, and `mapped_file` in heed/tensor/mapped_file.hpp.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/tensor/pages.hpp"
#include "heed/tensor/tensor_like.hpp"

namespace heed::inline HEED_TARGET {

template <class S, class T>
concept tensor_storage = requires(S& s) {
  { s.data() } -> std::convertible_to<const T*>;
  { s.size() } -> std::convertible_to<index>;
};

/// An Eigen array, over-allocated so that data() lies at a 64-byte boundary on every target, on
/// large pages where there are any.
template <class T>
class owned_storage {
 public:
  owned_storage() = default;
  /// `size` zeros. Throws shape_error where no memory could hold them, std::bad_alloc.
  explicit owned_storage(index size) : array_(checked(size) + pad), size_(size) {
    prefer_large_pages(data(), static_cast<std::size_t>(size) * sizeof(T));
    Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>(data(), size).setConstant(T(0));
  }
  owned_storage(const owned_storage& other) : array_(other.size_ + pad), size_(other.size_) {
    prefer_large_pages(data(), static_cast<std::size_t>(size_) * sizeof(T));
    for (index i = 0; i < size_; ++i) data()[i] = other.data()[i];
  }
  owned_storage(owned_storage&& other) noexcept
      : array_(std::move(other.array_)), size_(std::exchange(other.size_, 0)) {}
  owned_storage& operator=(owned_storage other) noexcept {
    array_.swap(other.array_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~owned_storage() = default;

  [[nodiscard]] T* data() noexcept { return align(array_.data()); }
  [[nodiscard]] const T* data() const noexcept { return align(array_.data()); }
  [[nodiscard]] index size() const noexcept { return size_; }

 private:
  static constexpr index pad = static_cast<index>(cache_line / sizeof(T));

  static index checked(index size) {
    constexpr index most = largest_index / static_cast<index>(sizeof(T)) - pad;
    if (size < 0 || size > most) {
      fail<shape_error>("a storage has " + std::to_string(size) + " elements, may have 0 to " +
                        std::to_string(most));
    }
    return size;
  }

  template <class P>
  static P* align(P* p) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const auto up = (address + cache_line - 1) / cache_line * cache_line;
    return p + static_cast<index>((up - address) / sizeof(T));
  }

  Eigen::Array<T, Eigen::Dynamic, 1> array_;
  index size_ = 0;
};

template <class T, int Rank, class Storage = owned_storage<T>>
class tensor {
  static_assert(tensor_storage<Storage, T>, "heed: a tensor's storage offers data() and size()");

 public:
  using scalar = T;
  static constexpr int rank = Rank;
  using extents_type = typename view<T, Rank>::extents_type;

  tensor() = default;
  tensor(const tensor&) = default;
  tensor& operator=(const tensor&) = default;
  ~tensor() = default;

  /// The source is left with extents of zero, so that nobody reads what it no longer owns.
  tensor(tensor&& other) noexcept(std::is_nothrow_move_constructible_v<Storage>)
      : extents_(std::exchange(other.extents_, extents_type{})),
        storage_(std::move(other.storage_)) {}
  tensor& operator=(tensor&& other) noexcept(std::is_nothrow_move_assignable_v<Storage>) {
    storage_ = std::move(other.storage_);
    extents_ = std::exchange(other.extents_, extents_type{});
    return *this;
  }

  /// Zeros. Throws shape_error where no memory could hold so many, std::bad_alloc.
  explicit tensor(const extents_type& extents)
    requires std::constructible_from<Storage, index>
      : tensor(extents, Storage(checked_size("view", extents, sizeof(T)))) {}

  /// Takes the storage. Throws shape_error when it holds fewer elements than the extents need.
  tensor(const extents_type& extents, Storage storage)
      : extents_(extents), storage_(std::move(storage)) {
    const index need = checked_size("view", extents, sizeof(T));
    if (static_cast<index>(storage_.size()) < need) {
      fail<shape_error>("tensor of extents " + format_extents(extents) + " needs " +
                        std::to_string(need) + " elements, its storage has " +
                        std::to_string(static_cast<index>(storage_.size())));
    }
  }

  [[nodiscard]] auto data() noexcept { return storage_.data(); }
  [[nodiscard]] auto data() const noexcept { return storage_.data(); }
  [[nodiscard]] const extents_type& extents() const noexcept { return extents_; }
  [[nodiscard]] index extent(int axis) const noexcept {
    return extents_[static_cast<std::size_t>(axis)];
  }
  [[nodiscard]] index size() const noexcept {
    index n = 1;
    for (const index e : extents_) n *= e;
    return n;
  }
  [[nodiscard]] Storage& storage() noexcept { return storage_; }
  [[nodiscard]] const Storage& storage() const noexcept { return storage_; }

  template <class... I>
  [[nodiscard]] decltype(auto) operator()(I... at) noexcept {
    return storage_.data()[place(at...)];
  }
  template <class... I>
  [[nodiscard]] decltype(auto) operator()(I... at) const noexcept {
    return storage_.data()[place(at...)];
  }

 private:
  template <class... I>
    requires(sizeof...(I) == static_cast<std::size_t>(Rank))
  [[nodiscard]] index place(I... at) const noexcept {
    index offset = 0;
    std::size_t axis = 0;
    ((offset = offset * extents_[axis++] + static_cast<index>(at)), ...);
    return offset;
  }

  extents_type extents_{};
  Storage storage_{};
};

template <class T, int R, class S>
struct tensor_traits<tensor<T, R, S>> {
  static constexpr bool owns_memory = true;
  static auto to_view(const tensor<T, R, S>& t) { return view<const T, R>(t.data(), t.extents()); }
  static auto to_view(tensor<T, R, S>& t) {
    using pointee = std::remove_pointer_t<decltype(t.data())>;
    return view<pointee, R>(t.data(), t.extents());
  }
  static tensor<T, R, S> make(const std::array<index, static_cast<std::size_t>(R)>& extents)
    requires std::constructible_from<S, index>
  {
    return tensor<T, R, S>(extents);
  }
};

/// A new tensor of the same family as T: T itself where its traits can make one, the owning type
/// behind a map or block (`result_like<Eigen::Map<Eigen::MatrixXf>>({n, d})` is a MatrixXf), else a
/// heed::tensor.
template <tensor_like T>
[[nodiscard]] auto result_like(const typename view_of<T>::extents_type& extents) {
  using traits = tensor_traits<std::remove_cvref_t<T>>;
  if constexpr (makeable_tensor<T>) {
    return traits::make(extents);
  } else if constexpr (requires { traits::make_owning(extents); }) {
    return traits::make_owning(extents);
  } else {
    return tensor<scalar_of<T>, rank_of<T>>(extents);
  }
}

}  // namespace heed::inline HEED_TARGET
