// SPDX-License-Identifier: MIT
// The file of an offloaded cache: a header, a record of how far it is synced, pages of rows, and
// with each page a checksum.
//
// | bytes                 | what                                                              |
// |-----------------------|-------------------------------------------------------------------|
// | 0                     | the header of file.hpp, kind "offloaded"                          |
// | 64                    | 8 numbers of 8 bytes: scalars, extents, page size; their checksum |
// | 512                   | tokens synced, tokens appended, checksum of both                  |
// | 4096 + p page bytes   | page p: keys [batch, kv heads, page size, head dim], values alike |
// | at the end of a page  | tokens that the checksum covers, the checksum, checksum of both   |
//
// A process that is killed loses the tokens appended since the last sync, and no others: tokens up
// to those synced are verified when the file is opened, and rows are only ever written behind them.
#pragma once

#if __has_include(<sys/mman.h>)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "heed/cache/file/file.hpp"
#include "heed/core/checked.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET::detail {

/// Where rows are in the file, in bytes.
struct offload_layout {
  static constexpr std::size_t fields = 8;
  index key_scalar = 0, value_scalar = 0;  // names of the types
  index batch = 0, kv_heads = 0, capacity = 0, head_dim = 0, value_dim = 0, page_size = 0;
  index key_bytes = 0, value_bytes = 0;  // of a row

  [[nodiscard]] std::array<std::int64_t, fields> numbers() const noexcept {
    return {key_scalar, value_scalar, batch, kv_heads, capacity, head_dim, value_dim, page_size};
  }
  [[nodiscard]] index heads() const noexcept { return batch * kv_heads; }
  [[nodiscard]] index values_at() const noexcept { return heads() * page_size * key_bytes; }
  [[nodiscard]] index rows_end() const noexcept {
    return values_at() + heads() * page_size * value_bytes;
  }
  [[nodiscard]] index page_bytes() const noexcept { return round_up(rows_end() + 24, 4096); }
  [[nodiscard]] index pages() const noexcept { return ceil_div(capacity, page_size); }
  [[nodiscard]] index file_bytes() const noexcept { return 4096 + pages() * page_bytes(); }
  [[nodiscard]] index page_at(index p) const noexcept { return 4096 + p * page_bytes(); }
  [[nodiscard]] index trailer_at(index p) const noexcept { return page_at(p) + page_bytes() - 24; }
  /// Row of token j of a head, counted over batch and heads.
  [[nodiscard]] index key_at(index head, index j) const noexcept {
    return page_at(j / page_size) + (head * page_size + j % page_size) * key_bytes;
  }
  [[nodiscard]] index value_at(index head, index j) const noexcept {
    return page_at(j / page_size) + values_at() + (head * page_size + j % page_size) * value_bytes;
  }
  /// Throws shape_error unless the extents make a file.
  void check() const {
    constexpr std::int64_t most = std::int64_t{1} << 40;
    for (const std::int64_t n : numbers()) {
      if (n < 0 || n > most) {
        fail<shape_error>("offloaded_cache has an extent " + std::to_string(n) +
                          ", needs 0 to 2^40");
      }
    }
    if (page_size < 1 || head_dim < 1) {
      fail<shape_error>("offloaded_cache has page size " + std::to_string(page_size) +
                        " and head dim " + std::to_string(head_dim) + ", needs at least 1");
    }
    const index all[] = {batch, kv_heads, capacity + page_size, head_dim + value_dim};
    (void)checked_size("offloaded_cache", all, 16);
  }
};

/// An open file of one layout. Throws file_error with its name.
class offload_file {
 public:
  offload_file(std::string path, bool create) : path_(std::move(path)) {
    const int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_TRUNC : 0);
    file_ = ::open(path_.c_str(), flags, 0600);
    if (file_ < 0) failed("cannot be opened");
  }
  offload_file(offload_file&& other) noexcept
      : path_(std::move(other.path_)),
        file_(std::exchange(other.file_, -1)),
        map_(std::exchange(other.map_, nullptr)),
        mapped_(other.mapped_) {}
  offload_file& operator=(offload_file&& other) noexcept {
    path_.swap(other.path_);
    std::swap(file_, other.file_);
    std::swap(map_, other.map_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }
  offload_file(const offload_file&) = delete;
  offload_file& operator=(const offload_file&) = delete;
  ~offload_file() {
    if (map_ != nullptr) ::munmap(map_, mapped_);
    if (file_ >= 0) ::close(file_);
  }

  void resize(index bytes) {
    if (::ftruncate(file_, static_cast<off_t>(bytes)) != 0) failed("cannot be made larger");
  }
  [[nodiscard]] index size() const {
    struct ::stat info{};
    if (::fstat(file_, &info) != 0) failed("cannot be examined");
    return static_cast<index>(info.st_size);
  }
  void map(index bytes) {
    mapped_ = static_cast<std::size_t>(bytes);
    void* const p = ::mmap(nullptr, mapped_, PROT_READ, MAP_SHARED, file_, 0);
    if (p == MAP_FAILED) failed("cannot be mapped");
    map_ = p;
  }
  [[nodiscard]] const std::byte* mapped(index at) const noexcept {
    return static_cast<const std::byte*>(map_) + at;
  }
  /// Whole pages of the system's within [at, at + bytes) of the map.
  void advise(index at, index bytes, int advice) const noexcept {
    const auto unit = static_cast<index>(::sysconf(_SC_PAGESIZE));
    const index begin = round_up(at, unit);
    const index end = (at + bytes) / unit * unit;
    if (begin < end) {
      (void)::madvise(static_cast<std::byte*>(map_) + begin, static_cast<std::size_t>(end - begin),
                      advice);
    }
  }
  void will_read(index at, index bytes) const noexcept {
#if defined(POSIX_FADV_WILLNEED)
    (void)::posix_fadvise(file_, static_cast<off_t>(at), static_cast<off_t>(bytes),
                          POSIX_FADV_WILLNEED);
#else
    (void)at, (void)bytes;
#endif
  }

  /// False where not all of it could be read.
  [[nodiscard]] bool try_read(index at, void* to, index bytes) const noexcept {
    auto* p = static_cast<char*>(to);
    while (bytes > 0) {
      const auto n = ::pread(file_, p, static_cast<std::size_t>(bytes), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      p += n;
      at += n;
      bytes -= n;
    }
    return true;
  }
  void read(index at, void* to, index bytes) const {
    if (!try_read(at, to, bytes)) failed("cannot be read");
  }
  void write(index at, const void* from, index bytes) {
    const auto* p = static_cast<const char*>(from);
    while (bytes > 0) {
      const auto n = ::pwrite(file_, p, static_cast<std::size_t>(bytes), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) failed("cannot be written");
      p += n;
      at += n;
      bytes -= n;
    }
  }
  void sync() {
#if defined(_POSIX_SYNCHRONIZED_IO) && _POSIX_SYNCHRONIZED_IO > 0
    if (::fdatasync(file_) != 0) failed("cannot be synced");
#else
    if (::fsync(file_) != 0) failed("cannot be synced");
#endif
  }
  [[noreturn]] void failed(const std::string& what) const {
    const std::string reason = errno != 0 ? std::string(": ") + std::strerror(errno) : "";
    fail<file_error>(path_ + " " + what + reason);
  }
  [[noreturn]] void refuse(const std::string& why) const { fail<file_error>(path_ + ": " + why); }

 private:
  std::string path_;
  int file_ = -1;
  void* map_ = nullptr;
  std::size_t mapped_ = 0;
};

/// Header, record and trailers of such a file.
class offload_book {
 public:
  offload_book(offload_file file, const offload_layout& layout)
      : file_(std::move(file)),
        layout_(layout),
        buffer_(static_cast<std::size_t>(layout.page_size *
                                         (std::max)(layout.key_bytes, layout.value_bytes))) {}

  /// A new file without tokens.
  void write_new() {
    file_.resize(layout_.file_bytes());
    const auto numbers = layout_.numbers();
    const std::uint64_t sum = checksum(numbers.data(), sizeof(numbers));
    file_.write(64, numbers.data(), geometry_bytes);
    file_.write(64 + geometry_bytes, &sum, 8);
    record(0, 0);
    const file_header header("offloaded");
    file_.write(0, &header, 40);
    file_.sync();
  }
  /// The geometry of an existing file; row sizes are the caller's to fill in.
  static offload_layout read_layout(const offload_file& file) {
    if (file.size() < 4096) file.refuse("the file is cut short, or no cache of heed's");
    file_header header("");
    file.read(0, &header, 40);
    file_header("offloaded").check(header);
    std::array<std::int64_t, offload_layout::fields> n{};
    std::uint64_t sum = 0;
    file.read(64, n.data(), geometry_bytes);
    file.read(64 + geometry_bytes, &sum, 8);
    if (sum != checksum(n.data(), sizeof(n))) file.refuse("the file's header is damaged");
    offload_layout l;
    index* const to[] = {&l.key_scalar, &l.value_scalar, &l.batch,     &l.kv_heads,
                         &l.capacity,   &l.head_dim,     &l.value_dim, &l.page_size};
    for (std::size_t i = 0; i < n.size(); ++i) *to[i] = static_cast<index>(n[i]);
    return l;
  }
  /// Refuses a file that has not the size of its layout, before anything is allocated for it.
  static void require_size(const offload_file& file, const offload_layout& layout) {
    if (file.size() == layout.file_bytes()) return;
    std::string extents;
    for (const std::int64_t n : layout.numbers()) extents += " " + std::to_string(n);
    file.refuse("the file has " + std::to_string(file.size()) + " bytes, its extents" + extents +
                " make " + std::to_string(layout.file_bytes()));
  }
  /// Verifies all that is synced. Tokens synced, and tokens that had been appended.
  [[nodiscard]] std::pair<index, index> verify() {
    std::array<std::int64_t, 2> tokens{};
    std::uint64_t sum = 0;
    file_.read(512, tokens.data(), 16);
    file_.read(528, &sum, 8);
    if (sum != checksum(tokens.data(), sizeof(tokens)) || tokens[0] < 0 || tokens[0] > tokens[1] ||
        tokens[1] > layout_.capacity) {
      file_.refuse("the file's record is damaged");
    }
    for (index p = 0; p * layout_.page_size < tokens[0]; ++p) {
      std::array<std::uint64_t, 3> t{};
      file_.read(layout_.trailer_at(p), t.data(), 24);
      const auto covered = static_cast<index>(t[0]);
      const index needed = (std::min)(layout_.page_size, tokens[0] - p * layout_.page_size);
      if (t[2] != checksum(t.data(), 16) || covered < needed || covered > layout_.page_size ||
          t[1] != page_sum(p, covered)) {
        file_.refuse("page " + std::to_string(p) + " of the file is damaged");
      }
    }
    return {tokens[0], tokens[1]};
  }

  void record(index synced, index appended) {
    struct {
      std::int64_t tokens[2];
      std::uint64_t sum;
    } r{{synced, appended}, 0};
    r.sum = checksum(r.tokens, sizeof(r.tokens));
    file_.write(512, &r, 24);
  }
  /// The checksum of page p's first rows.
  void write_trailer(index p, index tokens) {
    std::array<std::uint64_t, 3> t{static_cast<std::uint64_t>(tokens), page_sum(p, tokens), 0};
    t[2] = checksum(t.data(), 16);
    file_.write(layout_.trailer_at(p), t.data(), 24);
  }

  [[nodiscard]] offload_file& file() noexcept { return file_; }
  [[nodiscard]] const offload_file& file() const noexcept { return file_; }
  [[nodiscard]] const offload_layout& layout() const noexcept { return layout_; }
  [[nodiscard]] std::byte* buffer() noexcept { return buffer_.data(); }

 private:
  static constexpr index geometry_bytes = 8 * static_cast<index>(offload_layout::fields);

  [[nodiscard]] std::uint64_t page_sum(index p, index tokens) {
    std::uint64_t sum = static_cast<std::uint64_t>(p);
    const index first = p * layout_.page_size;
    for (index head = 0; head < layout_.heads(); ++head) {
      file_.read(layout_.key_at(head, first), buffer_.data(), tokens * layout_.key_bytes);
      sum = checksum(buffer_.data(), static_cast<std::size_t>(tokens * layout_.key_bytes), sum);
      file_.read(layout_.value_at(head, first), buffer_.data(), tokens * layout_.value_bytes);
      sum = checksum(buffer_.data(), static_cast<std::size_t>(tokens * layout_.value_bytes), sum);
    }
    return sum;
  }

  offload_file file_;
  offload_layout layout_;
  std::vector<std::byte> buffer_;  // rows of a page and head
};

}  // namespace heed::inline HEED_TARGET::detail
#endif
