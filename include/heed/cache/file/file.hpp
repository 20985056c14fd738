// SPDX-License-Identifier: MIT
// The file of a cache: a header, then pages with a checksum each.
//
// | bytes | header                                                              |
// |-------|---------------------------------------------------------------------|
// | 8     | "\x89heedKV\n"                                                      |
// | 4     | version, 1                                                          |
// | 4     | 0x01020304: the order of bytes                                      |
// | 16    | the kind of cache, zeros behind                                     |
// | 8     | checksum of the 32 bytes before                                     |
//
// | bytes | page                                                                |
// |-------|---------------------------------------------------------------------|
// | 4, 4  | number of the page, n: bytes that follow the checksum, at most 2^16 |
// | 8     | checksum of the 8 bytes before and the n bytes                      |
// | n     | a piece of the content; n = 0 marks the last page                   |
//
// What the content means is the cache's own. Extents in it are believed only as far as the file goes:
// what they would take of memory, and what of the content, is compared with the file's size before
// anything is allocated. A file is refused with file_error where it is cut
// short, where a checksum differs, where it is none of heed's, of another version, of another order
// of bytes or of another kind of cache. A checksum of 64 bits finds damage; it does not keep out
// who forges it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <istream>
#include <ostream>
#include <stdexcept>
#include <streambuf>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "heed/core/checked.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/float8.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/tensor/scalar.hpp"

namespace heed::inline HEED_TARGET {

/// A file that cannot be read as what it should be, or cannot be written.
struct file_error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

/// 64 bits of so many bytes: words of 8 bytes are multiplied into four sums in turn, so that
/// processors work on them side by side; what is left, and the length, come last.
[[nodiscard]] inline std::uint64_t checksum(const void* data, std::size_t bytes,
                                            std::uint64_t seed = 0) noexcept {
  constexpr std::uint64_t prime = 0x9E3779B97F4A7C15U;
  const auto mixed = [](std::uint64_t sum, std::uint64_t word) {
    sum = (sum ^ word) * prime;
    return sum ^ (sum >> 29U);
  };
  std::array<std::uint64_t, 4> sums{seed + 1, seed + 2, seed + 3, seed + 4};
  const auto* at = static_cast<const std::byte*>(data);
  std::size_t left = bytes;
  for (; left >= 32; left -= 32) {
    for (std::uint64_t& sum : sums) {
      std::uint64_t word = 0;
      std::memcpy(&word, at, 8);
      sum = mixed(sum, word);
      at += 8;
    }
  }
  std::uint64_t all = mixed(seed, bytes);
  for (const std::uint64_t sum : sums) all = mixed(all, sum);
  for (; left > 0; --left, ++at) all = mixed(all, std::to_integer<std::uint64_t>(*at));
  return mixed(all, prime);
}

/// What a file calls a type of numbers.
template <class T>
[[nodiscard]] constexpr std::uint32_t scalar_name() noexcept {
  if constexpr (std::is_same_v<T, float>) return 1;
  if constexpr (std::is_same_v<T, double>) return 2;
  if constexpr (std::is_same_v<T, half>) return 3;
  if constexpr (std::is_same_v<T, bfloat16>) return 4;
  if constexpr (std::is_same_v<T, float8_e4m3>) return 5;
  if constexpr (std::is_same_v<T, float8_e5m2>) return 6;
  return 0;  // codes, whose bits the kind of cache says
}

struct file_header {
  std::array<char, 8> magic{'\x89', 'h', 'e', 'e', 'd', 'K', 'V', '\n'};
  std::uint32_t version = 1;
  std::uint32_t byte_order = 0x01020304;
  std::array<char, 16> kind{};
  std::uint64_t sum = 0;

  explicit file_header(std::string_view name) noexcept {
    std::memcpy(kind.data(), name.data(), (name.size() < 15 ? name.size() : 15));
    sum = checksum(this, 32);
  }
  /// Throws file_error unless `found` is what this header says.
  void check(const file_header& found) const {
    if (found.magic != magic) fail<file_error>("the file is no cache of heed's");
    if (found.byte_order != byte_order) {
      fail<file_error>("the file was written by a processor of another order of bytes");
    }
    if (found.version != version) {
      fail<file_error>("the file has version " + std::to_string(found.version) + ", known is " +
                       std::to_string(version));
    }
    if (found.sum != checksum(&found, 32)) fail<file_error>("the file's header is damaged");
    if (found.kind != kind) {
      fail<file_error>("the file holds a " + text(found.kind) + ", not a " + text(kind));
    }
  }

 private:
  static std::string text(const std::array<char, 16>& name) {
    return {name.data(), std::string_view(name.data(), name.size()).find_first_of('\0') % 17};
  }
};
static_assert(sizeof(file_header) == 40);

struct file_page {
  static constexpr std::size_t most = std::size_t{1} << 16U;
  std::uint32_t number = 0;
  std::uint32_t bytes = 0;
  std::uint64_t sum = 0;

  [[nodiscard]] std::uint64_t expected(const std::byte* content) const noexcept {
    return checksum(content, bytes, (std::uint64_t{number} << 32U) + bytes);
  }
};

class cache_writer {
 public:
  static constexpr bool reads = false;

  /// Throws file_error where the stream cannot be written.
  cache_writer(std::ostream& to, std::string_view kind) : to_(&to), page_(file_page::most) {
    const file_header header(kind);
    put_raw(&header, sizeof(header));
  }
  void bytes(const void* data, std::size_t count) {
    const auto* from = static_cast<const std::byte*>(data);
    while (count > 0) {
      const std::size_t n = count < page_.size() - used_ ? count : page_.size() - used_;
      std::memcpy(page_.data() + used_, from, n);
      used_ += n;
      from += n;
      count -= n;
      if (used_ == page_.size()) flush();
    }
  }
  template <class T>
  void numbers(const T* data, index count) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(data, static_cast<std::size_t>(count) * sizeof(T));
  }
  void number(index n) {
    const auto wide = static_cast<std::int64_t>(n);
    numbers(&wide, 1);
  }
  /// A number that the reader finds between the two others.
  void number(const char*, const index& n, index, index) { number(n); }
  void extent(const char*, const index& n) { number(n); }
  void require(const char*, index n) { number(n); }
  /// The content is complete.
  void finish() {
    if (used_ > 0) flush();
    flush();
    to_->flush();
    check();
  }

 private:
  void flush() {
    file_page p{next_++, static_cast<std::uint32_t>(used_), 0};
    p.sum = p.expected(page_.data());
    put_raw(&p, sizeof(p));
    put_raw(page_.data(), used_);
    used_ = 0;
  }
  void put_raw(const void* data, std::size_t count) {
    to_->write(static_cast<const char*>(data), static_cast<std::streamsize>(count));
    check();
  }
  void check() const {
    if (!to_->good()) fail<file_error>("the file cannot be written");
  }

  std::ostream* to_;
  std::vector<std::byte> page_;
  std::size_t used_ = 0;
  std::uint32_t next_ = 0;
};

class cache_reader {
 public:
  static constexpr bool reads = true;

  /// The cache may take `most` bytes of memory more than four times what is left of the stream.
  /// Throws file_error unless the stream holds a cache of this kind.
  cache_reader(std::istream& from, std::string_view kind, index most)
      : from_(&from), left_(bytes_left(from)), page_(file_page::most) {
    allowed_ = saturating_sum(most, left_ < 0 ? 0 : saturating_product(4, left_));
    file_header found(kind);
    get_raw(&found, sizeof(found));
    file_header(kind).check(found);
  }
  void bytes(void* data, std::size_t count) {
    auto* to = static_cast<std::byte*>(data);
    while (count > 0) {
      if (at_ == held_.bytes) next_page();
      if (held_.bytes == 0) fail<file_error>("the file's content ends too early");
      const std::size_t left = held_.bytes - at_;
      const std::size_t n = count < left ? count : left;
      std::memcpy(to, page_.data() + at_, n);
      at_ += n;
      to += n;
      count -= n;
    }
  }
  template <class T>
  void numbers(T* data, index count) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes(data, static_cast<std::size_t>(count) * sizeof(T));
  }
  /// A number from `low` to `high`; file_error names `what` where it is another.
  void number(const char* what, index& n, index low, index high) {
    std::int64_t wide = 0;
    numbers(&wide, 1);
    if (wide < low || wide > high) {
      fail<file_error>(std::string("the file has ") + what + " " + std::to_string(wide) +
                       ", needs " + std::to_string(low) + " to " + std::to_string(high));
    }
    n = static_cast<index>(wide);
    if (read_.size() > 400) return;
    read_ += (read_.empty() ? "" : ", ") + std::string(what) + " " + std::to_string(wide);
  }
  void extent(const char* what, index& n) { number(what, n, 0, largest_extent); }
  void require(const char* what, index expected) {
    index n = 0;
    number(what, n, expected, expected);
  }
  /// What was read since the last call makes `memory` bytes, and `content` bytes follow of it.
  /// Throws file_error, which names all of that, where the file has less or so much is not allowed.
  void believe(index memory, index content) {
    const index left = saturating_sum(left_, static_cast<index>(held_.bytes) - at());
    if (left_ >= 0 && content > left) {
      fail<file_error>("the file is cut short: " + read_ + " need " + std::to_string(content) +
                       " bytes, " + std::to_string(left) + " are left");
    }
    if (memory > allowed_) {
      fail<file_error>("the file has " + read_ + ", which take " + std::to_string(memory) +
                       " bytes of memory; most_bytes and the file's size allow " +
                       std::to_string(allowed_));
    }
    allowed_ -= memory;
    read_.clear();
  }
  /// Throws file_error unless the content has been read to its end.
  void finish() {
    if (at_ == held_.bytes) next_page();
    if (held_.bytes != 0) fail<file_error>("the file holds more than its cache");
  }

 private:
  static constexpr index largest_extent = index{1} << (sizeof(index) > 4 ? 40 : 30);

  void next_page() {
    if (ended_) fail<file_error>("the file's content ends too early");
    get_raw(&held_, sizeof(held_));
    if (held_.number != next_ || held_.bytes > page_.size()) {
      fail<file_error>("page " + std::to_string(next_) + " of the file is damaged");
    }
    get_raw(page_.data(), held_.bytes);
    if (held_.sum != held_.expected(page_.data())) {
      fail<file_error>("page " + std::to_string(next_) + " of the file is damaged");
    }
    ++next_;
    at_ = 0;
    ended_ = held_.bytes == 0;
  }
  [[nodiscard]] index at() const noexcept { return static_cast<index>(at_); }
  /// Of the stream; -1 where it does not tell.
  static index bytes_left(std::istream& from) {
    std::streambuf& s = *from.rdbuf();
    const std::streamoff at = s.pubseekoff(0, std::ios::cur, std::ios::in);
    if (at < 0) return -1;
    const std::streamoff end = s.pubseekoff(0, std::ios::end, std::ios::in);
    s.pubseekpos(at, std::ios::in);
    return end < at ? -1 : static_cast<index>(end - at);
  }
  void get_raw(void* data, std::size_t count) {
    if (left_ >= 0) left_ = (std::max)(index{0}, left_ - static_cast<index>(count));
    from_->read(static_cast<char*>(data), static_cast<std::streamsize>(count));
    if (static_cast<std::size_t>(from_->gcount()) != count) {
      fail<file_error>("the file is cut short, in page " + std::to_string(next_));
    }
  }

  std::istream* from_;
  index left_;  // bytes of the stream; -1 where it does not tell
  index allowed_ = 0;
  std::string read_;  // extents and their names, for messages
  std::vector<std::byte> page_;
  file_page held_;
  std::size_t at_ = 0;
  std::uint32_t next_ = 0;
  bool ended_ = false;
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
