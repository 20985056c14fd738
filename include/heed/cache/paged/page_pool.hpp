// SPDX-License-Identifier: MIT
// The bookkeeping of a paged cache: which pages are free, who refers to the others, and the page
// table of every sequence. Knows nothing of keys and values.
//
// A page is free, or referred to by entries of page tables and by holds (of a prefix tree, or of
// the user). Its last reference's end frees it. All memory, 4 bytes a page and (8 + 4 pages of a
// table) bytes a sequence, is allocated at construction.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "heed/core/checked.hpp"
#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/types.hpp"

namespace heed::inline HEED_TARGET {

/// What validate() found: a count or link of a cache is wrong. Only an error in the library, or
/// memory overwritten, leads to it.
struct corruption_error : std::logic_error {
  using std::logic_error::logic_error;
};

/// A page of a paged cache.
using page_id = std::uint32_t;

namespace detail {

class page_pool {
 public:
  page_pool(index sequences, index pages, index table_pages)
      : table_pages_(checked_table(sequences, table_pages)),
        references_(checked(pages, "pages")),
        holds_(references_.size()),
        free_(references_.size()),
        lengths_(checked(sequences, "sequences")),
        tables_(lengths_.size() * at(table_pages)) {
    for (std::size_t i = 0; i < free_.size(); ++i) {
      free_[i] = static_cast<page_id>(free_.size() - 1 - i);  // low pages are taken first
    }
    free_count_ = pages;
  }

  [[nodiscard]] index pages() const noexcept { return static_cast<index>(references_.size()); }
  [[nodiscard]] index free_pages() const noexcept { return free_count_; }
  [[nodiscard]] index table_pages() const noexcept { return table_pages_; }
  [[nodiscard]] index sequences() const noexcept { return static_cast<index>(lengths_.size()); }
  [[nodiscard]] index references(page_id p) const noexcept { return references_[p]; }

  [[nodiscard]] index length(index s) const noexcept { return lengths_[at(s)]; }
  void set_length(index s, index tokens) noexcept { lengths_[at(s)] = tokens; }
  [[nodiscard]] page_id page(index s, index i) const noexcept { return table(s)[i]; }
  [[nodiscard]] page_id& page(index s, index i) noexcept {
    return tables_[at(s * table_pages_ + i)];
  }
  [[nodiscard]] const page_id* table(index s) const noexcept {
    return tables_.data() + s * table_pages_;
  }

  /// A free page with one reference. There must be one.
  [[nodiscard]] page_id take() noexcept {
    const page_id p = free_[at(--free_count_)];
    references_[p] = 1;
    return p;
  }
  void retain(page_id p) noexcept { ++references_[p]; }
  void release(page_id p) noexcept {
    if (--references_[p] == 0) free_[at(free_count_++)] = p;
  }
  void hold(page_id p) noexcept {
    ++holds_[p];
    retain(p);
  }
  void drop(page_id p) noexcept {
    --holds_[p];
    release(p);
  }
  [[nodiscard]] index holds(page_id p) const noexcept { return holds_[p]; }

  /// Counts references anew from the tables; holds become none.
  void count_references(index page_size) noexcept {
    std::fill(references_.begin(), references_.end(), 0U);
    std::fill(holds_.begin(), holds_.end(), 0U);
    for (index s = 0; s < sequences(); ++s) {
      for (index i = 0; i < ceil_div(length(s), page_size); ++i) retain(page(s, i));
    }
    free_count_ = 0;
    for (index p = pages() - 1; p >= 0; --p) {
      if (references_[at(p)] == 0) free_[at(free_count_++)] = static_cast<page_id>(p);
    }
  }

  /// Throws corruption_error where a count is not what tables and holds say.
  void validate(index page_size) const {
    std::vector<std::uint32_t> counted(holds_.begin(), holds_.end());
    for (index s = 0; s < sequences(); ++s) {
      const index used = ceil_div(length(s), page_size);
      if (length(s) < 0 || used > table_pages_) {
        fail<corruption_error>("sequence " + std::to_string(s) + " has length " +
                               std::to_string(length(s)));
      }
      for (index i = 0; i < used; ++i) {
        if (page(s, i) >= counted.size()) {
          fail<corruption_error>("sequence " + std::to_string(s) + " names page " +
                                 std::to_string(page(s, i)) + " of " + std::to_string(pages()));
        }
        ++counted[page(s, i)];
      }
    }
    for (std::size_t p = 0; p < counted.size(); ++p) {
      if (counted[p] != references_[p]) {
        fail<corruption_error>("page " + std::to_string(p) + " counts " +
                               std::to_string(references_[p]) + " references, has " +
                               std::to_string(counted[p]));
      }
    }
    for (index i = 0; i < free_count_; ++i) {
      const page_id p = free_[at(i)];
      if (p >= counted.size() || counted[p] != 0) {
        fail<corruption_error>("page " + std::to_string(p) + " is in use or twice free");
      }
      counted[p] = 1;  // seen
    }
    for (std::size_t p = 0; p < counted.size(); ++p) {
      if (counted[p] == 0) {
        fail<corruption_error>("page " + std::to_string(p) + " is neither free nor in use");
      }
    }
  }

 private:
  [[nodiscard]] static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }
  [[nodiscard]] static std::size_t checked(index n, const char* name) {
    if (n < 0 || std::cmp_greater(n, (std::numeric_limits<page_id>::max)())) {
      fail<shape_error>(std::string("paged_cache has ") + name + " " + std::to_string(n) +
                        ", needs 0 to 4294967295");
    }
    return at(n);
  }
  /// Before anything is allocated. Returns the pages.
  [[nodiscard]] static index checked_table(index sequences, index pages) {
    const index table[] = {sequences, pages};
    (void)checked(pages, "pages a sequence");
    (void)checked_size("page table", table, static_cast<index>(sizeof(page_id)));
    return pages;
  }

  index table_pages_;
  std::vector<std::uint32_t> references_;
  std::vector<std::uint32_t> holds_;
  std::vector<page_id> free_;  // the first free_count_ are the free pages
  index free_count_ = 0;
  std::vector<index> lengths_;
  std::vector<page_id> tables_;
};

}  // namespace detail

}  // namespace heed::inline HEED_TARGET
