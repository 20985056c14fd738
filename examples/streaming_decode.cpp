// SPDX-License-Identifier: MIT
// Constant-memory streaming: a recurrence decodes token after token, however long the text.
//
//   streaming_decode [--tokens 1000000]
//
// The whole past is one state of heads x 64 x 64 numbers. Halfway through it is saved as plain
// bytes, as a program would before it stops, and a fresh one goes on from them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <heed/linear.hpp>
#include <heed/parallel.hpp>
#include <vector>

namespace {

constexpr heed::index heads = 4, dim = 64;

/// One token's query, key, value, gate and strength, as a model would make them.
struct token {
  heed::tensor<float, 4> q{{1, heads, 1, dim}}, k{{1, heads, 1, dim}}, v{{1, heads, 1, dim}};
  heed::tensor<float, 3> gate{{1, heads, 1}}, beta{{1, heads, 1}};

  void make(heed::index t) {
    const auto x = static_cast<float>(t);
    for (heed::index i = 0; i < heads * dim; ++i) {
      const auto c = static_cast<float>(i);
      q.data()[i] = std::sin(0.01F * x + c);
      k.data()[i] = std::cos(0.37F * x + 1.7F * c) / 8.0F;  // about unit length
      v.data()[i] = std::sin(0.11F * x * c);
    }
    for (heed::index h = 0; h < heads; ++h) {
      gate.data()[h] = -0.001F * static_cast<float>(1 + h);
      beta.data()[h] = 0.5F;
    }
  }
};

}  // namespace

int main(int argc, char** argv) {
  heed::index tokens = 20'000;
  CLI::App app("Constant-memory decode of a long stream");
  app.add_option("--tokens", tokens, "how many tokens")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);

  heed::serial_executor exec;
  heed::tensor<float, 4> state({1, heads, dim, dim});
  heed::tensor<float, 4> out({1, heads, 1, dim});
  heed::workspace scratch;
  token now;
  const auto start = std::chrono::steady_clock::now();
  for (heed::index t = 0; t < tokens; ++t) {
    now.make(t);
    heed::gated_delta_attention_into(exec, out, now.q, now.k, now.v, now.gate, now.beta, state,
                                     heed::recurrence_options{.scratch = &scratch});
    if (t == tokens / 2) {
      // Saved, lost, restored.
      std::vector<unsigned char> bytes(static_cast<std::size_t>(state.size()) * sizeof(float));
      std::memcpy(bytes.data(), state.data(), bytes.size());
      state = heed::tensor<float, 4>({1, heads, dim, dim});
      std::memcpy(state.data(), bytes.data(), bytes.size());
    }
    if ((t + 1) % 10'000 == 0 || t + 1 == tokens) {
      const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
      std::fprintf(stderr, "\r%td of %td tokens, %.0f a second, state %zu KiB", t + 1, tokens,
                   static_cast<double>(t + 1) / passed.count(),
                   static_cast<std::size_t>(state.size()) * sizeof(float) / 1024);
    }
  }
  std::fprintf(stderr, "\n");

  float largest = 0;
  for (heed::index i = 0; i < out.size(); ++i) {
    largest = std::max(largest, std::abs(out.data()[i]));
  }
  std::printf("after %td tokens the largest output is %.3f\n", tokens,
              static_cast<double>(largest));
  return std::isfinite(largest) ? 0 : 1;
}
