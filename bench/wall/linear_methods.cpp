// SPDX-License-Identifier: MIT
// The linear family in the comparison: kernelised, gated, a delta rule, a selective scan.
#include <algorithm>

#include "heed/linear.hpp"
#include "method.hpp"

namespace wall {
namespace {

/// Of a recurrence with a matrix state, in chunks; `numbers` a token and head are read beside
/// queries, keys and values.
cost::work chunked_recurrence(const settings& s, index n, cost::matrix_state_form form,
                              index numbers) {
  form.lanes = heed::simd::lanes<float>;
  form.workers = std::min(s.heads, s.threads);
  cost::work w = cost::matrix_state_chunked(shape_of(s, n, cost::causal()), form);
  w.bytes += static_cast<double>(s.heads * n * numbers * index{sizeof(float)});
  return w;
}

/// Multiplications and additions alone: exponentials are not FLOPs. Scratch is what the kernel
/// holds: a tile of 64 tokens of inputs, and the state.
cost::work scan_work(const settings& s, index n) {
  const auto numbers = static_cast<double>(s.heads * n * s.head_dim);
  const auto weights = static_cast<double>(2 * s.heads * n * scan_states);
  const index tile = std::min<index>(n, 64);
  const index held = 3 * tile * s.head_dim + 2 * tile * scan_states + 2 * scan_states * s.head_dim;
  return {5 * numbers * scan_states, (3 * numbers + weights) * sizeof(float),
          static_cast<double>(std::min(s.heads, s.threads) * held * index{sizeof(float)})};
}

}  // namespace

std::vector<method> linear_methods(const settings& s, heed::thread_pool& pool) {
  std::vector<method> all;
  all.push_back({"linear", 'l', false,
                 [&pool](problem& p, index n, heed::workspace& w) {
                   heed::linear_attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n),
                                               heed::linear_options{.scratch = &w});
                 },
                 [=](index n) {
                   return std::vector{cost::linear_chunked(
                       shape_of(s, n, cost::causal()), {.features = {},
                                                        .chunk = heed::linear_options{}.chunk,
                                                        .workers = std::min(s.heads, s.threads)})};
                 }});
  all.push_back({"gated (GLA)", 'g', false,
                 [&pool](problem& p, index n, heed::workspace& w) {
                   heed::gated_attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n),
                                              p.channel_gate(n),
                                              heed::recurrence_options{.scratch = &w});
                 },
                 [=](index n) {
                   return std::vector{
                       chunked_recurrence(s, n, {.channel_gate = true, .chunk = 16}, s.head_dim)};
                 }});
  all.push_back(
      {"gated delta", 'd', false,
       [&pool](problem& p, index n, heed::workspace& w) {
         heed::gated_delta_attention_into(pool, p.out(n), p.q(n), p.k(n), p.v(n), p.gate(n),
                                          p.strength(n), heed::recurrence_options{.scratch = &w});
       },
       [=](index n) {
         return std::vector{chunked_recurrence(s, n, {.write = cost::state_write::delta}, 2)};
       }});
  // A head is a sequence of the scan's batch, with weights of its own.
  all.push_back({"Mamba S6", 's', false,
                 [&pool](problem& p, index n, heed::workspace& w) {
                   heed::selective_scan_options<float> o;
                   o.scratch = &w;
                   heed::selective_scan_into(pool, p.out(n), p.v(n), p.step(n), p.rates(),
                                             p.write(n), p.read(n), o);
                 },
                 [=](index n) { return std::vector{scan_work(s, n)}; }});
  return all;
}

}  // namespace wall
