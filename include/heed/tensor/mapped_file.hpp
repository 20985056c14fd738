// SPDX-License-Identifier: MIT
// A file as a tensor's storage: mapped into memory and read-only, so that weights or a cache larger
// than one wants to load are paged in as they are touched.
//
//   heed::tensor<float, 2, heed::mapped_file<float>> weights({rows, cols},
//   heed::mapped_file<float>(path, offset));
//
// Needs POSIX mmap; where it is missing this header declares nothing.
#pragma once

#if __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <system_error>
#include <utility>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// Maps the bytes of `path` from `offset` (a multiple of alignof(T)) to the end. Moves, does not
/// copy. Throws std::system_error naming the file when it cannot be opened or mapped, shape_error
/// when the offset lies outside it or is not aligned for T.
template <class T>
class mapped_file {
 public:
  mapped_file() = default;

  explicit mapped_file(const std::string& path, std::size_t offset = 0) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw_errno("cannot open " + path);
    struct ::stat info{};
    if (::fstat(file, &info) != 0) {
      const int error = errno;
      ::close(file);
      errno = error;
      throw_errno("cannot stat " + path);
    }
    bytes_ = static_cast<std::size_t>(info.st_size);
    if (offset > bytes_ || offset % alignof(T) != 0) {
      ::close(file);
      fail<shape_error>("mapped_file: offset " + std::to_string(offset) + " in " + path + " of " +
                        std::to_string(bytes_) + " bytes, elements aligned to " +
                        std::to_string(alignof(T)));
    }
    if (bytes_ > 0) {
      map_ = ::mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
      const int error = errno;
      ::close(file);
      if (map_ == MAP_FAILED) {
        map_ = nullptr;
        errno = error;
        throw_errno("cannot map " + path);
      }
    } else {
      ::close(file);
    }
    offset_ = offset;
  }

  mapped_file(mapped_file&& other) noexcept
      : map_(std::exchange(other.map_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        offset_(std::exchange(other.offset_, 0)) {}
  mapped_file& operator=(mapped_file&& other) noexcept {
    std::swap(map_, other.map_);
    std::swap(bytes_, other.bytes_);
    std::swap(offset_, other.offset_);
    return *this;
  }
  mapped_file(const mapped_file&) = delete;
  mapped_file& operator=(const mapped_file&) = delete;
  ~mapped_file() {
    if (map_ != nullptr) ::munmap(map_, bytes_);
  }

  [[nodiscard]] const T* data() const noexcept {
    return map_ == nullptr
               ? nullptr
               : reinterpret_cast<const T*>(static_cast<const std::byte*>(map_) + offset_);
  }
  [[nodiscard]] std::ptrdiff_t size() const noexcept {
    return static_cast<std::ptrdiff_t>((bytes_ - offset_) / sizeof(T));
  }

 private:
  [[noreturn]] static void throw_errno(const std::string& what) {
#if HEED_HAS_EXCEPTIONS
    throw std::system_error(errno, std::generic_category(), what);
#else
    fail<std::runtime_error>(what);
#endif
  }

  void* map_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t offset_ = 0;
};

}  // namespace heed::inline HEED_TARGET
#endif
