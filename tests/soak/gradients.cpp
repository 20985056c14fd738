// SPDX-License-Identifier: MIT
// Gradients of attention by tiles against the textbook in double.
#include <limits>

#include "heed/attention.hpp"
#include "heed/score.hpp"
#include "soak/attention_case.hpp"
#include "soak/families.hpp"

namespace soak {

namespace {

template <int R>
heed::tensor<double, R> wide(const heed::tensor<float, R>& x) {
  heed::tensor<double, R> y(x.extents());
  for (index i = 0; i < x.size(); ++i) y.data()[i] = double(x.data()[i]);
  return y;
}

/// The largest Euclidean norm of a row, squared channels times `of`'s largest.
double bound(const heed::tensor<double, 4>& a, const heed::tensor<double, 4>& b) {
  return oracle::largest_row_norm(a) * oracle::largest_row_norm(b);
}

}  // namespace

/// With e the relative error of a weight (support/attention_oracle.hpp) and B = |d_out| |v| +
/// |d_lse|, ds = p (dp - delta + d_lse) errs by p (4 e + (4 sqrt(Dv) + 8) u) 2 B; the gradients sum
/// it with |k| or |q|, at 4 sqrt(n) u of n terms.
void gradients(trial& t) {
  attention_case<float> x(t);
  const attention_shape& s = x.s;
  heed::tensor<float, 4> d_out({s.batch, s.heads(), s.queries, s.value_dim});
  heed::tensor<float, 3> d_lse({s.batch, s.heads(), s.queries});
  t.fill(d_out);
  t.fill(d_lse, t.one_in("lse", 2) ? 1 : 0);
  heed::window w;
  if (!t.one_in("no left", 2)) w.left = t.between("left", 0, 40);
  if (!t.one_in("no right", 2)) w.right = t.between("right", 0, 5);
  const heed::dropout drop{.probability = 0.1 * double(t.one_of("drop", {0, 0, 3})),
                           .seed = t.bits()};
  const auto q = oracle::widened(x.q->view()), k = oracle::widened(x.k->view()),
             v = oracle::widened(x.v->view());
  const auto slopes = heed::alibi();
  auto forward = heed::attention_with_lse(t.exec, x.q->cview(), x.k->cview(), x.v->cview(),
                                          x.options, slopes, w, drop);
  const auto got =
      heed::attention_backward(t.exec, x.q->cview(), x.k->cview(), x.v->cview(),
                               heed::into(forward.output, forward.log_sum_exp),
                               heed::cotangents(d_out, d_lse), x.options, slopes, w, drop);

  auto stages = heed::naive_attention_stages(q, k, v, x.options, slopes, w, drop);
  const auto d_out64 = wide(d_out);
  const auto d_lse64 = wide(d_lse);
  const auto want = heed::naive_attention_backward(
      q, k, v, heed::into(stages.output, stages.log_sum_exp), heed::cotangents(d_out64, d_lse64),
      x.options, slopes, w, drop);

  const double u = oracle::unit_roundoff<float>(), kept = 1 - drop.probability;
  const double scale = std::abs(x.scale());
  const double product = scale * bound(q, k);
  const oracle::tolerance<float> near(
      {s.dim, s.keys, product, std::max(product, oracle::largest(stages.masked)), 1});
  const double e = near.log_sum_exp(0);
  const double b = bound(d_out64, v) / kept + oracle::largest(d_lse64);
  const double rows = double(s.queries * s.group), keys = double(s.keys);
  const double pair = (4 * e + (4 * std::sqrt(double(s.value_dim)) + 8) * u) * 2 * b;
  const auto sum = [&](double n) { return 4 * std::sqrt(n + 1) * u; };
  // How much all rows of a group weight a key, dropped pairs included: the softmax knows of them.
  heed::tensor<double, 3> weight({s.batch, s.kv_heads, s.keys});
  oracle::each_index(stages.masked.extents(), [&](index n, index h, index i, index j) {
    const double y = stages.masked(n, h, i, j);
    if (y != -oracle::infinity) {
      weight(n, h / s.group, j) += std::exp(y - stages.log_sum_exp(n, h, i));
    }
  });
  const auto compare = [&](const char* what, const auto& is, const auto& should,
                           const auto& within) {
    heed::tensor<double, 4> allowed(should.extents());
    oracle::each_index(allowed.extents(), [&](index n, index h, index i, index c) {
      allowed(n, h, i, c) = within(n, h, i) + 4 * u * std::abs(should(n, h, i, c));
    });
    trial::require(what, difference(is, should, allowed));
  };
  // A weight, or a product with it, below the least normal may be 0: so much a term, and the result.
  const double least = 4 * std::numeric_limits<float>::min();
  const double lost = least * std::max(1.0, 2 * b);
  compare("dq", got.query, want.query, [&](index, index, index) {
    return scale * (pair + sum(keys) * 2 * b + keys * lost) * oracle::largest(k) + least;
  });
  compare("dk", got.key, want.key, [&](index n, index h, index j) {
    return scale * ((pair + sum(rows) * 2 * b) * weight(n, h, j) + rows * lost) *
               oracle::largest(q) +
           least;
  });
  compare("dv", got.value, want.value, [&](index n, index h, index j) {
    return ((2 * e + 8 * u + sum(rows)) * weight(n, h, j) + rows * least) *
               oracle::largest(d_out64) / kept +
           least;
  });
}

}  // namespace soak
