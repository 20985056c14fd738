// SPDX-License-Identifier: MIT
// The decoder of llama.hpp with its gradient: attention forward and backward by heed, the rest
// plain Eigen. One sequence at a time; rows are tokens.
//
//   loss = sum_t -log softmax(logits_t)[next token]
//
// All weights are one vector in the order of the checkpoint, and so are gradients: an optimiser is
// a loop over numbers, and a checkpoint is the vector.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <heed/attention.hpp>
#include <heed/parallel.hpp>
#include <heed/rotary.hpp>
#include <heed/tensor.hpp>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.hpp"

namespace llama {

/// Aligned: where a row begins elsewhere, Eigen adds up its columns in another order, so that the last
/// bits would depend on what the heap gives.
using numbers = std::vector<float, Eigen::aligned_allocator<float>>;

/// The matrices inside a vector of weights (or of gradients), each out x in.
struct parameters {
  using map = Eigen::Map<matrix>;
  struct layer {
    map attention_norm, wq, wk, wv, wo, feed_forward_norm, w1, w2, w3;
  };

  parameters(const shape& s, numbers& all)
      : next_(all.data()), embedding(take(s.vocabulary, s.dim)), final_norm(nullptr, 0, 0) {
    // The file has a kind of matrix for all layers, then the next kind.
    const auto kind = [&](index rows, index columns) {
      float* const first = next_;
      next_ += s.layers * rows * columns;
      return [=](index l) { return map(first + l * rows * columns, rows, columns); };
    };
    const auto an = kind(1, s.dim);
    const auto wq = kind(s.dim, s.dim);
    const auto wk = kind(s.kv_dim(), s.dim);
    const auto wv = kind(s.kv_dim(), s.dim);
    const auto wo = kind(s.dim, s.dim);
    const auto fn = kind(1, s.dim);
    const auto w1 = kind(s.hidden, s.dim);
    const auto w2 = kind(s.dim, s.hidden);
    const auto w3 = kind(s.hidden, s.dim);
    for (index l = 0; l < s.layers; ++l) {
      layers.push_back({an(l), wq(l), wk(l), wv(l), wo(l), fn(l), w1(l), w2(l), w3(l)});
    }
    new (&final_norm) map(take(1, s.dim));
  }

  /// How many numbers are learned: those before the tables at the end of the file.
  static std::size_t count(const shape& s) {
    return static_cast<std::size_t>(s.parameters() - s.context * s.head_dim());
  }

 private:
  float* next_;
  map take(index rows, index columns) {
    float* const at = next_;
    next_ += rows * columns;
    return {at, rows, columns};
  }

 public:
  map embedding;
  std::vector<layer> layers;
  map final_norm;
};

/// A normal number from two draws of 53 bits: the same on every platform.
inline double normal(std::mt19937_64& random) {
  const auto uniform = [&] { return (static_cast<double>(random() >> 11U) + 0.5) * 0x1p-53; };
  const double radius = std::sqrt(-2 * std::log(uniform()));
  return radius * std::cos(2 * 3.14159265358979323846 * uniform());
}

/// Normal with deviation 0.02, less where a layer adds to the states; gains are 1.
inline numbers first_weights(const shape& s, std::uint64_t seed) {
  numbers all(parameters::count(s));
  std::mt19937_64 random(seed);
  for (float& w : all) w = static_cast<float>(0.02 * normal(random));
  parameters p(s, all);
  p.final_norm.setOnes();
  for (auto& layer : p.layers) {
    layer.attention_norm.setOnes();
    layer.feed_forward_norm.setOnes();
    layer.wo /= std::sqrt(2 * static_cast<float>(s.layers));
    layer.w2 /= std::sqrt(2 * static_cast<float>(s.layers));
  }
  return all;
}

/// One sequence forward and backward. A thread has one of its own and keeps it.
class sequence {
 public:
  explicit sequence(const shape& s)
      : shape_(s),
        layers_(static_cast<std::size_t>(s.layers)),
        rotary_(heed::make_rotary_tables<float>(
            heed::rotary_embedding(heed::rotary_layout::interleaved, s.head_dim()), s.context)),
        back_sin_(rotary_.sin) {
    for (index i = 0; i < back_sin_.size(); ++i) back_sin_.data()[i] *= -1;
  }

  /// The loss of predicting tokens[1..] from those before. With `gradient`, its gradient times
  /// `factor` is added there.
  double run(const parameters& w, std::span<const int> tokens, parameters* gradient = nullptr,
             float factor = 1) {
    const auto n = static_cast<index>(tokens.size()) - 1;
    if (n > shape_.context) throw std::invalid_argument("a sequence longer than the context");
    x_.resize(n, shape_.dim);
    for (index t = 0; t < n; ++t) x_.row(t) = w.embedding.row(id(tokens, t));
    for (std::size_t l = 0; l < layers_.size(); ++l) forward(w.layers[l], layers_[l]);
    normalise(x_, w.final_norm, last_);
    logits_.noalias() = last_.out * w.embedding.transpose();

    double loss = 0;
    for (index t = 0; t < n; ++t) {
      auto row = logits_.row(t).array();
      const float highest = row.maxCoeff();
      const float target = row[id(tokens, t + 1)];
      row = (row - highest).exp();
      const float sum = row.sum();
      loss += double{std::log(sum)} + double{highest} - double{target};
      row *= factor / sum;  // the gradient of the loss: softmax - [the next token]
      row[id(tokens, t + 1)] -= factor;
    }
    if (gradient != nullptr) backward(w, tokens, *gradient);
    return loss;
  }

 private:
  /// RMS normalisation of x, and what its gradient needs.
  struct normalisation {
    matrix x, out;
    Eigen::ArrayXf scale;
  };
  struct layer_states {
    normalisation before_attention, before_feed_forward;
    matrix q, k, v, attended, lse, gate, up, inner;
  };

  static index id(std::span<const int> tokens, index t) {
    return tokens[static_cast<std::size_t>(t)];
  }

  static void normalise(const matrix& x, const parameters::map& gain, normalisation& s) {
    s.x = x;
    s.scale =
        (x.rowwise().squaredNorm().array() / static_cast<float>(x.cols()) + 1e-5F).sqrt().inverse();
    s.out = s.scale.matrix().asDiagonal() * x * gain.row(0).asDiagonal();
  }

  /// out = gain x r, r = 1 / rms:  dx = r (gain d - x r^2 mean(gain d x)), added to dx_.
  void normalise_backward(const matrix& d, const parameters::map& gain, parameters::map& d_gain,
                          const normalisation& s) {
    const auto r = s.scale.matrix().asDiagonal();
    d_gain.row(0) += d.cwiseProduct(r * s.x).colwise().sum();
    const matrix scaled = d * gain.row(0).asDiagonal();
    const Eigen::ArrayXf mean = scaled.cwiseProduct(s.x).rowwise().mean().array();
    dx_ += r * scaled;
    dx_ -= (s.scale.cube() * mean).matrix().asDiagonal() * s.x;
  }

  void forward(const parameters::layer& w, layer_states& s) {
    normalise(x_, w.attention_norm, s.before_attention);
    const matrix& h = s.before_attention.out;
    s.q.noalias() = h * w.wq.transpose();
    s.k.noalias() = h * w.wk.transpose();
    s.v.noalias() = h * w.wv.transpose();
    rotate(s.q, shape_.heads, rotary_.sin);
    rotate(s.k, shape_.kv_heads, rotary_.sin);
    s.attended.resize(x_.rows(), shape_.dim);
    s.lse.resize(shape_.heads, x_.rows());
    heed::attention_into(one_thread_, heed::into(query_heads(s.attended), s.lse), query_heads(s.q),
                         key_heads(s.k), key_heads(s.v), options(), heed::causal());
    x_.noalias() += s.attended * w.wo.transpose();

    normalise(x_, w.feed_forward_norm, s.before_feed_forward);
    const matrix& g = s.before_feed_forward.out;
    s.gate.noalias() = g * w.w1.transpose();
    s.up.noalias() = g * w.w3.transpose();
    s.inner = s.gate.array() / (1 + (-s.gate.array()).exp()) * s.up.array();
    x_.noalias() += s.inner * w.w2.transpose();
  }

  /// logits_ holds the gradient of the logits by now.
  void backward(const parameters& w, std::span<const int> tokens, parameters& g) {
    g.embedding.noalias() += logits_.transpose() * last_.out;
    dx_.setZero(x_.rows(), shape_.dim);
    normalise_backward(logits_ * w.embedding, w.final_norm, g.final_norm, last_);
    for (std::size_t l = layers_.size(); l-- > 0;) backward(w.layers[l], layers_[l], g.layers[l]);
    for (index t = 0; t < dx_.rows(); ++t) g.embedding.row(id(tokens, t)) += dx_.row(t);
  }

  /// dx_ is the gradient of what the layer gives, then of what it takes.
  void backward(const parameters::layer& w, layer_states& s, parameters::layer& g) {
    // x += w2 (silu(w1 h) * w3 h)
    const matrix& f = s.before_feed_forward.out;
    g.w2.noalias() += dx_.transpose() * s.inner;
    const matrix d_inner = dx_ * w.w2;
    const Eigen::ArrayXXf sigmoid = (1 + (-s.gate.array()).exp()).inverse();
    const matrix d_up = d_inner.array() * sigmoid * s.gate.array();
    const matrix d_gate =
        d_inner.array() * s.up.array() * sigmoid * (1 + s.gate.array() * (1 - sigmoid));
    g.w1.noalias() += d_gate.transpose() * f;
    g.w3.noalias() += d_up.transpose() * f;
    dh_.noalias() = d_gate * w.w1;
    dh_.noalias() += d_up * w.w3;
    normalise_backward(dh_, w.feed_forward_norm, g.feed_forward_norm, s.before_feed_forward);

    // x += wo attention(rope(wq h), rope(wk h), wv h)
    const matrix& h = s.before_attention.out;
    g.wo.noalias() += dx_.transpose() * s.attended;
    matrix d_attended = dx_ * w.wo;
    dq_.resize(s.q.rows(), s.q.cols());
    dk_.resize(s.k.rows(), s.k.cols());
    dv_.resize(s.v.rows(), s.v.cols());
    heed::attention_backward_into(one_thread_,
                                  heed::gradients(query_heads(dq_), key_heads(dk_), key_heads(dv_)),
                                  query_heads(s.q), key_heads(s.k), key_heads(s.v),
                                  heed::into(query_heads(s.attended), s.lse),
                                  query_heads(d_attended), options(), heed::causal());
    rotate(dq_, shape_.heads, back_sin_);  // a rotation's gradient is the rotation back
    rotate(dk_, shape_.kv_heads, back_sin_);
    g.wq.noalias() += dq_.transpose() * h;
    g.wk.noalias() += dk_.transpose() * h;
    g.wv.noalias() += dv_.transpose() * h;
    dh_.noalias() = dq_ * w.wq;
    dh_.noalias() += dk_ * w.wk;
    dh_.noalias() += dv_ * w.wv;
    normalise_backward(dh_, w.attention_norm, g.attention_norm, s.before_attention);
  }

  template <class Sin>
  void rotate(matrix& x, index heads, const Sin& sin) const {
    heed::apply_rotary(heed::split_heads(x, heads), heed::rotary_layout::interleaved, rotary_.cos,
                       sin);
  }
  /// As heads x tokens x channels.
  [[nodiscard]] heed::view<float, 3> query_heads(matrix& x) const {
    return heed::split_heads(x, shape_.heads);
  }
  [[nodiscard]] heed::view<float, 3> key_heads(matrix& x) const {
    return heed::split_heads(x, shape_.kv_heads);
  }
  [[nodiscard]] heed::attention_options options() { return {.scratch = &scratch_}; }

  shape shape_;
  std::vector<layer_states> layers_;
  normalisation last_;
  matrix x_, logits_, dx_, dh_, dq_, dk_, dv_;
  heed::rotary_tables<float> rotary_;
  decltype(heed::rotary_tables<float>::sin) back_sin_;
  heed::serial_executor one_thread_;
  heed::workspace scratch_;
};

/// Writes what `llama::model` reads. The tables at the end of the format are left 0: nobody reads
/// them.
inline void save_model(const std::string& path, const shape& s, const numbers& all) {
  std::ofstream file(path, std::ios::binary);
  for (const index n : {s.dim, s.hidden, s.layers, s.heads, s.kv_heads, s.vocabulary, s.context}) {
    const auto header = static_cast<std::int32_t>(n);
    file.write(reinterpret_cast<const char*>(&header), sizeof header);
  }
  const numbers tables(static_cast<std::size_t>(s.context * s.head_dim()));
  for (const numbers* part : {&all, &tables}) {
    file.write(reinterpret_cast<const char*>(part->data()),
               static_cast<std::streamsize>(part->size() * sizeof(float)));
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace llama
