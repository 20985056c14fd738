// SPDX-License-Identifier: MIT
// The sparse forms, each told to see what the textbook sees under a mask.
#include <heed/attention.hpp>
#include <heed/parallel.hpp>
#include <heed/sparse.hpp>

#include "smoke.hpp"

namespace smoke {
namespace {

using heed::index;
constexpr index n = 70;
constexpr index d = 24;

/// 0, 1, ... count - 1.
heed::tensor<index, 4> ascending(index rows, index count) {
  heed::tensor<index, 4> list({1, 1, rows, count});
  for (index r = 0; r < rows; ++r) {
    for (index i = 0; i < count; ++i) list(0, 0, r, i) = i;
  }
  return list;
}

}  // namespace

void sparse_family() {
  const auto q = numbers<float, 4>({1, 2, n, d}, 11);
  const auto k = numbers<float, 4>({1, 2, n, d}, 12);
  const auto v = numbers<float, 4>({1, 2, n, d}, 13);
  const double most = allowed<float>(double(n + d));

  const auto local = heed::longformer(16, 2) && heed::causal();
  report("a pattern", "float",
         difference(heed::attention(q, k, v, {}, local), heed::naive_attention(q, k, v, {}, local)),
         most);

  // The best 9 keys of each row, by the definition: as many as 9 scores are larger or as large.
  constexpr index count = 9;
  heed::serial_executor serial;
  const auto best = heed::top_k_keys(serial, q, k, {.count = count, .causal = false});
  const auto score = [&](index h, index i, index j) {
    double s = 0;
    for (index c = 0; c < d; ++c) s += double(q(0, h, i, c)) * double(k(0, h, j, c));
    return s;
  };
  double missed = 0;
  for (index h = 0; h < 2; ++h) {
    for (index i = 0; i < n; ++i) {
      const double last = score(h, i, best(0, h, i, count - 1));
      index larger = 0;
      for (index j = 0; j < n; ++j) larger += score(h, i, j) > last + 1e-6 ? 1 : 0;
      if (larger >= count) ++missed;
    }
  }
  report("the best keys: rows that miss one", "float", missed, 0);

  // Keys 0 to 31, chosen by every row, are attention to 32 keys.
  constexpr index some = 32;
  const auto few = heed::naive_attention(q, heed::as_view(k).slice(2, 0, some),
                                         heed::as_view(v).slice(2, 0, some));
  report("attention to chosen keys", "float",
         difference(heed::selected_attention(q, k, v, ascending(n, some), 1), few), most);

  // One cluster of all tokens, and one bucket in one chunk, are all of attention.
  const auto all = heed::naive_attention(q, k, v);
  report("clusters", "float",
         difference(heed::routing_attention(q, k, v, ascending(1, n), ascending(1, n)), all), most);
  heed::tensor<index, 4> bucket({1, 1, 1, n});
  report("hashing", "float",
         difference(heed::lsh_attention(q, k, v, bucket, bucket, {.chunk = 128}), all), most);
}

}  // namespace smoke
