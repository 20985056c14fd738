// SPDX-License-Identifier: MIT
// Your own sparse pattern in ten lines: a mask that says which tiles it leaves empty or full.
//
// Here: a token sees its own page of 64 tokens and the first token of each chapter of 512 so far.
// Without `coverage` the result is the same; with it, whole tiles are skipped.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <heed/attention.hpp>
#include <heed/parallel.hpp>
#include <heed/sparse.hpp>

struct pages {
  static constexpr auto when = heed::stage::mask;
  bool operator()(const heed::position& p) const {
    return p.key <= p.query && (p.key / 64 == p.query / 64 || p.key % 512 == 0);
  }
  heed::coverage coverage(const heed::tile& t) const {
    if (t.keys.begin >= t.queries.end) return heed::coverage::empty;  // the future
    const bool own_page = (t.keys.end - 1) / 64 >= t.queries.begin / 64;
    const bool chapter = heed::round_up(t.keys.begin, 512) < t.keys.end;
    return own_page || chapter ? heed::coverage::partial : heed::coverage::empty;
  }
};

int main() {
  const heed::index n = 2048;
  heed::tensor<float, 2> q({n, 32}), k({n, 32}), v({n, 32});
  for (heed::index i = 0; i < q.size(); ++i) {
    q.data()[i] = std::sin(static_cast<float>(i));
    k.data()[i] = std::cos(static_cast<float>(3 * i));
    v.data()[i] = std::sin(static_cast<float>(7 * i));
  }
  const auto out = heed::attention(q, k, v, {}, pages{});
  const auto textbook = heed::naive_attention(q, k, v, {}, pages{});
  float difference = 0;
  for (heed::index i = 0; i < out.size(); ++i) {
    difference = std::max(difference, std::abs(out.data()[i] - textbook.data()[i]));
  }

  heed::serial_executor exec;
  const heed::block_pattern pattern(
      exec, {.queries = n, .keys = n, .query_block = 64, .key_block = 64}, pages{});
  std::printf("%s", heed::to_text(pattern).c_str());
  std::printf("%.0f %% of the blocks are looked at; the textbook differs by %.1e\n",
              100 * pattern.density(), static_cast<double>(difference));
  return difference < 1e-5F ? 0 : 1;
}
