// SPDX-License-Identifier: MIT
// A method of the comparison: how it is called, and what the cost model says of it.
//
// All are causal self-attention of float heads, tokens x channels.
#pragma once

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "heed/core.hpp"
#include "heed/cost.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace wall {

using heed::index;
namespace cost = heed::cost;

struct settings {
  index min_n = 512;
  index max_n = 16'384;
  index head_dim = 64;
  index heads = 1;
  index threads = 1;
  index window = 512;
  index global = 128;  ///< tokens that all see, of the Longformer method
  double max_naive_bytes = 2.0 * 1024 * 1024 * 1024;
  double max_naive_seconds = 5;
  std::string output = "scaling.svg";
  bool plain = false;
};

/// Channels' states of a selective scan, as Mamba has them.
inline constexpr index scan_states = 16;

/// Queries, keys, values and output of the largest size; smaller ones are its first tokens. And
/// what recurrences take besides, made of these by every token's own rule. Memory is touched once,
/// here.
class problem {
 public:
  problem(index heads, index tokens, index head_dim)
      : q_({heads, tokens, head_dim}),
        k_(q_.extents()),
        v_(q_.extents()),
        out_(q_.extents()),
        channel_gate_(q_.extents()),
        step_(q_.extents()),
        write_({heads, tokens, scan_states}),
        read_(write_.extents()),
        gate_({heads, tokens}),
        strength_(gate_.extents()),
        rates_({head_dim, scan_states}) {
    std::mt19937 generator(1);
    std::normal_distribution<float> unit;
    for (auto* t : {&q_, &k_, &v_, &write_, &read_}) {
      for (index i = 0; i < t->size(); ++i) t->data()[i] = unit(generator);
    }
    for (index i = 0; i < q_.size(); ++i) {
      channel_gate_.data()[i] = -0.01F * static_cast<float>(1 + i % 7);
      step_.data()[i] = 0.01F * static_cast<float>(1 + i % 7);
    }
    // A delta rule replaces what its state holds for a key when strength times squared key is 1.
    for (index i = 0; i < gate_.size(); ++i) {
      gate_.data()[i] = -0.01F * static_cast<float>(1 + i % 7);
      float square = 1e-6F;
      const float* const key = k_.data() + i * head_dim;
      for (index c = 0; c < head_dim; ++c) square += key[c] * key[c];
      strength_.data()[i] = 1 / square;
    }
    for (index i = 0; i < rates_.size(); ++i) {
      rates_.data()[i] = -static_cast<float>(1 + i % scan_states);
    }
  }
  [[nodiscard]] auto q(index n) const { return first(q_, n); }
  [[nodiscard]] auto k(index n) const { return first(k_, n); }
  [[nodiscard]] auto v(index n) const { return first(v_, n); }
  [[nodiscard]] heed::view<float, 3> out(index n) { return heed::as_view(out_).slice(1, 0, n); }

  /// Log decays a token, and a channel; strengths of a delta rule.
  [[nodiscard]] auto gate(index n) const { return first(gate_, n); }
  [[nodiscard]] auto channel_gate(index n) const { return first(channel_gate_, n); }
  [[nodiscard]] auto strength(index n) const { return first(strength_, n); }
  /// Of a selective scan: time steps a channel, weights a token, rates a channel.
  [[nodiscard]] auto step(index n) const { return first(step_, n); }
  [[nodiscard]] auto write(index n) const { return first(write_, n); }
  [[nodiscard]] auto read(index n) const { return first(read_, n); }
  [[nodiscard]] heed::view<const float, 2> rates() const { return heed::as_view(rates_); }

 private:
  template <int R>
  static heed::view<const float, R> first(const heed::tensor<float, R>& t, index n) {
    return heed::as_view(t).slice(1, 0, n);
  }
  heed::tensor<float, 3> q_, k_, v_, out_, channel_gate_, step_, write_, read_;
  heed::tensor<float, 2> gate_, strength_, rates_;
};

struct method {
  std::string name;
  char letter = '?';          ///< in the terminal plot
  bool materialises = false;  ///< holds n x n scores: bounded by the naive limits
  std::function<void(problem&, index n, heed::workspace&)> run;
  std::function<std::vector<cost::work>(index n)> stages;  ///< that cannot overlap

  [[nodiscard]] cost::work total(index n) const {
    cost::work sum;
    for (const cost::work& w : stages(n)) sum += w;
    return sum;
  }
  /// The roofline's time. Where all that the method touches fits `cache` bytes, nothing is moved.
  [[nodiscard]] double predicted(const cost::roofline& machine, index n, double io_bytes,
                                 double cache) const {
    const bool cached = io_bytes + total(n).extra_memory <= cache;
    double seconds = 0;
    for (const cost::work& w : stages(n)) {
      seconds += cached ? machine.compute_seconds(w) : machine.seconds(w);
    }
    return seconds;
  }
};

/// The shape that the cost model sees, in all heads.
[[nodiscard]] inline cost::attention_shape shape_of(const settings& s, index n,
                                                    cost::band visible) {
  cost::attention_shape a = cost::self_attention(n, s.head_dim, visible);
  a.query_heads = a.kv_heads = s.heads;
  return a;
}

/// Each in a source file of its own, so that they compile side by side. `cache`: bytes of the
/// largest.
[[nodiscard]] std::vector<method> softmax_methods(const settings& s, heed::thread_pool& pool,
                                                  double cache);
[[nodiscard]] std::vector<method> linear_methods(const settings& s, heed::thread_pool& pool);

}  // namespace wall
