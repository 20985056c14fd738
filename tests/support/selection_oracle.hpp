// SPDX-License-Identifier: MIT
// What the tests of selections share: shapes, choices drawn at random, and the mask they are.
#pragma once

#include <algorithm>
#include <random>

#include "heed/attention.hpp"
#include "heed/sparse/gather/naive.hpp"
#include "heed/sparse/gather/selected_attention.hpp"
#include "support/attention_oracle.hpp"
#include "support/masked_gather.hpp"

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
inline auto selected(const heed::tensor<index, 4>& choices, const shapes& s) {
  return heed::selection_mask<index>{heed::view<const index, 4>(heed::as_view(choices)), s.block,
                                     s.heads};
}

/// Attention to selected blocks as a gather under its mask.
struct selected_gather {
  const heed::tensor<index, 4>& choices;
  const shapes& s;

  [[nodiscard]] auto mask() const { return selected(choices, s); }
  [[nodiscard]] index merges() const { return s.choices; }
  template <class E, class Target, class Q, class K, class V, class... M>
  void operator()(E& exec, Target&& target, const Q& q, const K& k, const V& v,
                  const heed::attention_options& options, const M&... mods) const {
    heed::selected_attention_into(exec, target, q, k, v, choices, s.block, options, mods...);
  }
};

/// f(tokens, gather) of random choices.
template <class F>
void with_selection(const shapes& s, F&& f) {
  const auto choices = random_selection(s, 4);
  f(masked_gather::shapes{.batch = s.batch,
                          .heads = s.heads,
                          .kv_heads = s.kv_heads,
                          .queries = s.queries,
                          .keys = s.keys},
    selected_gather{choices, s});
}

}  // namespace selections
