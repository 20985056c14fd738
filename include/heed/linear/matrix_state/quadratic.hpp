// SPDX-License-Identifier: MIT
// Gated linear attention by its quadratic definition, every pair visited: the oracle of its forms.
//
//   out_i = scale (sum_{j <= i} (sum_d q_id k_jd exp(sum_{j < t <= i} g_td)) v_j + (q_i P_i)'S)
//
// Plain loops, no packets, no chunks; the weight of a pair takes its decays one token at a time,
// backwards from the query. O(T (Dk + Dv)) numbers of scratch, O(T^2 (Dk + Dv)) FLOPs.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/matrix_state/forward.hpp"
#include "heed/parallel/scratch_tasks.hpp"

namespace heed::inline HEED_TARGET::detail {

/// The parallel form of one head of a state that is only written to (write_kind::outer).
template <class A>
class matrix_quadratic {
 public:
  explicit matrix_quadratic(const matrix_recurrence<A>& r) noexcept : r_(r) {
    r_.chunk_tokens = std::max<index>(r.q.extents[2], 1);
    r_.keep_pairs = false;
  }
  [[nodiscard]] const matrix_recurrence<A>& whole() const noexcept { return r_; }

  struct buffers {
    typename matrix_recurrence<A>::scratch_type rows;
    A *query, *total;
  };
  [[nodiscard]] buffers allocate(arena& c) const noexcept {
    buffers b{};
    b.rows = r_.allocate(c);
    b.query = c.allocate<A>(r_.k.channels());
    b.total = c.allocate<A>(round_up(r_.v.channels(), simd::lanes<A>));
    return b;
  }

  void head(index head, buffers& s) const noexcept {
    const range t = r_.span_of(head);
    r_.load_state(head, s.rows);
    if (t.empty()) return;
    r_.load(head, t, s.rows);
    for (index g = 0; g < r_.group(); ++g) {
      r_.load_query(head, g, t, s.rows.q);
      const index h = r_.head_of(head) * r_.group() + g;
      for (index i = 0; i < t.size(); ++i) row(head, h, t, i, s);
    }
    // The state: each row decays and takes in its token.
    for (index i = 0; i < t.size(); ++i) {
      for (index f = 0; f < r_.k.channels(); ++f) {
        for (index c = 0; c < r_.v.channels(); ++c) {
          s.rows.sum[f][c] =
              decay(s, i, f) * s.rows.sum[f][c] + s.rows.keys[i][f] * s.rows.values[i][c];
        }
      }
    }
    r_.store_state(head, s.rows);
  }

 private:
  [[nodiscard]] A decay(const buffers& s, index i, index f) const noexcept {
    if (r_.gates == gate_kind::none) return A(1);
    return r_.gates == gate_kind::per_token ? s.rows.step[i] : s.rows.decay[i][f];
  }

  void row(index head, index h, range t, index i, buffers& s) const noexcept {
    const index d = r_.k.channels(), channels = r_.v.channels();
    std::copy_n(s.rows.q[i], d, s.query);
    std::fill_n(s.total, channels, A(0));
    index last = i;
    if (r_.read_before) {
      A weight = A(0);
      for (index f = 0; r_.bonus.present() && f < d; ++f) {
        weight += s.query[f] * s.rows.bonus[f] * s.rows.keys[i][f];
      }
      add(weight, s.rows.values[i], s);
      last = i - 1;
    }
    for (index j = last; j >= 0; --j) {
      A weight = A(0);
      for (index f = 0; f < d; ++f) weight += s.query[f] * s.rows.keys[j][f];
      add(weight, s.rows.values[j], s);
      for (index f = 0; f < d; ++f) s.query[f] *= decay(s, j, f);
    }
    for (index f = 0; f < d; ++f) add(s.query[f], s.rows.sum[f], s);
    const range one{t.begin + i, t.begin + i + 1};
    const matrix_rows<A> o = r_.out.rows(r_.batch_of(head), h, one, s.rows.out);
    for (index c = 0; c < channels; ++c) o[0][c] = r_.scale * s.total[c];
    r_.finish(head, h, one, o, s.rows);
  }
  void add(A weight, const A* value, buffers& s) const noexcept {
    for (index c = 0; c < r_.v.channels(); ++c) s.total[c] += weight * value[c];
  }

  matrix_recurrence<A> r_;
};

template <class E, class A>
void run_matrix_quadratic(E& exec, const matrix_recurrence<A>& r, workspace& memory) {
  const matrix_quadratic<A> form(r);
  for_each_with_scratch(
      exec, r.heads(), memory, [&](arena& c) noexcept { return form.allocate(c); },
      [&](auto& scratch, index head) noexcept { form.head(head, scratch); });
}

}  // namespace heed::inline HEED_TARGET::detail
