// SPDX-License-Identifier: MIT
// What the tests of selections share: shapes, choices drawn at random, and the mask they are.
#pragma once

#include <algorithm>
#include <random>

#include "heed/attention.hpp"
#include "support/attention_oracle.hpp"

namespace selections {

using heed::index;

struct shapes {
  index batch = 2;
  index heads = 4;
  index kv_heads = 2;
  index queries = 37;
  index keys = 83;
  index value_dim = 21;
  index selection_batch = 2;
  index selection_heads = 2;
  index choices = 5;
  index block = 16;
};

/// Choices in any order, some of them none, some of them twice.
inline heed::tensor<index, 4> random_selection(const shapes& s, unsigned seed) {
  heed::tensor<index, 4> t({s.selection_batch, s.selection_heads, s.queries, s.choices});
  std::mt19937 draw(seed);
  const index blocks = heed::ceil_div(s.keys, s.block);
  for (index i = 0; i < t.size(); ++i) {
    t.data()[i] = static_cast<index>(draw() % static_cast<unsigned>(blocks + 1)) - 1;
  }
  return t;
}

/// Each row's choices ascending, those that are none last.
inline heed::tensor<index, 4> ascending(heed::tensor<index, 4> t) {
  const index count = t.extent(3);
  for (index at = 0; at < t.size(); at += count) {
    std::sort(t.data() + at, t.data() + at + count,
              [](index a, index b) { return a >= 0 && (b < 0 || a < b); });
  }
  return t;
}

/// The selection as a mask.
struct selected {
  const heed::tensor<index, 4>& choices;
  shapes s;
  bool operator()(const heed::position& p) const {
    const index b = s.selection_batch == 1 ? 0 : p.batch;
    const index h = s.selection_heads == 1 ? 0 : s.selection_heads == s.heads ? p.head : p.kv_head;
    for (index c = 0; c < s.choices; ++c) {
      if (choices(b, h, p.row, c) == p.key / s.block) return true;
    }
    return false;
  }
};

}  // namespace selections
