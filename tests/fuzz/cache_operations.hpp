// SPDX-License-Identifier: MIT
// Operations on a paged cache, of numbers or of codes by channel, its prefix tree and a slot cache,
// in any order and with any arguments, against vectors of vectors.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "cache/cache_model.hpp"
#include "cache/kivi_model.hpp"
#include "heed/cache.hpp"

namespace fuzz {

using cache_model::sequence;
using cache_model::tokens;
using heed::index;

constexpr index sequences = 4;
constexpr cache_model::geometry g{.kv_heads = 1, .head_dim = 2, .value_dim = 1};

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}
inline void require_same(const std::string& difference) {
  if (!difference.empty()) require(false, difference.c_str());
}

struct world {
  heed::paged_cache<float> pages{{.sequences = sequences,
                                  .kv_heads = g.kv_heads,
                                  .pages = 12,
                                  .page_size = 3,
                                  .head_dim = g.head_dim,
                                  .value_dim = g.value_dim}};
  heed::prefix_tree<heed::paged_cache<float>> tree{pages};
  heed::slot_cache<float> slots{{.batch = sequences,
                                 .kv_heads = g.kv_heads,
                                 .capacity = 20,
                                 .head_dim = g.head_dim,
                                 .value_dim = g.value_dim}};
  std::vector<sequence> in_pages{sequences};
  std::vector<sequence> in_slots{sequences};
  // Tokens follow from their place and those before, so that equal prefixes come about.
  [[nodiscard]] static int next(const sequence& s, int kind) {
    return 1 + kind + 2 * (static_cast<int>(s.size()) % 40);
  }

  void step(int what, index s, index n) {
    const auto at = static_cast<std::size_t>(s % sequences);
    const auto to = static_cast<std::size_t>(n % sequences);
    s %= sequences;
    sequence& paged = in_pages[at];
    sequence& slot = in_slots[at];
    switch (what % 8) {
      case 0:
      case 1: {
        const int kind = what / 8 % 2;
        for (index i = 0; i < n % 7; ++i) {
          const int token = next(paged, kind);
          const tokens t(g, token, 1);
          if (pages.try_append(s, t.k, t.v)) paged.push_back(token);
        }
        break;
      }
      case 2: {
        const tokens t(g, static_cast<int>(n), n % 9);
        if (slots.try_append(s, t.k, t.v)) {
          for (index i = 0; i < n % 9; ++i) slot.push_back(static_cast<int>(n + i));
        } else {
          require(static_cast<index>(slot.size()) + n % 9 > 20, "a slot refuses what fits");
        }
        break;
      }
      case 3:
        try {
          pages.truncate(s, n);
          paged.resize(static_cast<std::size_t>(n));
        } catch (const heed::shape_error&) {
          require(n > static_cast<index>(paged.size()), "a truncation is refused");
        }
        break;
      case 4:
        try {
          pages.fork(s, static_cast<index>(to), n % 20);
          in_pages[to].assign(paged.begin(), paged.begin() + n % 20);
        } catch (const heed::shape_error&) {
          require(n % 20 > static_cast<index>(paged.size()) || !in_pages[to].empty(),
                  "a fork is refused");
        }
        break;
      case 5:
        tree.insert(std::vector<std::int32_t>(paged.begin(), paged.end()), s);
        break;
      case 6:
        if (!in_pages[to].empty()) {
          tree.evict(n % 5);
        } else {
          const index known = tree.adopt(std::vector<std::int32_t>(paged.begin(), paged.end()),
                                         static_cast<index>(to));
          in_pages[to].assign(paged.begin(), paged.begin() + known);
        }
        break;
      default:
        slots.truncate(s, std::min<index>(n, slots.length(s)));
        slot.resize(std::min(slot.size(), static_cast<std::size_t>(n)));
    }
    pages.validate();
    tree.validate();
    require_same(cache_model::difference(pages, in_pages));
    require_same(cache_model::difference(slots, in_slots));
  }
};

/// Three bytes a step; then the pages as a file and back.
inline void operate(const std::uint8_t* data, std::size_t size) {
  world w;
  for (std::size_t i = 0; i + 2 < size && i < 300; i += 3) {
    w.step(data[i], data[i + 1], data[i + 2]);
  }
  std::stringstream file;
  heed::save_cache(file, w.pages);
  const auto again = heed::load_cache<heed::paged_cache<float>>(file);
  again.validate();
  require_same(cache_model::difference(again, w.in_pages));
}

/// The same with codes by channel in pages of 1 to 4 tokens, which the first byte says.
inline void operate_on_kivi(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return;
  kivi_model::world<4> w(1 + data[0] % 4);
  for (std::size_t i = 1; i + 2 < size && i < 300; i += 3) {
    require_same(w.step(data[i], data[i + 1], data[i + 2]));
  }
  require_same(w.restored_difference());
}

}  // namespace fuzz
