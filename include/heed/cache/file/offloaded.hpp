// SPDX-License-Identifier: MIT
// A KV cache in a file, for contexts that memory does not hold or that outlive the process. Optional:
// needs POSIX, and is not part of heed/cache.hpp; elsewhere this header declares nothing.
//
//   auto cache = heed::offloaded_cache<float>::create("chat.kv", {.kv_heads = 8, .capacity = 1 << 20,
//                                                                 .head_dim = 128});
//   cache.append(k, v);
//   heed::decode_into(out, q, cache, {}, heed::causal());
//   cache.sync();                                               // from here on it is safe
//   auto again = heed::offloaded_cache<float>::open("chat.kv"); // later, or after a crash
//
// Rows are appended by plain writes. They are read in one of two ways:
//
// - `offload::mapped`: in place, from the file mapped into memory. At most `resident_pages` pages of
//   each head stay in the process's resident set, the first read goes first, and the page behind the
//   one that is read is requested ahead.
// - `offload::read`: a block at a time by plain reads into the kernel's scratch, widened to float
//   once for all query rows of a task; nothing is resident. For float, half, bfloat16 and 8-bit
//   floats. Kernels do not throw: what cannot be read is NaN, and `read_failed()` says so.
//
// The first gives the bits of a contiguous cache of the same tokens, the second those of a contiguous
// cache of them in float. The format is in offload_file.hpp.
// What is appended is safe from a crash of the process after `sync`, which the destructor calls too.
// Opening verifies every synced page; `lost()` tells how many tokens were appended but never synced,
// as by a process that was killed. Damaged, cut and foreign files are refused.
//
// Memory, allocated at first: a page of rows of one head, and 9 bytes a page and head. Every operation
// succeeds or changes nothing that can be seen: rows that a failed append wrote lie behind the
// tokens. Throws file_error with the file's name; capacity_error, shape_error. Reading from many
// threads is safe while no one writes. One process at a time.
#pragma once

#include "heed/cache/file/offload_file.hpp"

#if __has_include(<sys/mman.h>)
#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "heed/cache/append_input.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/simd/convert.hpp"

namespace heed::inline HEED_TARGET {

/// How rows of a file are read.
enum class offload { mapped, read };

struct offload_extents {
  index batch = 1;
  index kv_heads = 1;
  index capacity = 0;  ///< tokens
  index head_dim = 0;
  std::optional<index> value_dim = std::nullopt;  ///< head_dim where absent
  index page_size = 256;                          ///< tokens
};

/// A number in a file, which only its cache can read.
template <class T>
struct offloaded_scalar {};
template <class T>
struct accumulator<offloaded_scalar<T>> {
  using type = accumulate_t<T>;
};

template <attention_scalar TK, attention_scalar TV = TK, offload Mode = offload::mapped>
class offloaded_cache {
  static constexpr bool in_place = Mode == offload::mapped;
  static_assert(in_place || (std::is_same_v<accumulate_t<TK>, float> &&
                             std::is_same_v<accumulate_t<TV>, float>),
                "heed: rows that are read and widened are widened to float");

 public:
  using key_scalar = std::conditional_t<in_place, TK, offloaded_scalar<TK>>;
  using value_scalar = std::conditional_t<in_place, TV, offloaded_scalar<TV>>;

  /// A new file, or a file begun anew. Throws shape_error, file_error, std::bad_alloc.
  [[nodiscard]] static offloaded_cache create(const std::string& path, const offload_extents& e,
                                              index resident_pages = 16) {
    detail::offload_layout l;
    l.key_scalar = detail::scalar_name<TK>();
    l.value_scalar = detail::scalar_name<TV>();
    l.batch = e.batch;
    l.kv_heads = e.kv_heads;
    l.capacity = e.capacity;
    l.head_dim = e.head_dim;
    l.value_dim = e.value_dim.value_or(e.head_dim);
    l.page_size = e.page_size;
    set_bytes(l);
    detail::offload_book book(detail::offload_file(path, true), l);
    book.write_new();
    return offloaded_cache(std::move(book), resident_pages);
  }
  /// The cache in a file. Throws file_error where it is damaged, cut or another's.
  [[nodiscard]] static offloaded_cache open(const std::string& path, index resident_pages = 16) {
    detail::offload_file file(path, false);
    detail::offload_layout l = detail::offload_book::read_layout(file);
    if (l.key_scalar != detail::scalar_name<TK>() || l.value_scalar != detail::scalar_name<TV>()) {
      file.refuse("the file holds numbers of other types");
    }
    set_bytes(l);
    detail::offload_book::require_size(file, l);
    detail::offload_book book(std::move(file), l);
    const auto [synced, appended] = book.verify();
    offloaded_cache cache(std::move(book), resident_pages);
    cache.length_ = cache.synced_ = cache.changed_from_ = synced;
    cache.lost_ = appended - synced;
    return cache;
  }

  offloaded_cache(offloaded_cache&&) noexcept = default;
  offloaded_cache& operator=(offloaded_cache&&) = delete;
  offloaded_cache(const offloaded_cache&) = delete;
  offloaded_cache& operator=(const offloaded_cache&) = delete;
  /// Syncs; what fails then is lost, as by a crash.
  ~offloaded_cache() {
    if (shared_ == nullptr) return;
#if HEED_HAS_EXCEPTIONS
    try {
      sync();
    } catch (...) {  // NOLINT(bugprone-empty-catch): as the comment says
    }
#else
    sync();
#endif
  }

  /// Appends the same number of tokens to every batch: k [batch, kv heads, tokens, head dim], v
  /// likewise with value dim. Throws capacity_error, shape_error, file_error.
  template <tensor_like K, tensor_like V>
  void append(const K& k, const V& v) {
    if (!try_append(k, v)) detail::fail_full(length_, capacity(), as_rank4(as_view(k)).extent(2));
  }
  /// The same, but false where the tokens do not fit.
  template <tensor_like K, tensor_like V>
  [[nodiscard]] bool try_append(const K& k, const V& v) {
    return detail::append_in_step(*this, k, v, [&](const auto& tokens, index count) {
      for (index i = 0; i < count;) {
        const index at = length_ + i;
        const index rows = (std::min)(page_size() - at % page_size(), count - i);
        for (index b = 0; b < batch(); ++b) {
          for (index h = 0; h < kv_heads(); ++h) {
            const index head = b * kv_heads() + h;
            write<TK>(tokens.key_rows(b, h, i), rows, head_dim(), layout().key_at(head, at));
            write<TV>(tokens.value_rows(b, h, i), rows, value_dim(), layout().value_at(head, at));
          }
        }
        i += rows;
      }
      book_.record(synced_, length_ + count);
      length_ += count;
    });
  }

  /// Forgets all but the first `length` tokens. Throws shape_error where there are fewer,
  /// file_error.
  void truncate(index length) {
    detail::require_truncation(length, length_, "the cache");
    if (length >= synced_) {
      if (length < length_) book_.record(synced_, length);
    } else {
      // First the record, then the checksum: either alone finds its rows in place.
      book_.record(length, length);
      synced_ = length;
      if (length % page_size() != 0)
        book_.write_trailer(length / page_size(), length % page_size());
    }
    changed_from_ = (std::min)(changed_from_, length);
    length_ = length;
  }
  void clear() { truncate(0); }
  /// All tokens are on the disk when it returns. Throws file_error.
  void sync() {
    if (synced_ == length_ && changed_from_ >= length_) return;
    for (index p = changed_from_ / page_size(); p * page_size() < length_; ++p) {
      book_.write_trailer(p, (std::min)(page_size(), length_ - p * page_size()));
    }
    book_.file().sync();
    book_.record(length_, length_);
    book_.file().sync();
    synced_ = changed_from_ = length_;
  }

  [[nodiscard]] index length() const noexcept { return length_; }
  [[nodiscard]] index capacity() const noexcept { return layout().capacity; }
  [[nodiscard]] index page_size() const noexcept { return layout().page_size; }
  /// Tokens that are safe from a crash.
  [[nodiscard]] index synced() const noexcept { return synced_; }
  /// Tokens that had been appended to the file but not synced when it was opened.
  [[nodiscard]] index lost() const noexcept { return lost_; }
  /// Whether rows were NaN for want of reading since the last call.
  [[nodiscard]] bool read_failed() const noexcept { return shared_->failed.exchange(false); }

  // What kernels read: see key_value_source, widening_source.
  [[nodiscard]] index batch() const noexcept { return layout().batch; }
  [[nodiscard]] index kv_heads() const noexcept { return layout().kv_heads; }
  [[nodiscard]] index head_dim() const noexcept { return layout().head_dim; }
  [[nodiscard]] index value_dim() const noexcept { return layout().value_dim; }
  [[nodiscard]] index length(index) const noexcept { return length_; }
  [[nodiscard]] row_run<key_scalar> keys(index b, index h, index j) const noexcept {
    return run<key_scalar>(b * kv_heads() + h, j, layout().key_at(b * kv_heads() + h, j),
                           head_dim());
  }
  [[nodiscard]] row_run<value_scalar> values(index b, index h, index j) const noexcept {
    return run<value_scalar>(b * kv_heads() + h, j, layout().value_at(b * kv_heads() + h, j),
                             value_dim());
  }
  void widen_keys(index b, index h, range tokens, float* to) const noexcept
    requires(!in_place)
  {
    const index head = b * kv_heads() + h;
    widen<TK>(tokens, head_dim(), to, [&](index j) { return layout().key_at(head, j); });
  }
  void widen_values(index b, index h, range tokens, float* to) const noexcept
    requires(!in_place)
  {
    const index head = b * kv_heads() + h;
    widen<TV>(tokens, value_dim(), to, [&](index j) { return layout().value_at(head, j); });
  }
  [[nodiscard]] static constexpr index key_channel_stride() noexcept { return 1; }
  [[nodiscard]] static constexpr index value_channel_stride() noexcept { return 1; }

 private:
  friend struct detail::stored_cache<offloaded_cache>;

  /// What readers share: which pages of heads are resident, and the order in which they became so.
  struct readers {
    explicit readers(index chunks, index resident)
        : in(static_cast<std::size_t>(chunks)), order(static_cast<std::size_t>(resident)) {
      for (auto& x : order) x.store(-1, std::memory_order_relaxed);
    }
    std::vector<std::atomic<bool>> in;
    std::vector<std::atomic<index>> order;
    std::atomic<index> next{0};
    std::atomic<bool> failed{false};
  };

  offloaded_cache(detail::offload_book book, index resident_pages) : book_(std::move(book)) {
    if (resident_pages < 1) {
      fail<option_error>("resident_pages is " + std::to_string(resident_pages) +
                         ", must be at least 1");
    }
    const index chunks = layout().pages() * layout().heads();
    shared_ = std::make_unique<readers>(
        in_place ? chunks : 0,
        std::max<index>(1,
                        (std::min)(chunks, saturating_product(resident_pages, layout().heads()))));
    if constexpr (in_place) book_.file().map(layout().file_bytes());
  }
  static void set_bytes(detail::offload_layout& l) {
    l.check();
    l.key_bytes = l.head_dim * static_cast<index>(sizeof(TK));
    l.value_bytes = l.value_dim * static_cast<index>(sizeof(TV));
  }
  [[nodiscard]] const detail::offload_layout& layout() const noexcept { return book_.layout(); }

  template <class T, class S>
  void write(kernel::rectangle<const S> from, index rows, index channels, index at) {
    auto* const buffer = reinterpret_cast<T*>(book_.buffer());
    kernel::copy_tile<S, T>(from, {buffer, channels, 1}, rows, channels);
    book_.file().write(at, buffer, rows * channels * static_cast<index>(sizeof(T)));
  }

  template <class T>
  [[nodiscard]] row_run<T> run(index head, index j, index at, index channels) const noexcept {
    if constexpr (!in_place) {
      return {nullptr, 0, length_ - j};
    } else {
      touch(j / page_size(), head);
      return {reinterpret_cast<const T*>(book_.file().mapped(at)), channels,
              (std::min)(page_size() - j % page_size(), length_ - j)};
    }
  }
  /// Page p of a head is about to be read.
  void touch(index p, index head) const noexcept {
    const index heads = layout().heads();
    readers& r = *shared_;
    auto& in = r.in[static_cast<std::size_t>(p * heads + head)];
    if (in.load(std::memory_order_relaxed) || in.exchange(true)) return;
    const auto places = static_cast<index>(r.order.size());
    const auto place = static_cast<std::size_t>(r.next.fetch_add(1) % places);
    const index gone = r.order[place].exchange(p * heads + head);
    if (gone >= 0) {
      r.in[static_cast<std::size_t>(gone)].store(false);
      advise(gone / heads, gone % heads, MADV_DONTNEED);
    }
    if ((p + 1) * page_size() < length_) advise(p + 1, head, MADV_WILLNEED);
  }
  void advise(index p, index head, int advice) const noexcept {
    const index first = p * page_size();
    book_.file().advise(layout().key_at(head, first), page_size() * layout().key_bytes, advice);
    book_.file().advise(layout().value_at(head, first), page_size() * layout().value_bytes, advice);
  }

  template <class T, class At>
  void widen(range tokens, index channels, float* to, const At& at) const noexcept {
    for (index j = tokens.begin; j < tokens.end;) {
      const index rows = (std::min)(page_size() - j % page_size(), tokens.end - j);
      index left = rows * channels;
      index from = at(j);
      if ((j + rows) % page_size() == 0 && j + rows < length_) {
        book_.file().will_read(at(j + rows), left * static_cast<index>(sizeof(T)));
      }
      while (left > 0) {
        index n = left;
        bool good = false;
        if constexpr (std::is_same_v<T, float>) {
          good = book_.file().try_read(from, to, n * static_cast<index>(sizeof(T)));
        } else {
          T part[2048];
          n = std::min<index>(left, 2048);
          good = book_.file().try_read(from, part, n * static_cast<index>(sizeof(T)));
          for (index i = 0; good && i < n; ++i) to[i] = static_cast<float>(part[i]);
        }
        if (!good) {
          std::fill_n(to, n, std::numeric_limits<float>::quiet_NaN());
          shared_->failed.store(true);
        }
        to += n;
        left -= n;
        from += n * static_cast<index>(sizeof(T));
      }
      j += rows;
    }
  }

  detail::offload_book book_;
  std::unique_ptr<readers> shared_;
  index length_ = 0;
  index synced_ = 0;
  index changed_from_ = 0;  // trailers before this token are up to date
  index lost_ = 0;
};

static_assert(key_value_source<offloaded_cache<float>>);
static_assert(widening_source<offloaded_cache<half, half, offload::read>>);

}  // namespace heed::inline HEED_TARGET
#endif
