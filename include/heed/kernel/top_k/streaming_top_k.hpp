// SPDX-License-Identifier: MIT
// The largest few of each of many rows of scores while they come, some packets of a row at a time:
// ties to the lower index, NaN as -inf.
//
// A row keeps what is above the count-th largest it had when its list was last cut. Cut each time
// it has doubled, a list of random scores is cut log2(n / count) times; of what is not kept, a
// packet costs one comparison. Lists as short as registers hold are kept in order instead, so that
// what is above the least of them is known at once.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>

#include "heed/core/errors.hpp"
#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/kernel/tiled/tuning.hpp"
#include "heed/kernel/top_k/radix_sort.hpp"
#include "heed/kernel/top_k/register_top_k.hpp"
#include "heed/simd/compress.hpp"

namespace heed::inline HEED_TARGET {

/// In which order the selected keys of a row are listed.
enum class index_order {
  best_first,  ///< largest score first, ties to the lower index
  ascending,   ///< by index, which costs less, to list and for `selected_attention` to read
};

}  // namespace heed::inline HEED_TARGET

namespace heed::inline HEED_TARGET::kernel {

/// Lists name their entries in 32 bits.
inline void check_listed(const char* name, index count) {
  constexpr index most = (std::numeric_limits<std::int32_t>::max)();
  if (count > most) {
    fail<shape_error>(std::string(name) + " are " + std::to_string(count) +
                      ", lists hold at most " + std::to_string(most));
  }
}

/// How many of v[0 .. n) are above `bound`; n is whole packets.
template <class A>
[[nodiscard]] index count_above(const A* v, index n, A bound) noexcept {
  const auto low = simd::broadcast(bound);
  index count = 0;
  for (index i = 0; i < n; i += simd::lanes<A>) {
    count += std::popcount(simd::greater_bits<A>(simd::load(v + i), low));
  }
  return count;
}

/// A bound that exactly `k` of v[0 .. n) are above, if narrowing their interval finds one, or else
/// the k-th largest, k >= 1: what is above it and the first of those that equal it are the k
/// largest. v holds no NaN, has room for whole packets, and is reordered. A pass over the packets
/// for each narrowing, where a straight line between the counts at both ends would have it, every
/// third time in the middle: a few are soon done, and mispredict nothing.
template <class A>
[[nodiscard]] A largest_bound(A* v, index n, index k) noexcept {
  constexpr index lanes = simd::lanes<A>;
  const index whole = round_up(n, lanes);
  std::fill(v + n, v + whole, v[0]);
  auto most = simd::load(v);
  auto least = simd::sub(simd::zero<A>(), most);
  for (index i = lanes; i < whole; i += lanes) {
    most = (simd::max)(most, simd::load(v + i));
    least = (simd::max)(least, simd::sub(simd::zero<A>(), simd::load(v + i)));
  }
  std::fill(v + n, v + whole, -std::numeric_limits<A>::infinity());
  A high = simd::largest(most);
  A low = -simd::largest(least);
  index above_high = 0;
  index above_low = n;
  for (int step = 0; step < 40; ++step) {
    const bool halves = step % 3 == 2 || !std::isfinite(high - low);
    const A part =
        halves ? A(0.5) : static_cast<A>(above_low - k) / static_cast<A>(above_low - above_high);
    const A middle = low + (high - low) * part;
    if (!(middle > low && middle < high)) break;
    const index count = count_above(v, whole, middle);
    if (count == k) return middle;
    (count > k ? low : high) = middle;
    (count > k ? above_low : above_high) = count;
  }
  std::nth_element(v, v + k - 1, v + n, [](A a, A b) { return a > b; });
  return v[k - 1];
}

/// The lists of a task's rows.
template <class A>
class running_largest {
 public:
  using plan = tile_plan<A>;
  /// Most scores of a row that are taken at once.
  static constexpr index step = plan::group;
  static_assert(step < 64);  // a bit each
  /// So many are kept in order.
  static constexpr index in_registers = register_top_k<A>::size;

  void allocate(arena& c, index rows, index count) noexcept {
    count_ = count;
    capacity_ = count <= in_registers ? in_registers
                                      : round_up(2 * count + step + plan::lanes, plan::lanes);
    values_ = c.allocate<A>(rows * capacity_);
    if (count <= in_registers) {
      few_keys_ = c.allocate<A>(rows * capacity_);
    } else {
      keys_ = c.allocate<std::int32_t>(rows * capacity_);
      cut_ = c.allocate<A>(capacity_);
      sorted_ = c.allocate<sized_entry<A>>(2 * capacity_);
    }
    least_ = c.allocate<A>(rows);
    held_ = c.allocate<index>(rows);
  }
  /// Empty lists.
  void start(index rows) noexcept {
    std::fill_n(least_, rows, lowest);
    std::fill_n(held_, rows, index{0});
    if (count_ > in_registers) return;
    std::fill_n(values_, rows * capacity_, lowest);
    std::fill_n(few_keys_, rows * capacity_, register_top_k<A>::key_bits(-1));
  }

  /// Row r, still empty, passes over what is not above `bound`, even if too few are: `complete`
  /// tells. -inf is no bound; for lists of more numbers than registers hold.
  void start_above(index r, A bound) noexcept { least_[r] = bound; }
  /// Whether row r has its `count`.
  [[nodiscard]] bool complete(index r) const noexcept { return held_[r] >= count_; }
  /// A number that no more than `count` of row r's scores are above: -inf where it has fewer.
  [[nodiscard]] A bound(index r) noexcept {
    if (count_ > in_registers) finish(r);
    return least_[r];
  }

  /// Row r's scores of the keys [first, first + n), n <= step, which come after all it has had; s
  /// may be read up to `step`.
  HEED_INLINE void take(index r, const A* s, index first, index n) noexcept {
    if (n <= 0 || count_ == 0) return;
    if (held_[r] < count_ && least_[r] == lowest) return take_any(r, s, first, n);
    std::uint64_t bits = 0;
    const auto least = simd::broadcast(least_[r]);
    simd::unroll<plan::packets>([&](auto p) HEED_INLINE_LAMBDA {
      bits |= std::uint64_t{simd::greater_bits<A>(simd::load(s + p * plan::lanes), least)}
              << (p * plan::lanes);
    });
    if (n < step) bits &= (std::uint64_t{1} << static_cast<unsigned>(n)) - 1;
    if (bits != 0) keep(r, s, first, bits);
  }

  /// Row r's scores of all `keys`, x[0] being that of the first; x may be read a step behind them.
  void take_row(index r, const A* x, range keys) noexcept {
    for (index j = keys.begin; j < keys.end; j += step, x += step) {
      take(r, x, j, (std::min)(step, keys.end - j));
    }
  }

  /// Row r's keys in `order`, and -1 in what is left of the `count`.
  template <class I>
  void list(index r, index_order order, I* to) noexcept {
    order == index_order::ascending ? ascending(r, to) : descending(r, to);
  }
  /// The same, ascending.
  template <class I>
  void ascending(index r, I* to) noexcept {
    if (count_ <= in_registers) {
      descending(r, to);
      std::sort(to, to + held_[r]);
      return;
    }
    finish(r);
    std::copy_n(keys_ + r * capacity_, held_[r], to);
    std::fill(to + held_[r], to + count_, I{-1});
  }
  /// The same, best first.
  template <class I>
  void descending(index r, I* to) noexcept {
    if (count_ <= in_registers) {
      for (index i = 0; i < count_; ++i) {
        to[i] = static_cast<I>(register_top_k<A>::key_of(few_keys_[r * capacity_ + i]));
      }
      return;
    }
    finish(r);
    const index n = held_[r];
    const A* const v = values_ + r * capacity_;
    const std::int32_t* const k = keys_ + r * capacity_;
    for (index i = 0; i < n; ++i) sorted_[i] = {sized_entry<A>::falling(v[i]), k[i]};
    const sized_entry<A>* const e = sort_by_size(sorted_, sorted_ + capacity_, n);
    for (index i = 0; i < n; ++i) to[i] = e[i].key;
    std::fill(to + n, to + count_, I{-1});
  }

 private:
  static constexpr A lowest = -std::numeric_limits<A>::infinity();
  static constexpr auto places = [] {
    std::array<std::int32_t, std::size_t{step}> all{};
    for (index i = 0; i < step; ++i)
      all[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
    return all;
  }();

  /// Where a row has less than it takes: whatever comes, until it has.
  HEED_NOINLINE void take_any(index r, const A* s, index first, index n) noexcept {
    const index any = (std::min)(n, count_ - held_[r]);
    if (count_ <= in_registers) {
      for (index i = 0; i < any; ++i) insert(r, s[i] == s[i] ? s[i] : lowest, first + i);
    } else {
      append(r, s, first, any);
    }
    std::uint64_t bits = 0;
    for (index i = any; i < n; ++i) bits |= std::uint64_t{s[i] > least_[r]} << i;
    if (bits != 0) keep(r, s, first, bits);
  }
  HEED_NOINLINE void keep(index r, const A* s, index first, std::uint64_t bits) noexcept {
    if (count_ <= in_registers) {
      A* const values = values_ + r * capacity_;
      register_top_k<A> few(values, few_keys_ + r * capacity_);
      for (; bits != 0; bits &= bits - 1) {
        const auto i = static_cast<index>(std::countr_zero(bits));
        few.insert(s[i], register_top_k<A>::key_bits(first + i));
      }
      few.store(values, few_keys_ + r * capacity_);
      least_[r] = values[count_ - 1];
      return;
    }
    A* v = values_ + r * capacity_ + held_[r];
    std::int32_t* k = keys_ + r * capacity_ + held_[r];
    held_[r] += std::popcount(bits);
    // Packets of which none is kept are no rarer than others, and not to be guessed.
    simd::unroll<plan::packets>([&](auto p) HEED_INLINE_LAMBDA {
      constexpr index i = p * plan::lanes;
      const auto selected = static_cast<unsigned>(bits >> i) &
                            static_cast<unsigned>((std::uint64_t{1} << plan::lanes) - 1);
      const int count = std::popcount(selected);
      simd::store_selected<A>(v, s + i, selected);
      simd::store_selected<A>(k, places.data() + i, selected, static_cast<std::int32_t>(first));
      v += count;
      k += count;
    });
    if (held_[r] > capacity_ - step - plan::lanes) cut(r);
  }
  /// All of s[0 .. n), NaN as -inf; whole packets are written.
  void append(index r, const A* s, index first, index n) noexcept {
    constexpr unsigned all = (1U << static_cast<unsigned>(plan::lanes)) - 1;
    A* const v = values_ + r * capacity_ + held_[r];
    std::int32_t* const k = keys_ + r * capacity_ + held_[r];
    for (index i = 0; i < n; i += plan::lanes) {
      const auto x = simd::load(s + i);
      simd::store(v + i, simd::select(simd::equal(x, x), x, simd::broadcast(lowest)));
      simd::store_selected<A>(k + i, places.data() + i, all, static_cast<std::int32_t>(first));
    }
    held_[r] += n;
  }
  /// Where fewer than `count` are in order yet: even -inf comes before none.
  void insert(index r, A x, index key) noexcept {
    A* const v = values_ + r * capacity_;
    A* const k = few_keys_ + r * capacity_;
    index i = held_[r];
    for (; i > 0 && v[i - 1] < x; --i) {
      v[i] = v[i - 1];
      k[i] = k[i - 1];
    }
    v[i] = x;
    k[i] = register_top_k<A>::key_bits(key);
    ++held_[r];
    if (held_[r] == count_) least_[r] = v[count_ - 1];
  }
  void finish(index r) noexcept {
    if (held_[r] > count_) cut(r);
  }

  /// Row r keeps the `count` largest, in order of their keys.
  HEED_NOINLINE void cut(index r) noexcept {
    A* const v = values_ + r * capacity_;
    std::int32_t* const k = keys_ + r * capacity_;
    const index n = held_[r];
    std::copy_n(v, n, cut_);
    const A bound = largest_bound(cut_, n, count_);
    // Place by place, each no further than it was read.
    index m = 0;
    // How many of those that equal the bound stay.
    index ties = count_ - count_above(cut_, round_up(n, plan::lanes), bound);
    if (ties == 0) {
      const auto low = simd::broadcast(bound);
      for (index i = 0; i < n; i += plan::lanes) {
        unsigned bits = simd::greater_bits<A>(simd::load(v + i), low);
        if (n - i < plan::lanes) bits &= (1U << static_cast<unsigned>(n - i)) - 1;
        simd::store_selected<A>(v + m, v + i, bits);
        simd::store_selected<A>(k + m, k + i, bits);
        m += std::popcount(bits);
      }
    } else {
      for (index i = 0; i < n; ++i) {
        const bool equal = v[i] == bound && ties > 0;
        const bool stays = v[i] > bound || equal;
        ties -= equal ? 1 : 0;
        v[m] = v[i];
        k[m] = k[i];
        m += stays ? 1 : 0;
      }
    }
    held_[r] = m;
    // Below the least that stays, perhaps: what comes between them is cut next time.
    least_[r] = bound;
  }

  index capacity_ = 0;
  index count_ = 0;
  A* values_ = nullptr;               // [rows][capacity]
  std::int32_t* keys_ = nullptr;      // [rows][capacity]
  A* few_keys_ = nullptr;             // of a list in registers, in the lanes of numbers
  A* cut_ = nullptr;                  // a list's values, out of order
  sized_entry<A>* sorted_ = nullptr;  // a list by size, twice its room
  A* least_ = nullptr;                // [rows]: what a row's next must be above
  index* held_ = nullptr;             // [rows]
};

}  // namespace heed::inline HEED_TARGET::kernel
