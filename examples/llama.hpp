// SPDX-License-Identifier: MIT
// A decoder of the Llama architecture, as small as it can be read: weights from a llama2.c
// checkpoint (version 0), attention, cache and rotary embedding by heed, matrix products by Eigen.
//
//   x = embedding[token]
//   per layer:  h = rms(x);  x += Wo attention(rope(Wq h), rope(Wk h), Wv h)
//               h = rms(x);  x += W2 (silu(W1 h) * W3 h)
//   logits = classifier rms(x)
//
// Touvron et al. 2023, arXiv 2302.13971 and 2307.09288. Rows are tokens throughout.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <heed/attention.hpp>
#include <heed/cache.hpp>
#include <heed/rotary.hpp>
#include <heed/tensor.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace llama {

using heed::index;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using weights = Eigen::Map<const matrix>;  // out x in, inside the mapped file

/// The checkpoint's header: seven 32-bit integers.
struct shape {
  index dim, hidden, layers, heads, kv_heads, vocabulary, context;
  bool shared_classifier;  // the classifier is the token embedding

  static constexpr std::size_t header_bytes = 7 * sizeof(std::int32_t);
  [[nodiscard]] index head_dim() const { return dim / heads; }
  [[nodiscard]] index kv_dim() const { return kv_heads * head_dim(); }
  [[nodiscard]] index parameters() const {
    const index attention = 2 * dim * dim + 2 * dim * kv_dim();
    const index feed_forward = 3 * dim * hidden;
    return (shared_classifier ? 1 : 2) * vocabulary * dim +
           layers * (attention + feed_forward + 2 * dim) + dim + context * head_dim();
  }
};

inline shape read_shape(const std::string& path) {
  const heed::mapped_file<std::int32_t> file(path);
  if (file.size() < 7) throw std::runtime_error(path + " is too short for a checkpoint");
  const std::int32_t* h = file.data();
  const shape s{h[0], h[1], h[2], h[3], h[4], std::abs(index{h[5]}), h[6], h[5] > 0};
  for (const index n : {s.dim, s.hidden, s.layers, s.heads, s.kv_heads, s.vocabulary, s.context}) {
    if (n <= 0) throw std::runtime_error(path + " is no llama2.c checkpoint");
  }
  if (s.dim % s.heads != 0 || s.heads % s.kv_heads != 0 || s.parameters() + 7 != file.size()) {
    throw std::runtime_error(path + " is no llama2.c checkpoint: its header asks for " +
                             std::to_string(s.parameters() + 7) + " numbers, it has " +
                             std::to_string(file.size()));
  }
  return s;
}

/// What the model remembers of a text: the keys and values of each layer.
using memory = std::vector<heed::contiguous_cache<float>>;

class model {
 public:
  // The members stand in the order of the file, so that initialising them reads it.
  explicit model(const std::string& path)
      : shape_(read_shape(path)),
        file_(path, shape::header_bytes),
        next_(file_.data()),
        embedding_(take(shape_.vocabulary, shape_.dim)),
        attention_norm_(take_layers(1, shape_.dim)),
        wq_(take_layers(shape_.dim, shape_.dim)),
        wk_(take_layers(shape_.kv_dim(), shape_.dim)),
        wv_(take_layers(shape_.kv_dim(), shape_.dim)),
        wo_(take_layers(shape_.dim, shape_.dim)),
        feed_forward_norm_(take_layers(1, shape_.dim)),
        w1_(take_layers(shape_.hidden, shape_.dim)),
        w2_(take_layers(shape_.dim, shape_.hidden)),
        w3_(take_layers(shape_.hidden, shape_.dim)),
        final_norm_(take(1, shape_.dim)),
        old_rotary_tables_(take(shape_.context, shape_.head_dim())),
        classifier_(shape_.shared_classifier ? embedding_.data() : next_, shape_.vocabulary,
                    shape_.dim),
        rotary_(heed::make_rotary_tables<float>(
            heed::rotary_embedding(heed::rotary_layout::interleaved, shape_.head_dim()),
            shape_.context)) {}
  model(const model&) = delete;
  model& operator=(const model&) = delete;

  [[nodiscard]] const llama::shape& shape() const { return shape_; }

  /// Of caches that `make(layer)` makes, of any kind.
  template <class Make>
  [[nodiscard]] std::vector<std::invoke_result_t<Make, index>> blank_memory(
      const Make& make) const {
    std::vector<std::invoke_result_t<Make, index>> m;
    for (index l = 0; l < shape_.layers; ++l) m.push_back(make(l));
    return m;
  }
  [[nodiscard]] memory blank_memory() const {
    return blank_memory([this](index) { return heed::contiguous_cache<float>(extents()); });
  }
  /// Of one layer's keys and values for a whole context.
  [[nodiscard]] heed::cache_extents extents() const {
    return {.batch = 1,
            .kv_heads = shape_.kv_heads,
            .capacity = shape_.context,
            .head_dim = shape_.head_dim()};
  }

  /// Is shown each layer's queries and keys as attention sees them, tokens x (heads * head dim).
  using observer = std::function<void(std::size_t layer, const matrix& q, const matrix& k)>;

  /// Reads tokens that follow those in memory, one or many at once; their states, tokens x dim.
  template <class Cache>
  [[nodiscard]] matrix read(std::span<const int> tokens, std::vector<Cache>& past,
                            const observer& show = {}) const {
    matrix x(static_cast<index>(tokens.size()), shape_.dim);
    for (index t = 0; t < x.rows(); ++t) {
      x.row(t) = embedding_.row(tokens[static_cast<std::size_t>(t)]);
    }
    for (std::size_t l = 0; l < wq_.size(); ++l) {
      x += attend(normalised(x, attention_norm_[l]), l, past[l], show);
      const matrix h = normalised(x, feed_forward_norm_[l]);
      const Eigen::ArrayXXf gate = (h * w1_[l].transpose()).array();
      const matrix inner = gate / (1 + (-gate).exp()) * (h * w3_[l].transpose()).array();
      x.noalias() += inner * w2_[l].transpose();
    }
    return normalised(x, final_norm_);
  }

  /// Scores of the next token, one row a state.
  [[nodiscard]] matrix logits(const matrix& states) const {
    return states * classifier_.transpose();
  }

 private:
  /// One attention layer. New keys go into the cache, then every new query sees the whole cache up
  /// to itself: a prompt of many tokens and a single next token are the same call.
  template <class Cache>
  [[nodiscard]] matrix attend(const matrix& h, std::size_t l, Cache& cache,
                              const observer& show) const {
    matrix q = h * wq_[l].transpose();
    matrix k = h * wk_[l].transpose();
    const matrix v = h * wv_[l].transpose();
    const index position = tokens_read(cache);
    rotate(q, shape_.heads, position);
    rotate(k, shape_.kv_heads, position);
    if (show) show(l, q, k);
    cache.append(heed::split_heads(k, shape_.kv_heads), heed::split_heads(v, shape_.kv_heads));
    matrix out(h.rows(), shape_.dim);
    const heed::attention_options options{
        .scale = 1.0 / std::sqrt(static_cast<double>(shape_.head_dim()))};
    heed::decode_into(heed::split_heads(out, shape_.heads), heed::split_heads(q, shape_.heads),
                      cache, options, heed::causal());
    return out * wo_[l].transpose();
  }

  /// As many as it holds, or more where it forgets.
  template <class Cache>
  static index tokens_read(const Cache& cache) {
    if constexpr (requires { cache.seen(); }) {
      return cache.seen();
    } else {
      return cache.length(0);
    }
  }

  void rotate(matrix& x, index heads, index position) const {
    heed::apply_rotary(heed::split_heads(x, heads), heed::rotary_layout::interleaved, rotary_.cos,
                       rotary_.sin, position);
  }

  static matrix normalised(const matrix& x, const weights& gain) {
    const Eigen::ArrayXf scale =
        (x.rowwise().squaredNorm().array() / static_cast<float>(x.cols()) + 1e-5F).sqrt().inverse();
    return scale.matrix().asDiagonal() * x * gain.row(0).asDiagonal();
  }

  weights take(index rows, index columns) {
    const float* at = next_;
    next_ += rows * columns;
    return {at, rows, columns};
  }
  std::vector<weights> take_layers(index rows, index columns) {
    std::vector<weights> all;
    for (index l = 0; l < shape_.layers; ++l) all.push_back(take(rows, columns));
    return all;
  }

  llama::shape shape_;
  heed::mapped_file<float> file_;
  const float* next_;
  weights embedding_;
  std::vector<weights> attention_norm_, wq_, wk_, wv_, wo_, feed_forward_norm_, w1_, w2_, w3_;
  weights final_norm_;
  weights old_rotary_tables_;  // stored by older exporters; computed anew instead
  weights classifier_;
  heed::rotary_tables<float> rotary_;
};

}  // namespace llama
