// SPDX-License-Identifier: MIT
// attention and naive_attention with random masks and modifiers.
#include <memory>
#include <optional>

#include "heed/score.hpp"
#include "soak/attention_case.hpp"
#include "soak/families.hpp"

namespace soak {

namespace {

template <class Function>
struct calls {
  const Function& function;
  trial& t;

  template <class Case, class... M>
  void operator()(Case& x, const M&... modifiers) const {
    function(t.exec, heed::into(x.out->view(), x.lse), x.q->cview(), x.k->cview(), x.v->cview(),
             x.options, modifiers...);
  }

  template <class T, class TK = T>
  void plain() const {
    attention_case<T, TK> x(t);
    (*this)(x);
    x.expect(same_score, all_visible);
  }
  template <class T, class TK = T>
  void causal() const {
    attention_case<T, TK> x(t);
    (*this)(x, heed::causal());
    x.expect(same_score, causal_pair);
  }
  void window_and_slopes() const {
    attention_case<float> x(t);
    heed::window w;
    if (!t.one_in("no left", 4)) w.left = t.between("left", -2, 40);
    if (!t.one_in("no right", 3)) w.right = t.between("right", -2, 40);
    std::vector<double> slopes(static_cast<std::size_t>(x.s.heads()));
    for (double& m : slopes) m = 0.3 * t.uniform();
    (*this)(x, heed::alibi(slopes), heed::causal() && w);
    x.expect(
        [&](double s, const heed::position& p) {
          const double m = static_cast<float>(slopes[static_cast<std::size_t>(p.head)]);
          return s - m * std::abs(static_cast<double>(p.query - p.key));
        },
        [&](const heed::position& p) {
          const index apart = p.query - p.key;
          return apart >= 0 && (!w.left || apart <= *w.left) && (!w.right || -apart <= *w.right);
        });
  }
  template <class T>
  void padded() const {
    attention_case<T> x(t);
    std::vector<index> n(static_cast<std::size_t>(x.s.batch));
    for (std::size_t b = 0; b < n.size(); ++b) {
      n[b] = t.between("length", 0, x.s.keys);
      for (index h = 0; h < x.s.kv_heads; ++h) {
        for (index j = n[b]; j < x.s.keys; ++j) {  // never read
          const auto nan = static_cast<T>(oracle::not_a_number);
          for (index c = 0; c < x.s.dim; ++c) x.k->view()(static_cast<index>(b), h, j, c) = nan;
          for (index c = 0; c < x.s.value_dim; ++c) {
            x.v->view()(static_cast<index>(b), h, j, c) = nan;
          }
        }
      }
    }
    const double cap = static_cast<double>(t.between("cap", 1, 20));
    (*this)(x, heed::lengths(n), heed::softcap(cap));
    x.expect([&](double s, const heed::position&) { return cap * std::tanh(s / cap); },
             [&](const heed::position& p) { return p.key < n[static_cast<std::size_t>(p.batch)]; });
  }
  void tensors() const {
    attention_case<float> x(t);
    const index width = t.one_in("narrow", 3) ? t.between("width", 0, x.s.keys) : x.s.keys;
    const index b = t.one_in("of each batch", 2) ? x.s.batch : 1;
    const index h = t.one_in("of each head", 2) ? x.s.heads() : 1;
    heed::tensor<std::uint8_t, 4> kept({b, h, x.s.queries, width});
    for (index i = 0; i < kept.size(); ++i) kept.data()[i] = t.bits() % 4 != 0 ? 1 : 0;
    heed::tensor<float, 2> added({x.s.queries, x.s.keys});
    t.fill(added);
    for (index i = 0; i < added.size(); ++i) {
      if (t.bits() % 16 == 0) added.data()[i] = -std::numeric_limits<float>::infinity();
    }
    (*this)(x, heed::bias(added), heed::keep(kept));
    x.expect(
        [&](double s, const heed::position& p) {
          const double y = added(p.row, p.key);
          return std::isinf(y) ? y : s + y;
        },
        [&](const heed::position& p) {
          if (width != 1 && p.key >= width) return false;
          return kept(b == 1 ? 0 : p.batch, h == 1 ? 0 : p.head, p.row, width == 1 ? 0 : p.key) !=
                 0;
        });
  }
  void packed_documents() const {
    attention_case<float> x(t);
    const bool sorted = t.one_in("sorted", 2);
    const index rows = t.one_in("of each batch", 2) ? x.s.batch : 1;
    const auto ids = [&](index tokens) {
      std::vector<index> of(static_cast<std::size_t>(rows * tokens));
      for (index& id : of) id = static_cast<index>(t.bits() % 4);
      for (index r = 0; sorted && r < rows; ++r) {
        std::sort(of.begin() + r * tokens, of.begin() + (r + 1) * tokens);
      }
      return of;
    };
    const auto q = ids(x.s.queries), k = ids(x.s.keys);
    const float bend = static_cast<float>(t.uniform());
    (*this)(
        x, [bend](float s, heed::position p) { return s - bend * float((p.key + p.row) % 5); },
        heed::documents(q, k));
    x.expect(
        [&](double s, const heed::position& p) {
          return s - double(bend) * double((p.key + p.row) % 5);
        },
        [&](const heed::position& p) {
          const index b = rows == 1 ? 0 : p.batch;
          return q[static_cast<std::size_t>(b * x.s.queries + p.row)] ==
                 k[static_cast<std::size_t>(b * x.s.keys + p.key)];
        });
  }
  void sinks() const {
    attention_case<float> x(t);
    std::vector<float> logits(static_cast<std::size_t>(x.s.heads()));
    for (float& s : logits) s = static_cast<float>(3 * t.centred());
    const index left = t.between("left", 0, 20);
    const index apart = t.between("apart", 2, 9);
    const heed::window near{.left = left, .right = 0};
    (*this)(x, heed::sink(logits),
            near || (!near && [apart](heed::position p) { return p.key % apart == 0; }));
    x.expect(
        same_score,
        [&](const heed::position& p) {
          return (p.query - p.key <= left && p.key <= p.query) || p.key % apart == 0;
        },
        std::vector<double>(logits.begin(), logits.end()));
  }
  /// Which pairs are dropped is the library's own: they are read from it, and summed here.
  void dropped() const {
    attention_case<float> x(t);
    const heed::dropout drop{.probability = 0.1 * static_cast<double>(t.between("drop", 0, 9)),
                             .seed = t.bits()};
    (*this)(x, drop, heed::causal());
    const auto e =
        oracle::expected(x.q->cview(), x.k->cview(), x.v->cview(), x.options, drop, heed::causal());
    auto sizes = e.sizes;
    sizes.value /= 1 - drop.probability;
    trial::require("output", oracle::difference<float>(x.out->view(), e.output, sizes));
    trial::require("log-sum-exp", oracle::lse_difference<float>(x.lse, e.log_sum_exp, sizes));
  }
};

template <class Function>
void any(const Function& function, trial& t) {
  const calls<Function> c{function, t};
  switch (t.between("kind", 0, 11)) {
    case 0:
      return c.template plain<float>();
    case 1:
      return c.template causal<float>();
    case 2:
      return c.window_and_slopes();
    case 3:
      return c.template padded<float>();
    case 4:
      return c.tensors();
    case 5:
      return c.packed_documents();
    case 6:
      return c.sinks();
    case 7:
      return c.dropped();
    case 8:
      return c.template causal<double>();
    case 9:
      return c.template padded<heed::bfloat16>();
    case 10:
      return c.template causal<heed::half>();
    default:
      return c.template plain<float, heed::bfloat16>();
  }
}

}  // namespace

void exact(trial& t) { any(heed::attention_into, t); }
void naive(trial& t) { any(heed::naive_attention_into, t); }

}  // namespace soak
