// SPDX-License-Identifier: MIT
// What a cache of several sequences must hold: vectors of vectors, and tokens that all differ.
#pragma once

#include <string>
#include <vector>

#include "heed/tensor.hpp"

namespace cache_model {

using heed::index;

/// Every token ever appended has a number of its own, and its rows follow from that.
using sequence = std::vector<int>;

struct geometry {
  index kv_heads = 2;
  index head_dim = 3;
  index value_dim = 2;
};

inline float key(int token, index h, index c) {
  return static_cast<float>(token * 16 + static_cast<int>(h * 4 + c));
}
inline float value(int token, index h, index c) { return -key(token, h, c) - 0.5F; }

/// Keys and values of the tokens `first` .. `first + count - 1`, packed.
struct tokens {
  tokens(const geometry& g, int first, index count)
      : k({g.kv_heads, count, g.head_dim}), v({g.kv_heads, count, g.value_dim}) {
    for (index h = 0; h < g.kv_heads; ++h) {
      for (index i = 0; i < count; ++i) {
        const int t = first + static_cast<int>(i);
        for (index c = 0; c < g.head_dim; ++c) k(h, i, c) = key(t, h, c);
        for (index c = 0; c < g.value_dim; ++c) v(h, i, c) = value(t, h, c);
      }
    }
  }
  heed::tensor<float, 3> k;
  heed::tensor<float, 3> v;
};

/// "" where the cache holds exactly the model, read as kernels read it.
template <class Cache>
std::string difference(const Cache& cache, const std::vector<sequence>& model) {
  if (cache.batch() != static_cast<index>(model.size())) return "batch";
  for (index b = 0; b < cache.batch(); ++b) {
    const sequence& want = model[static_cast<std::size_t>(b)];
    const std::string name = "sequence " + std::to_string(b);
    if (cache.length(b) != static_cast<index>(want.size())) {
      return name + " has length " + std::to_string(cache.length(b)) + ", not " +
             std::to_string(want.size());
    }
    for (index h = 0; h < cache.kv_heads(); ++h) {
      for (index j = 0; j < cache.length(b); ++j) {
        const int token = want[static_cast<std::size_t>(j)];
        const auto k = cache.keys(b, h, j);
        const auto v = cache.values(b, h, j);
        if (k.count < 1 || v.count < 1 || j + k.count > cache.length(b)) return name + " run";
        for (index c = 0; c < cache.head_dim(); ++c) {
          if (k.data[c] != key(token, h, c)) return name + " key " + std::to_string(j);
        }
        for (index c = 0; c < cache.value_dim(); ++c) {
          if (v.data[c] != value(token, h, c)) return name + " value " + std::to_string(j);
        }
      }
    }
  }
  return "";
}

}  // namespace cache_model
