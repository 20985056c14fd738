// SPDX-License-Identifier: MIT
// What a row selects: no candidate that was left out has a larger score than one that was taken, but
// for rounding.
#include <limits>
#include <set>
#include <vector>

#include "heed/sparse.hpp"
#include "soak/attention_case.hpp"
#include "soak/families.hpp"

namespace soak {

namespace {

using lists = heed::tensor<index, 4>;
constexpr double eps = std::numeric_limits<float>::epsilon();

/// A number in double, and the absolute sum of what it was made of.
struct sized {
  double value = 0;
  double size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

struct selection_call {
  attention_shape s;
  std::unique_ptr<oracle::laid_out<float>> q, k;
  heed::selection_options o;

  explicit selection_call(trial& t) : s(t) {
    s.batch = std::max<index>(s.batch, 1);
    s.keys = std::max<index>(s.keys, 1);
    q = random_numbers<float>(t, {s.batch, s.heads(), s.queries, s.dim}, 1);
    k = random_numbers<float>(t, {s.batch, s.kv_heads, s.keys, s.dim}, 1);
    o.count = t.between("count", 0, 40);
    o.causal = t.one_in("causal", 2);
    o.offset = t.between("offset", 0, s.keys);
    o.order =
        t.one_in("ascending", 2) ? heed::index_order::ascending : heed::index_order::best_first;
  }
  [[nodiscard]] index choosable(index row) const {
    return o.causal ? std::min(s.keys, o.offset + row + 1) : s.keys;
  }
  [[nodiscard]] sized product(index b, index h, index i, index j) const {
    sized sum;
    for (index c = 0; c < s.dim; ++c) {
      sum.add(double(q->view()(b, h, i, c)) * double(k->view()(b, h / s.group, j, c)));
    }
    return sum;
  }
};

/// A row's choices, in order; those that are none come last.
template <class Chosen>
std::vector<index> row_of(const Chosen& chosen, index b, index h, index i) {
  std::vector<index> row;
  bool ended = false;
  for (index c = 0; c < chosen.extent(3); ++c) {
    const auto j = static_cast<index>(chosen(b, h, i, c));
    if (j >= 0 && ended) throw wrong("a choice behind one that is none");
    ended = ended || j < 0;
    if (!ended) row.push_back(j);
  }
  return row;
}

/// `score` are the candidates, each within `rounding` eps of its size.
void expect_best(const std::vector<index>& row, const std::vector<sized>& score, double rounding,
                 index count, heed::index_order order) {
  double slack = 0;
  for (const sized& s : score) slack = std::max(slack, 2 * rounding * eps * s.size);
  const auto candidates = static_cast<index>(score.size());
  std::set<index> taken;
  double worst = oracle::infinity, last = oracle::infinity;
  index before = -1;
  for (const index j : row) {
    if (j >= candidates || !taken.insert(j).second) throw wrong("chose what is not to be chosen");
    const double s = score[std::size_t(j)].value;
    if (order == heed::index_order::ascending ? j < before : s > last + slack) {
      throw wrong("choices out of order");
    }
    before = j;
    last = s;
    worst = std::min(worst, s);
  }
  if (index(taken.size()) != std::min(count, candidates)) throw wrong("too few chosen");
  for (index j = 0; j < candidates && !taken.empty(); ++j) {
    if (!taken.contains(j) && score[std::size_t(j)].value > worst + slack) {
      throw wrong(std::to_string(j) + " is larger than one chosen");
    }
  }
}

}  // namespace

void top_k(trial& t) {
  const selection_call x(t);
  const auto chosen = heed::top_k_keys(t.exec, x.q->cview(), x.k->cview(), x.o);
  for (index b = 0; b < x.s.batch; ++b) {
    for (index h = 0; h < x.s.heads(); ++h) {
      for (index i = 0; i < x.s.queries; ++i) {
        std::vector<sized> score;
        for (index j = 0; j < x.choosable(i); ++j) score.push_back(x.product(b, h, i, j));
        expect_best(row_of(chosen, b, h, i), score, double(x.s.dim), x.o.count, x.o.order);
      }
    }
  }
}

/// The row's own block, and the best of those before it.
void mixture(trial& t) {
  selection_call x(t);
  x.o.block = t.between("block", 1, 16);
  x.o.order = heed::index_order::best_first;
  x.o.offset = t.between("offset", 0, std::max<index>(0, x.s.keys - x.s.queries));
  if (x.s.queries > x.s.keys) x.s.queries = 0;  // each row stands on a key
  const auto q = x.q->cview().slice(2, 0, x.s.queries);
  const auto chosen = heed::mixture_of_blocks(t.exec, q, x.k->cview(), x.o);
  for (index b = 0; b < x.s.batch; ++b) {
    for (index h = 0; h < x.s.heads(); ++h) {
      for (index i = 0; i < x.s.queries; ++i) {
        const index own = (x.o.offset + i) / x.o.block;
        std::vector<sized> score;
        for (index n = 0; n < own; ++n) {
          sized mean;
          for (index j = n * x.o.block; j < (n + 1) * x.o.block; ++j) {
            const sized s = x.product(b, h, i, j);
            mean.value += s.value / double(x.o.block);
            mean.size += s.size / double(x.o.block);
          }
          score.push_back(mean);
        }
        auto row = row_of(chosen, b, h, i);
        if (x.o.count == 0) {
          expect_best(row, {}, 0, 0, x.o.order);
          continue;
        }
        const auto at = std::find(row.begin(), row.end(), own);
        if (at == row.end()) throw wrong("the row's own block was not chosen");
        row.erase(at);
        expect_best(row, score, double(x.s.dim + x.o.block + 2), x.o.count - 1, x.o.order);
      }
    }
  }
}

void indexer(trial& t) {
  selection_call x(t);
  const auto k = x.k->cview().slice(1, 0, 1);
  heed::tensor<float, 3> w({x.s.batch, x.s.heads(), x.s.queries});
  t.fill(w);
  const auto chosen = heed::indexer_keys(t.exec, x.q->cview(), k, w, x.o);
  x.s.group = x.s.heads();  // all share one key head
  x.s.kv_heads = 1;
  for (index b = 0; b < x.s.batch; ++b) {
    for (index i = 0; i < x.s.queries; ++i) {
      std::vector<sized> score;
      for (index j = 0; j < x.choosable(i); ++j) {
        sized sum;
        for (index h = 0; h < x.s.heads(); ++h) {
          const sized s = x.product(b, h, i, j);
          sum.value += double(w(b, h, i)) * std::max(0.0, s.value);
          sum.size += std::abs(double(w(b, h, i))) * s.size;
        }
        score.push_back(sum);
      }
      expect_best(row_of(chosen, b, 0, i), score, double(x.s.dim + x.s.heads() + 1), x.o.count,
                  x.o.order);
    }
  }
}

/// Pages by their bounds; the bounds are made here too.
void pages(trial& t) {
  selection_call x(t);
  const index page = t.between("page", 1, 20);
  heed::page_options o{.count = x.o.count, .newest = false, .causal = x.o.causal};
  o.offset = x.o.offset;
  heed::page_bounds<float> bounds(
      {.batch = x.s.batch, .kv_heads = x.s.kv_heads, .capacity = x.s.keys + 3, .head_dim = x.s.dim},
      page);
  const index cut = t.between("cut", 0, x.s.keys);
  bounds.update(t.exec, x.k->cview().slice(2, 0, cut));
  bounds.update(t.exec, x.k->cview());
  const auto chosen = heed::select_pages(t.exec, x.q->cview(), bounds, o);
  for (index b = 0; b < x.s.batch; ++b) {
    for (index h = 0; h < x.s.heads(); ++h) {
      for (index i = 0; i < x.s.queries; ++i) {
        std::vector<sized> score;
        for (index n = 0; n * page < x.choosable(i); ++n) {
          sized sum;
          for (index c = 0; c < x.s.dim; ++c) {
            const double q = double(x.q->view()(b, h, i, c));
            double most = -oracle::infinity;
            for (index j = n * page; j < std::min((n + 1) * page, x.s.keys); ++j) {
              most = std::max(most, q * double(x.k->view()(b, h / x.s.group, j, c)));
            }
            sum.add(most);
          }
          score.push_back(sum);
        }
        expect_best(row_of(chosen, b, h, i), score, double(x.s.dim), o.count,
                    heed::index_order::best_first);
      }
    }
  }
}

}  // namespace soak
