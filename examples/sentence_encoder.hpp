// SPDX-License-Identifier: MIT
// A BERT encoder that turns texts into vectors, as small as it can be read: attention by heed, matrix
// products by Eigen.
//
//   x = norm(word[token] + position[place] + type[0])
//   per layer:  x = norm(x + Wo attention(Wq x, Wk x, Wv x))
//               x = norm(x + W2 gelu(W1 x))
//   vector = mean of x over the text's tokens, of unit length
//
// Devlin et al. 2018, arXiv 1810.04805; Reimers and Gurevych 2019, arXiv 1908.10084. Rows are tokens
// throughout. Texts of a batch lie one after the other, so that nothing is padded.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <fstream>
#include <heed/attention.hpp>
#include <heed/tensor.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <unsupported/Eigen/SpecialFunctions>
#include <utility>
#include <vector>

#include "safetensors.hpp"

namespace bert {

using heed::index;
using safetensors::matrix;
using token_ids = std::vector<int>;

/// What config.json says of the model.
struct shape {
  index width, inner, layers, heads, vocabulary, positions;
  float epsilon;  // of the layer norms
};

inline shape read_shape(const std::string& path) {
  std::ifstream text(path);
  if (!text) throw std::runtime_error("cannot open " + path);
  const auto config = nlohmann::json::parse(text, nullptr, false);
  if (!config.is_object()) throw std::runtime_error(path + " is no JSON object");
  const auto extent = [&](const char* name) {
    const auto n = config.value(name, index{0});
    if (n <= 0) throw std::runtime_error(path + " has no positive " + name);
    return n;
  };
  const shape s{extent("hidden_size"),
                extent("intermediate_size"),
                extent("num_hidden_layers"),
                extent("num_attention_heads"),
                extent("vocab_size"),
                extent("max_position_embeddings"),
                config.value("layer_norm_eps", 1e-12F)};
  if (s.width % s.heads != 0) {
    throw std::runtime_error(path + ": " + std::to_string(s.width) + " channels, " +
                             std::to_string(s.heads) + " heads");
  }
  if (config.value("hidden_act", std::string("gelu")) != "gelu") {
    throw std::runtime_error(path + ": the activation is not gelu");
  }
  return s;
}

/// T is what weights, queries, keys and values are stored in; sums are float.
template <class T>
class sentence_encoder {
 public:
  /// `folder` has config.json and model.safetensors, as published.
  explicit sentence_encoder(const std::string& folder)
      : shape_(read_shape(folder + "/config.json")) {
    const safetensors::file file(folder + "/model.safetensors");
    const std::string name = file.contains("embeddings.LayerNorm.weight") ? "" : "bert.";
    const std::string embeddings = name + "embeddings.";
    words_ = file.load(embeddings + "word_embeddings.weight", shape_.vocabulary, shape_.width)
                 .template cast<T>();
    places_ = file.load(embeddings + "position_embeddings.weight", shape_.positions, shape_.width);
    places_.rowwise() +=
        file.load(embeddings + "token_type_embeddings.weight", 2, shape_.width).row(0);
    norm_ = read_norm(file, embeddings + "LayerNorm");
    for (index l = 0; l < shape_.layers; ++l) {
      const std::string at = name + "encoder.layer." + std::to_string(l) + ".";
      const auto read = [&](const char* part, index out, index in) {
        return linear{file.load(at + part + ".weight", out, in).template cast<T>(),
                      file.load(at + part + ".bias", 1, out)};
      };
      layers_.push_back({read("attention.self.query", shape_.width, shape_.width),
                         read("attention.self.key", shape_.width, shape_.width),
                         read("attention.self.value", shape_.width, shape_.width),
                         read("attention.output.dense", shape_.width, shape_.width),
                         read("intermediate.dense", shape_.inner, shape_.width),
                         read("output.dense", shape_.width, shape_.inner),
                         read_norm(file, at + "attention.output.LayerNorm"),
                         read_norm(file, at + "output.LayerNorm")});
    }
  }

  [[nodiscard]] const bert::shape& shape() const { return shape_; }

  /// The vectors of texts, one a row. Consecutive texts share a batch until it has `batch_tokens`;
  /// batches run in parallel. The bits do not depend on the number of threads.
  template <class Executor>
  [[nodiscard]] matrix encode(Executor& threads, std::span<const token_ids> texts) const {
    std::vector<std::size_t> starts{0};
    std::size_t tokens = 0;
    for (std::size_t t = 0; t < texts.size(); ++t) {
      check(texts[t]);
      tokens += texts[t].size();
      if (tokens >= batch_tokens || t + 1 == texts.size()) {
        starts.push_back(t + 1);
        tokens = 0;
      }
    }
    matrix vectors(static_cast<index>(texts.size()), shape_.width);
    heed::for_each_task(threads, threads.concurrency(), static_cast<index>(starts.size()) - 1,
                        [&](index, index batch) {
                          const auto first = starts[static_cast<std::size_t>(batch)];
                          const auto last = starts[static_cast<std::size_t>(batch) + 1];
                          vectors.middleRows(static_cast<index>(first),
                                             static_cast<index>(last - first)) =
                              encode_batch(texts.subspan(first, last - first));
                        });
    return vectors;
  }

 private:
  static constexpr std::size_t batch_tokens = 256;
  using stored = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  struct linear {
    stored weight;  // out x in
    Eigen::RowVectorXf bias;

    [[nodiscard]] matrix operator()(const matrix& x) const {
      matrix y(x.rows(), weight.rows());
      if constexpr (std::same_as<T, float>) {
        y.noalias() = x * weight.transpose();
      } else {  // factors as they are stored, products summed in float
        const matrix factor = weight.template cast<float>();
        y.noalias() = rounded(x) * factor.transpose();
      }
      return y.rowwise() + bias;
    }
    static matrix rounded(const matrix& x) { return x.template cast<T>().template cast<float>(); }
  };
  struct norm {
    Eigen::RowVectorXf gain, bias;
  };
  struct layer {
    linear query, key, value, output, up, down;
    norm after_attention, after_feed_forward;
  };

  [[nodiscard]] norm read_norm(const safetensors::file& file, const std::string& name) const {
    return {file.load(name + ".weight", 1, shape_.width),
            file.load(name + ".bias", 1, shape_.width)};
  }

  void check(const token_ids& ids) const {
    const auto out_of_range = [&](int id) { return id < 0 || id >= shape_.vocabulary; };
    if (ids.empty() || static_cast<index>(ids.size()) > shape_.positions) {
      throw std::runtime_error("a text has " + std::to_string(ids.size()) +
                               " tokens, the model reads 1 to " + std::to_string(shape_.positions));
    }
    if (std::any_of(ids.begin(), ids.end(), out_of_range)) {
      throw std::runtime_error("a token is not among the model's " +
                               std::to_string(shape_.vocabulary));
    }
  }

  [[nodiscard]] matrix encode_batch(std::span<const token_ids> texts) const {
    std::vector<index> starts{0};
    for (const auto& ids : texts) starts.push_back(starts.back() + static_cast<index>(ids.size()));
    matrix x(starts.back(), shape_.width);
    for (std::size_t t = 0; t < texts.size(); ++t) {
      for (std::size_t i = 0; i < texts[t].size(); ++i) {
        x.row(starts[t] + static_cast<index>(i)) =
            words_.row(texts[t][i]).template cast<float>() + places_.row(static_cast<index>(i));
      }
    }
    normalise(x, norm_);
    for (const layer& l : layers_) {
      x += l.output(attend(x, l, starts));
      normalise(x, l.after_attention);
      x += l.down(gelu(l.up(x)));
      normalise(x, l.after_feed_forward);
    }
    matrix vectors(static_cast<index>(texts.size()), shape_.width);
    for (index t = 0; t < vectors.rows(); ++t) {
      const index first = starts[static_cast<std::size_t>(t)];
      const index tokens = starts[static_cast<std::size_t>(t) + 1] - first;
      vectors.row(t) = x.middleRows(first, tokens).colwise().mean().normalized();
    }
    return vectors;
  }

  /// Every token of a text attends to all tokens of that text.
  [[nodiscard]] matrix attend(const matrix& x, const layer& l,
                              std::span<const index> starts) const {
    const stored q = l.query(x).template cast<T>();
    const stored k = l.key(x).template cast<T>();
    const stored v = l.value(x).template cast<T>();
    stored out(x.rows(), shape_.width);
    heed::serial_executor here;
    heed::ragged_attention_into(
        here, heed::split_heads(out, shape_.heads), heed::split_heads(q, shape_.heads),
        heed::split_heads(k, shape_.heads), heed::split_heads(v, shape_.heads), starts, starts);
    return out.template cast<float>();
  }

  void normalise(matrix& x, const norm& to) const {
    const Eigen::VectorXf mean = x.rowwise().mean();
    x.colwise() -= mean;
    const Eigen::VectorXf scale =
        (x.rowwise().squaredNorm().array() / static_cast<float>(x.cols()) + shape_.epsilon).rsqrt();
    x = scale.asDiagonal() * x * to.gain.asDiagonal();
    x.rowwise() += to.bias;
  }

  /// x Phi(x), Phi the normal distribution: half x (1 + erf(x / sqrt 2)).
  static matrix gelu(const matrix& x) {
    return x.array() * (0.5F + 0.5F * (x.array() * std::sqrt(0.5F)).erf());
  }

  bert::shape shape_;
  stored words_;
  matrix places_;  // with the type of all tokens, which is 0
  norm norm_;
  std::vector<layer> layers_;
};

}  // namespace bert
