// SPDX-License-Identifier: MIT
// A random call of attention: shapes, numbers in any layout of memory, options, and attention by
// its definition in double.
#pragma once

#include <memory>
#include <vector>

#include "heed/attention.hpp"
#include "soak/trial.hpp"
#include "support/attention_oracle.hpp"

namespace soak {

struct attention_shape {
  index batch = 1, kv_heads = 1, group = 1, queries = 1, keys = 1, dim = 1, value_dim = 1;

  /// Small, and one time in 100 long enough for several tiles, tasks or splits.
  explicit attention_shape(trial& t) {
    const bool large = t.one_in("large", 100);
    batch = t.one_in("no batch", 100) ? 0 : t.between("batch", 1, large ? 1 : 2);
    kv_heads = t.between("kv heads", 1, large ? 1 : 3);
    group = t.one_of("group", {1, 1, 1, 2, 3, 4});
    const bool few = t.one_in("few queries", 2);
    queries = few ? t.between("queries", 0, 4) : t.extent("queries", 1, large ? 150 : 20);
    keys = t.one_in("no keys", 60) ? 0 : t.extent("keys", 1, large ? (few ? 2500 : 300) : 40);
    dim = t.extent("dim", 1, large ? 80 : 20);
    value_dim = t.extent("value dim", 1, large ? 80 : 20);
  }
  [[nodiscard]] index heads() const { return kv_heads * group; }
};

inline oracle::layout random_layout(trial& t) {
  oracle::layout l;
  if (t.bits() % 2 == 0) return l;
  for (std::size_t n = 3; n > 0; --n) std::swap(l.order[n], l.order[t.bits() % (n + 1)]);
  for (std::size_t a = 0; a < 4; ++a) {
    if (t.bits() % 4 == 0) l.gap[a] = static_cast<index>(t.bits() % 4);
    l.backwards[a] = t.bits() % 6 == 0;
  }
  l.shift = static_cast<index>(t.bits() % 4);
  return l;
}

template <class T>
std::unique_ptr<oracle::laid_out<T>> random_numbers(trial& t, const oracle::extents4& e,
                                                    double size) {
  auto x = std::make_unique<oracle::laid_out<T>>(e, random_layout(t));
  oracle::each_index(e, [&](index b, index h, index i, index c) {
    x->view()(b, h, i, c) = static_cast<T>(size * t.centred());
  });
  return x;
}

template <class T, class TK = T>
struct attention_case {
  using A = heed::accumulate_t<T>;
  attention_shape s;
  std::unique_ptr<oracle::laid_out<T>> q, out;
  std::unique_ptr<oracle::laid_out<TK>> k, v;
  heed::tensor<A, 3> lse;
  std::vector<index> offset;  ///< of each batch
  heed::attention_options options;

  explicit attention_case(trial& t) : attention_case(t, attention_shape(t)) {}
  attention_case(trial& t, const attention_shape& shape) : s(shape) {
    const double size = 0.5 * static_cast<double>(t.between("size", 1, 6));
    q = random_numbers<T>(t, {s.batch, s.heads(), s.queries, s.dim}, size);
    k = random_numbers<TK>(t, {s.batch, s.kv_heads, s.keys, s.dim}, 1);
    v = random_numbers<TK>(t, {s.batch, s.kv_heads, s.keys, s.value_dim}, 1);
    out = std::make_unique<oracle::laid_out<T>>(
        oracle::extents4{s.batch, s.heads(), s.queries, s.value_dim}, random_layout(t));
    lse = heed::tensor<A, 3>({s.batch, s.heads(), s.queries});
    const index at = t.between("offset", -3, std::max<index>(s.keys, 4));
    offset.assign(static_cast<std::size_t>(s.batch), at);
    options.offset = at;
    if (t.one_in("offsets", 3)) {
      for (index& o : offset) o = t.between("offset", -3, std::max<index>(s.keys, 4));
      options.offset = offset;
    }
    if (t.one_in("scale", 3)) options.scale = 0.1 * static_cast<double>(t.between("scale", -5, 20));
    options.scratch = t.scratch;
  }
  [[nodiscard]] double scale() const {
    return options.scale.value_or(1 / std::sqrt(static_cast<double>(s.dim)));
  }

  /// Compares out and lse with the definition. `merges`: parts that a row is made of.
  template <class Score, class Visible>
  void expect(Score score, Visible visible, const std::vector<double>& sinks = {},
              index merges = 0) const {
    const auto qd = oracle::widened(q->view());
    const auto kd = oracle::widened(k->view());
    const auto vd = oracle::widened(v->view());
    expect_of(qd, kd, vd, score, visible, sinks, merges);
  }
  template <class Score, class Visible>
  void expect_of(const heed::tensor<double, 4>& qd, const heed::tensor<double, 4>& kd,
                 const heed::tensor<double, 4>& vd, Score score, Visible visible,
                 const std::vector<double>& sinks = {}, index merges = 0) const {
    double most = 0;
    for (const double x : sinks) most = std::max(most, std::abs(x));
    const auto watched = [&](double x, const heed::position& p) {
      const double y = score(x, p);
      for (const double z : {x, y}) {
        if (std::isfinite(z)) most = std::max(most, std::abs(z));
      }
      return y;
    };
    const auto want = oracle::by_definition(qd, kd, vd, scale(), offset, watched, visible, sinks);
    // Each merge of parts rounds twice, as a key does.
    const oracle::magnitudes sizes{
        s.dim, kd.extent(2) + 4 * merges,
        std::abs(scale()) * oracle::largest_row_norm(qd) * oracle::largest_row_norm(kd), most,
        oracle::largest(vd)};
    trial::require("output", oracle::difference<T>(out->view(), want.output, sizes));
    trial::require("log-sum-exp", oracle::lse_difference<T>(lse, want.log_sum_exp, sizes));
    trial::require("output", out->overwritten() == 0 ? "" : "memory beside it was written");
  }
};

inline double same_score(double x, const heed::position&) { return x; }
inline bool all_visible(const heed::position&) { return true; }
inline bool causal_pair(const heed::position& p) { return p.key <= p.query; }

}  // namespace soak
