// SPDX-License-Identifier: MIT
// Automatic differentiation over heed: a tape of forty lines, on which attention is one operation.
//
// heed's forward and backward passes are plain functions. A tape, or a framework with tensors of
// its own, registers the pair: the forward call now, the backward call for later. Here a block
//
//   loss = sum (x + attention(x wq, x wk, x wv) wo)^2 / 2
//
// is differentiated by all its weights, checked against finite differences, and descended.
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <heed/attention.hpp>
#include <heed/parallel.hpp>
#include <heed/score.hpp>
#include <heed/tensor.hpp>
#include <memory>
#include <utility>
#include <vector>

using matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// ---- the tape -----------------------------------------------------------------------------------
struct node {
  matrix value, gradient;
};
using variable = std::shared_ptr<node>;

variable make(const matrix& value) {
  return std::make_shared<node>(node{value, matrix::Zero(value.rows(), value.cols())});
}

class tape {
 public:
  /// Notes how the gradient of `result` goes back to what it was made of.
  variable note(const matrix& value, std::function<void(const matrix&)> back) {
    variable result = make(value);
    steps_.push_back([result, back = std::move(back)] { back(result->gradient); });
    return result;
  }
  /// Gradients of the sum of squares of `last`, halved, in all variables before it.
  double differentiate(const variable& last) {
    last->gradient = last->value;
    for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) (*step)();
    return last->value.squaredNorm() / 2;
  }

 private:
  std::vector<std::function<void()>> steps_;
};

variable product(tape& t, const variable& a, const variable& b) {
  return t.note(a->value * b->value, [=](const matrix& d) {
    a->gradient += d * b->value.transpose();
    b->gradient += a->value.transpose() * d;
  });
}

variable sum(tape& t, const variable& a, const variable& b) {
  return t.note(a->value + b->value, [=](const matrix& d) {
    a->gradient += d;
    b->gradient += d;
  });
}

// ---- heed on it ---------------------------------------------------------------------------------
// Packed projections, tokens x (heads channels). Modifiers are copied for the way back.
template <class... M>
variable attention(tape& t, const variable& q, const variable& k, const variable& v,
                   heed::index heads, const M&... modifiers) {
  matrix out(q->value.rows(), v->value.cols());
  matrix lse(heads, q->value.rows());
  const auto split = [heads](auto& x) { return heed::split_heads(x, heads); };
  heed::attention_into(heed::into(split(out), lse), split(q->value), split(k->value),
                       split(v->value), {}, modifiers...);
  return t.note(out, [=](const matrix& d) mutable {
    matrix dq(q->value.rows(), q->value.cols());
    matrix dk(k->value.rows(), k->value.cols());
    matrix dv(v->value.rows(), v->value.cols());
    heed::attention_backward_into(heed::gradients(split(dq), split(dk), split(dv)), split(q->value),
                                  split(k->value), split(v->value), heed::into(split(out), lse),
                                  split(d), {}, modifiers...);
    q->gradient += dq;
    k->gradient += dk;
    v->gradient += dv;
  });
}

struct block {
  variable wq, wk, wv, wo;

  /// The loss; with `descend`, a step down its gradient.
  [[nodiscard]] double loss(const variable& x, double descend = 0) const {
    tape t;
    for (const variable& w : weights()) w->gradient.setZero();
    const auto mixed = attention(t, product(t, x, wq), product(t, x, wk), product(t, x, wv), 2,
                                 heed::causal(), heed::softcap(5), [](auto s, heed::position p) {
                                   return s - 0.1 * static_cast<double>(p.query - p.key);
                                 });
    const double result = t.differentiate(sum(t, x, product(t, mixed, wo)));
    for (const variable& w : weights()) w->value -= descend * w->gradient;
    return result;
  }
  [[nodiscard]] std::vector<variable> weights() const { return {wq, wk, wv, wo}; }
};

int main() {
  const auto numbers = [](Eigen::Index rows, Eigen::Index columns, double seed) {
    return make(matrix::NullaryExpr(rows, columns, [=](Eigen::Index i, Eigen::Index j) {
      return std::sin(seed + static_cast<double>(7 * i + 3 * j));
    }));
  };
  const variable x = numbers(12, 8, 0.3);
  const block b{numbers(8, 8, 1), numbers(8, 8, 2), numbers(8, 8, 3), numbers(8, 8, 4)};
  const double first = b.loss(x);

  // Differences are off by step^2 of the third derivative and by eps / step of the loss.
  double worst = 0;
  for (const variable& w : b.weights()) {
    const matrix gradient = w->gradient;
    for (Eigen::Index i = 0; i < w->value.size(); ++i) {
      double& number = w->value.data()[i];
      const double before = number, step = 1e-5;
      number = before + step;
      const double up = b.loss(x);
      number = before - step;
      const double down = b.loss(x);
      number = before;
      const double want = (up - down) / (2 * step);
      worst = std::max(worst, std::abs(gradient.data()[i] - want) / (1 + std::abs(want)));
    }
    (void)b.loss(x);  // the gradients of the weights as they were
  }
  std::printf("largest error against differences: %.1e\n", worst);

  double last = first;
  for (int step = 0; step < 50; ++step) last = b.loss(x, 1e-3);
  std::printf("loss: %.3f at first, %.3f after fifty steps\n", first, last);
  return worst < 1e-6 && last < first / 2 ? 0 : 1;
}
