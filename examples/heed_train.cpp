// SPDX-License-Identifier: MIT
// Trains a small character-level transformer and saves it for heed_story.
//
//   heed_train                                  # about two minutes: alice.bin, .tok, .svg
//   heed_story --model alice.bin --tokenizer alice.tok --prompt "Alice"
//
// The model and its gradient are in transformer.hpp. A sequence is a task with gradients of its
// own, which are summed in order: the same bits for any number of threads. Results go to stdout,
// progress and speed to stderr.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <exception>
#include <heed/parallel.hpp>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "loss_curve.hpp"
#include "tokenizer.hpp"
#include "training_text.hpp"
#include "transformer.hpp"

#ifndef HEED_EXAMPLE_DATA
#define HEED_EXAMPLE_DATA "examples/data"
#endif

namespace {

using llama::index;

struct settings {
  std::string text = HEED_EXAMPLE_DATA "/alice.txt";
  std::string out = "alice";
  int steps = 1200;
  int batch = 8;
  double rate = 4e-3;
  std::uint64_t seed = 1;
  index threads = heed::thread_pool::hardware_threads();
  llama::shape shape{64, 112, 3, 4, 2, llama::byte_vocabulary, 256, true};
};

/// Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).
class adamw {
 public:
  explicit adamw(std::size_t count) : mean_(count), square_(count) {}

  void step(llama::numbers& w, const llama::numbers& gradient, double rate, float factor) {
    beta_mean_power_ *= beta_mean;
    beta_square_power_ *= beta_square;
    const auto step =
        static_cast<float>(rate * std::sqrt(1 - beta_square_power_) / (1 - beta_mean_power_));
    const auto keep = static_cast<float>(1 - rate * decay);
    for (std::size_t i = 0; i < w.size(); ++i) {
      const float g = factor * gradient[i];
      mean_[i] += static_cast<float>(1 - beta_mean) * (g - mean_[i]);
      square_[i] += static_cast<float>(1 - beta_square) * (g * g - square_[i]);
      w[i] = keep * w[i] - step * mean_[i] / (std::sqrt(square_[i]) + 1e-8F);
    }
  }

 private:
  static constexpr double beta_mean = 0.9, beta_square = 0.98, decay = 0.02;
  llama::numbers mean_, square_;
  double beta_mean_power_ = 1, beta_square_power_ = 1;
};

/// The model, and a place for each sequence of a batch.
class trainer {
 public:
  explicit trainer(const settings& s)
      : settings_(s),
        pool_(s.threads),
        weights_(llama::first_weights(s.shape, s.seed)),
        optimiser_(weights_.size()),
        gradients_(static_cast<std::size_t>(s.batch), llama::numbers(weights_.size())),
        losses_(static_cast<std::size_t>(s.batch)) {
    for (index t = 0; t < pool_.concurrency(); ++t) sequences_.emplace_back(s.shape);
  }

  /// Mean loss in bits a token, before the step.
  double step(const std::vector<std::vector<int>>& batch, double rate) {
    const auto tokens = static_cast<double>(batch.size() * (batch[0].size() - 1));
    const auto factor = static_cast<float>(1 / tokens);
    llama::parameters w(settings_.shape, weights_);
    each(batch.size(), [&](llama::sequence& s, std::size_t i) {
      std::fill(gradients_[i].begin(), gradients_[i].end(), 0.0F);
      llama::parameters g(settings_.shape, gradients_[i]);
      losses_[i] = s.run(w, batch[i], &g, factor);
    });
    llama::numbers& sum = gradients_[0];
    for (std::size_t b = 1; b < batch.size(); ++b) {
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += gradients_[b][i];
    }
    double square = 0;
    for (const float g : sum) square += double{g} * double{g};
    // Gradients longer than 1 are cut to it.
    optimiser_.step(weights_, sum, rate, static_cast<float>(1 / std::max(1.0, std::sqrt(square))));
    return total(batch.size()) / tokens;
  }

  /// Mean loss in bits a token.
  double loss(const std::vector<std::vector<int>>& sequences) {
    losses_.resize(std::max(losses_.size(), sequences.size()));
    llama::parameters w(settings_.shape, weights_);
    each(sequences.size(),
         [&](llama::sequence& s, std::size_t i) { losses_[i] = s.run(w, sequences[i]); });
    return total(sequences.size()) /
           static_cast<double>(sequences.size() * (sequences[0].size() - 1));
  }

  [[nodiscard]] const llama::numbers& weights() const { return weights_; }

 private:
  template <class Task>
  void each(std::size_t count, const Task& task) {
    heed::for_each_task(
        pool_, pool_.concurrency(), static_cast<index>(count), [&](index worker, index i) {
          task(sequences_[static_cast<std::size_t>(worker)], static_cast<std::size_t>(i));
        });
  }
  [[nodiscard]] double total(std::size_t count) const {
    double nats = 0;
    for (std::size_t i = 0; i < count; ++i) nats += losses_[i];
    return nats / std::log(2.0);
  }

  settings settings_;
  heed::thread_pool pool_;
  llama::numbers weights_;
  adamw optimiser_;
  std::vector<llama::numbers> gradients_;
  std::vector<double> losses_;
  std::deque<llama::sequence> sequences_;  // one a thread
};

/// Up over the first steps, then down along half a cosine to a tenth.
double rate_at(int step, const settings& s) {
  const double warm = std::min(100.0, s.steps / 10.0);
  if (step < warm) return s.rate * (step + 1) / (warm + 1);
  const double part = (step - warm) / std::max(1.0, s.steps - warm);
  return s.rate * (0.1 + 0.45 * (1 + std::cos(3.14159265358979323846 * part)));
}

void train(const settings& s) {
  llama::save_byte_tokenizer(s.out + ".tok");
  const llama::tokenizer tokenizer(s.out + ".tok", llama::byte_vocabulary);
  const std::vector<int> tokens = tokenizer.encode(llama::read_text(s.text));
  const auto context = static_cast<std::size_t>(s.shape.context);
  const std::size_t held = std::max(tokens.size() / 20, context + 2);
  if (tokens.size() < 3 * held) throw std::runtime_error(s.text + " is too short");
  const std::span training = std::span(tokens).subspan(1, tokens.size() - held);
  const std::span held_out = std::span(tokens).last(held);
  const double unigram = llama::entropy_bits(training, 0);
  const double bigram = llama::entropy_bits(training, 1);
  std::printf("%s: %zu characters, of them %zu held out; %zu weights\n", s.text.c_str(),
              tokens.size(), held, llama::parameters::count(s.shape));
  std::printf("entropy of single characters %.3f bits, after one known character %.3f bits\n",
              unigram, bigram);

  std::mt19937_64 random(s.seed);
  const int space = tokenizer.encode(" ").back();
  const auto draw = [&](std::span<const int> from, int count) {
    std::vector<std::vector<int>> drawn;
    for (int i = 0; i < count; ++i) {
      drawn.push_back(llama::draw_sequence(from, space, context, random));
    }
    return drawn;
  };
  const auto test = draw(held_out, 16);

  trainer model(s);
  loss_curve curve;
  curve.add_level(unigram, "single characters");
  curve.add_level(bigram, "pairs of characters");
  const auto start = std::chrono::steady_clock::now();
  double sum = 0;
  int summed = 0;
  double held_loss = model.loss(test);
  for (int step = 0; step < s.steps; ++step) {
    sum += model.step(draw(training, s.batch), rate_at(step, s));
    ++summed;
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr,
                 "\rstep %d of %d: %.3f bits, held out %.3f; %.0f characters/s, %.0f s left ",
                 step + 1, s.steps, sum / summed, held_loss,
                 (step + 1.0) * s.batch * static_cast<double>(context) / seconds,
                 seconds / (step + 1) * (s.steps - step - 1));
    // The first step, then twenty points at equal distances.
    if (step == 0 || (step + 1) * 20 / s.steps != step * 20 / s.steps) {
      held_loss = model.loss(test);
      curve.add({step + 1, sum / summed, held_loss});
      std::fprintf(stderr, "\n");
      std::printf("step %d loss %.9f held out %.9f\n", step + 1, sum / summed, held_loss);
      std::fflush(stdout);
      sum = 0;
      summed = 0;
    }
  }
  llama::save_model(s.out + ".bin", s.shape, model.weights());
  curve.save(s.out + ".svg");
  std::printf("wrote %s.bin, %s.tok and %s.svg\n", s.out.c_str(), s.out.c_str(), s.out.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  settings s;
  CLI::App app("Trains a small character-level transformer, and saves it for heed_story.");
  app.add_option("--text", s.text, "what to learn")->capture_default_str();
  app.add_option("--out", s.out, "where to save, without an ending")->capture_default_str();
  app.add_option("--steps", s.steps, "batches")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--batch", s.batch, "sequences a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--rate", s.rate, "highest learning rate")->capture_default_str();
  app.add_option("--seed", s.seed, "of weights and sequences")->capture_default_str();
  app.add_option("--threads", s.threads, "threads; the result is the same")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--context", s.shape.context, "characters a sequence")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--layers", s.shape.layers)->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    train(s);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "heed_train: %s\n", error.what());
    return 1;
  }
}
