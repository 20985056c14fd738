// SPDX-License-Identifier: MIT
// What a paged cache of codes by channel must hold: rows that pass through codes when their page is
// complete, kept as plain vectors; and operations on both, in any order and with any arguments.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "heed/cache.hpp"

namespace kivi_model {

using heed::index;

constexpr index kv_heads = 2;
constexpr index head_dim = 3;
constexpr index value_dim = 5;

/// Of each token, [kv heads x channels].
struct rows {
  std::vector<std::vector<float>> k, v;

  [[nodiscard]] index size() const { return static_cast<index>(k.size()); }
  void resize(index n) {
    k.resize(static_cast<std::size_t>(n));
    v.resize(static_cast<std::size_t>(n));
  }
  /// Rows first .. first + count.
  [[nodiscard]] rows part(index first, index count) const {
    const auto cut = [&](const auto& x) {
      return std::vector<std::vector<float>>(x.begin() + first, x.begin() + first + count);
    };
    return {cut(k), cut(v)};
  }
  void append(const rows& more) {
    k.insert(k.end(), more.k.begin(), more.k.end());
    v.insert(v.end(), more.v.begin(), more.v.end());
  }
};

/// The numbers that `at` leads to, as codes and back.
template <int Bits>
void pass_through_codes(const std::vector<float*>& at) {
  std::vector<float> x;
  for (const float* p : at) x.push_back(*p);
  const auto n = static_cast<index>(x.size());
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(heed::code_bytes<Bits>(n)));
  const heed::row_scale s = heed::quantise_row<Bits>(x.data(), n, codes.data());
  heed::widen_codes<Bits>(codes.data(), s, n, x.data());
  for (std::size_t i = 0; i < at.size(); ++i) *at[i] = x[i];
}
/// One token more, and the codes of its page where it completes one.
template <int Bits>
void push(rows& to, index page_size, std::vector<float> k, std::vector<float> v) {
  to.k.push_back(std::move(k));
  to.v.push_back(std::move(v));
  if (to.size() % page_size != 0) return;
  const auto first = static_cast<std::size_t>(to.size() - page_size);
  for (std::size_t c = 0; c < to.k[0].size(); ++c) {
    std::vector<float*> channel;
    for (std::size_t j = first; j < to.k.size(); ++j) channel.push_back(&to.k[j][c]);
    pass_through_codes<Bits>(channel);
  }
  for (std::size_t j = first; j < to.v.size(); ++j) {
    const std::size_t channels = to.v[j].size() / kv_heads;
    for (std::size_t h = 0; h < kv_heads; ++h) {
      std::vector<float*> row;
      for (std::size_t c = 0; c < channels; ++c) row.push_back(&to.v[j][h * channels + c]);
      pass_through_codes<Bits>(row);
    }
  }
}

/// "" where the two give the same numbers.
template <class Cache>
std::string difference(const Cache& cache, const std::vector<rows>& want) {
  const auto same = [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); };
  for (index s = 0; s < cache.batch(); ++s) {
    const rows& w = want[static_cast<std::size_t>(s)];
    const std::string name = "sequence " + std::to_string(s);
    if (cache.length(s) != w.size()) {
      return name + " has length " + std::to_string(cache.length(s)) + ", not " +
             std::to_string(w.size());
    }
    const auto compare = [&](const char* what, index channels, const auto& wanted,
                             const auto& widen) -> std::string {
      std::vector<float> got(static_cast<std::size_t>(w.size() * channels));
      for (index h = 0; h < kv_heads; ++h) {
        widen(h, heed::range{0, w.size()}, got.data());
        for (index j = 0; j < w.size(); ++j) {
          for (index c = 0; c < channels; ++c) {
            if (!same(got[static_cast<std::size_t>(j * channels + c)],
                      wanted[static_cast<std::size_t>(j)]
                            [static_cast<std::size_t>(h * channels + c)])) {
              return name + " " + what + " " + std::to_string(j);
            }
          }
        }
      }
      return "";
    };
    const std::string of_keys = compare(
        "key", head_dim, w.k,
        [&](index h, heed::range tokens, float* to) { cache.widen_keys(s, h, tokens, to); });
    if (!of_keys.empty()) return of_keys;
    const std::string of_values = compare(
        "value", value_dim, w.v,
        [&](index h, heed::range tokens, float* to) { cache.widen_values(s, h, tokens, to); });
    if (!of_values.empty()) return of_values;
  }
  return "";
}

template <class Cache>
std::string saved(const Cache& cache) {
  std::ostringstream to;
  heed::save_cache(to, cache);
  return to.str();
}

/// A cache with its prefix tree, and what they must hold.
template <int Bits>
class world {
 public:
  using cache_type = heed::paged_cache<heed::kivi_code<Bits>>;
  static constexpr index sequences = 4;

  explicit world(index page_size, index pages = 12)
      : page_size_(page_size),
        cache_({.sequences = sequences,
                .kv_heads = kv_heads,
                .pages = pages,
                .page_size = page_size,
                .head_dim = head_dim,
                .value_dim = value_dim}),
        want_(sequences),
        ids_(sequences) {}

  /// What is wrong afterwards, or "".
  [[nodiscard]] std::string step(int what, index s, index n) {
    const auto to = static_cast<std::size_t>(n % sequences);
    s %= sequences;
    const auto at = static_cast<std::size_t>(s);
    switch (what % 8) {
      case 0:
      case 1: {
        const index count = n % (2 * page_size_ + 2);
        const index free = cache_.free_pages();
        if (!append({s}, {count}) && heed::ceil_div(count, page_size_) + 1 <= free) {
          return "an append is refused";
        }
        break;
      }
      case 2:
        append({0, 1, 2, 3}, {n % 3, n / 3 % 3, n / 9 % 3, n / 27 % 3});
        break;
      case 3: {
        const index kept = n % (want_[at].size() + 2);
        const bool fits = kept <= want_[at].size();
        if (refused([&] { cache_.truncate(s, kept); }) == fits) return "a truncation";
        if (fits) resize(at, kept);
        break;
      }
      case 4: {
        const index count = n / sequences % (want_[at].size() + 2);
        if (what % 16 == 4 && to != at) clear(to);
        const bool fits = count <= want_[at].size() && want_[to].size() == 0;
        if (refused([&] { cache_.fork(s, n % sequences, count); }) == fits) return "a fork";
        if (fits) {
          want_[to] = want_[at].part(0, count);
          ids_[to].assign(ids_[at].begin(), ids_[at].begin() + count);
        }
        break;
      }
      case 5: {
        tree_.insert(ids_[at], s);
        const auto table = cache_.page_table(s);
        for (index i = 0; i < want_[at].size() / page_size_; ++i) {
          in_page_[table[static_cast<std::size_t>(i)]] = want_[at].part(i * page_size_, page_size_);
        }
        break;
      }
      case 6:
        if (want_[to].size() > 0) {
          tree_.evict(n % 5);
        } else {
          const std::vector<std::int32_t> ids = ids_[at];
          const index known = tree_.adopt(ids, n % sequences);
          // A page has the rows that it had when it was written, whatever its tokens are elsewhere.
          for (const heed::page_id p : cache_.page_table(n % sequences)) {
            want_[to].append(in_page_.at(p));
          }
          ids_[to].assign(ids.begin(), ids.begin() + known);
        }
        break;
      default:
        clear(at);
    }
    cache_.validate();
    tree_.validate();
    return difference(cache_, want_);
  }

  /// What is wrong with a saved and restored cache, or "".
  [[nodiscard]] std::string restored_difference() const {
    const std::string file = saved(cache_);
    std::istringstream from(file);
    const auto again = heed::load_cache<cache_type>(from);
    again.validate();
    if (saved(again) != file) return "a restored cache has another file";
    return difference(again, want_);
  }

 private:
  template <class Use>
  static bool refused(const Use& use) {
    try {
      use();
    } catch (const heed::shape_error&) {
      return true;
    }
    return false;
  }
  void clear(std::size_t s) {
    cache_.clear(static_cast<index>(s));
    resize(s, 0);
  }
  void resize(std::size_t s, index n) {
    want_[s].resize(n);
    ids_[s].resize(static_cast<std::size_t>(n));
  }
  /// Tokens follow from their place and what was appended last, so that equal prefixes come about.
  bool append(const std::vector<index>& to, const std::vector<index>& counts) {
    std::vector<index> starts(sequences + 1);
    for (std::size_t i = 0; i < to.size(); ++i) {
      starts[static_cast<std::size_t>(to[i]) + 1] = counts[i];
    }
    for (std::size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
    const index all = starts.back();
    heed::tensor<float, 3> k({kv_heads, all, head_dim});
    heed::tensor<float, 3> v({kv_heads, all, value_dim});
    std::vector<rows> want = want_;
    std::vector<std::vector<std::int32_t>> ids = ids_;
    for (std::size_t s = 0; s < sequences; ++s) {
      for (index j = starts[s]; j < starts[s + 1]; ++j) {
        const auto id = static_cast<std::int32_t>(want[s].size() + 40 * (all % 2));
        std::vector<float> key;
        std::vector<float> value;
        for (index h = 0; h < kv_heads; ++h) {
          for (index c = 0; c < head_dim; ++c) key.push_back(k(h, j, c) = number(id, h, c));
          for (index c = 0; c < value_dim; ++c) value.push_back(v(h, j, c) = number(id, c, h + 7));
        }
        push<Bits>(want[s], page_size_, key, value);
        ids[s].push_back(id);
      }
    }
    const bool fits =
        to.size() == 1 ? cache_.try_append(to[0], k, v) : cache_.try_append(k, v, starts);
    if (fits) {
      want_ = std::move(want);
      ids_ = std::move(ids);
    }
    return fits;
  }
  [[nodiscard]] static float number(int id, index x, index y) {
    if (id % 40 == 33 && x == 1) return std::numeric_limits<float>::quiet_NaN();
    const auto at = static_cast<int>(id * 79 + x * 31 + y * 57) % 101;
    return static_cast<float>(y == 2 ? at * 300 : at) / 7 - 5;
  }

  index page_size_;
  cache_type cache_;
  heed::prefix_tree<cache_type> tree_{cache_};
  std::vector<rows> want_;
  std::vector<std::vector<std::int32_t>> ids_;
  std::map<heed::page_id, rows> in_page_;  // that the tree has, or had
};

}  // namespace kivi_model
