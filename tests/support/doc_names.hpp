// SPDX-License-Identifier: MIT
// What the examples of README.md and docs/ take for granted: the tensors and numbers that they name
// and do not declare. cmake/ci/doc-examples.py compiles them with it; nothing of it is run.
#pragma once

#include <cmath>
#include <heed/heed.hpp>
#include <iostream>
#include <vector>

namespace names {

using heed::index_t;

inline const index_t n = 4096, s = 0, t = 1, batch = 1, heads = 8, key_dim = 64, value_dim = 64;
inline heed::tensor<float, 4> q, k, v, out;
inline heed::thread_pool pool(2);
inline heed::cache_extents extents{.head_dim = 64};
inline heed::attention_options options;

namespace caches {  // tensors of one sequence
inline heed::tensor<float, 3> q, k, v, out, g;
inline std::vector<index_t> starts;
inline std::vector<int> prompt;
inline heed::paged_cache<float> cache({.sequences = 2, .kv_heads = 8, .pages = 8, .head_dim = 64});
inline std::vector<index_t> path;
}  // namespace caches

namespace sparse {
inline constexpr auto mask = heed::causal();
inline heed::tensor<float, 4> gates, kc, vc, kw, vw;
inline heed::tensor<float, 3> g1, g2, g3;
inline heed::tensor<index_t, 4> chosen;
}  // namespace sparse

namespace training {  // gradients, also of the caller's own parameters
inline heed::tensor<float, 4> d_out, dq, dk, dv;
inline heed::tensor<float, 3> lse, d_lse, values, d_values;
inline const index_t buckets = 32;
inline index_t bucket(const heed::position& p) { return p.query - p.key; }
inline std::vector<float> table, d_table, d_slope, logits, d_logit;
inline std::vector<double> slope;
inline heed::view<const float, 3> x, dt, d_y;
inline heed::view<const float, 2> a;
inline heed::view<const float, 4> b, c;
inline heed::view<float, 3> d_x, d_dt;
inline heed::view<float, 2> d_a;
inline heed::view<float, 4> d_b, d_c;
inline std::vector<index_t> bounds;
}  // namespace training

}  // namespace names
