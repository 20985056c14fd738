// SPDX-License-Identifier: MIT
// What heed is compared with: the textbook method on Eigen's matrix products.
//
//   S = scale Q K',  P = softmax(S) row by row,  O = P V
//
// with the whole of S in memory. It is what most code on Eigen does, and the best form of it: both
// products are Eigen's blocked kernels, and the exponential is Eigen's packet exponential. The
// textbook in plain loops is `heed::naive_attention` itself.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "heed/core.hpp"
#include "heed/parallel.hpp"
#include "heed/tensor.hpp"

namespace baselines {

using heed::index;

/// One head: q and out n x d, k and v m x d, rows contiguous. `causal` keeps key j <= row i; the
/// products are computed in full, as the method has it. Needs n m numbers of scratch. Rows are
/// shared out among the executor's workers.
template <class T, heed::executor E>
void naive_eigen(E& exec, heed::view<const T, 2> q, heed::view<const T, 2> k,
                 heed::view<const T, 2> v, heed::view<T, 2> out, bool causal,
                 heed::workspace& scratch) {
  using matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using input = Eigen::Map<const matrix>;
  const index n = q.extent(0);
  const index m = k.extent(0);
  const T scale = T(1) / std::sqrt(static_cast<T>(q.extent(1)));
  T* const scores =
      reinterpret_cast<T*>(scratch.reserve(static_cast<std::size_t>(n * m) * sizeof(T)));
  const index workers = std::max<index>(1, std::min<index>(n, exec.concurrency()));
  const index share = heed::ceil_div(n, workers);
  heed::for_each_task(exec, workers, workers, [&](index, index t) {
    const index first = t * share;
    const index rows = std::min(share, n - first);
    if (rows <= 0) return;
    const input queries(q.data() + first * q.extent(1), rows, q.extent(1));
    const input keys(k.data(), m, k.extent(1));
    const input values(v.data(), m, v.extent(1));
    Eigen::Map<matrix> s(scores + first * m, rows, m);
    Eigen::Map<matrix> o(out.data() + first * v.extent(1), rows, v.extent(1));
    s.noalias() = (scale * queries) * keys.transpose();
    for (index i = 0; i < rows; ++i) {
      const index seen = causal ? std::min(first + i + 1, m) : m;
      auto row = s.row(i).head(seen).array();
      row = (row - row.maxCoeff()).exp();
      row /= row.sum();
      s.row(i).tail(m - seen).setZero();
    }
    o.noalias() = s * values;
  });
}

}  // namespace baselines
