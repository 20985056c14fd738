// SPDX-License-Identifier: MIT
// The gradient of exact attention without its matrix of probabilities.
//
//   p_ij = exp(s_ij - lse_i)                  delta_i = d_out_i . out_i - d_lse_i
//   dv_j = sum_i p_ij f_ij d_out_i            dp_ij   = f_ij d_out_i . v_j   (f: dropout's factor)
//   ds_ij = p_ij (dp_ij - delta_i) -> modifiers backward -> softcap backward
//   dq_i = scale sum_j ds_ij k_j              dk_j    = scale sum_i ds_ij q_i
//
// of sum(out d_out) + sum(lse d_lse); dk and dv are sums over the query heads of a group. Takes every
// modifier that attention takes but a change of the probabilities; gradients of biases, slopes,
// tables and sinks are told to callbacks (score/with_gradient.hpp).
// Tiles of scores are computed anew; five products, one pass over the tiles, empty tiles skipped.
// Accumulates in the accumulator type, rounded once at the end; sums over queries are compensated, so
// that dk and dv lose no digits with their number. A pair of probability 0, as every masked one is,
// contributes nothing whatever the tensors hold; an unmasked NaN propagates; a row without a visible
// key has gradient 0. The same bits for any number of threads and any batch size: keys are split into
// at most 8 parts by their number alone, whose dq are summed in order.
// Cost per head: 10 N M D FLOPs over the visible tiles. Memory of a worker, in numbers:
// N (4 D + 2 Dv) + M (D + Dv); with fewer kv heads than workers also the parts' dq, at most
// 8 N D a query head. Throws shape_error, option_error, std::bad_alloc, before anything is written.
// Dao, Fu, Ermon, Rudra, Re 2022, arXiv 2205.14135, algorithm 4; Dao 2023, arXiv 2307.08691,
// algorithm 2, with keys outside and queries in the lanes.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/attention/backward/arguments.hpp"
#include "heed/core/target.hpp"
#include "heed/kernel/backward/backward_head.hpp"
#include "heed/parallel/scratch_tasks.hpp"
#include "heed/tensor/tensor.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// The parts that keys are split into: by their number alone, for the sums' order follows from it.
[[nodiscard]] constexpr index backward_parts(index keys) noexcept {
  return std::clamp<index>(keys / (4 * backward_plan::keys), 1, 8);
}

/// Query head h packed into `s`; sinks are told.
template <class Call, class Gradient, class A>
void pack_head(const Call& call, const Gradient& gradient, index b, index h, backward_scratch<A>& s,
               const backward_sizes& n) noexcept {
  constexpr index most = tile_plan<A>::group;
  const auto& f = call.forward;
  for (index g = 0; g < n.groups<A>(); ++g) {
    const index first = g * most;
    s.pack(g, (std::min)(most, n.queries - first), f.query_rows(b, h, first),
           call.cotangent_rows(b, h, first), f.scale, n);
  }
  for (index i = 0; i < n.queries; ++i) {
    const A lse = *f.lse_rows(b, h, i);
    const A delta = call.delta(b, h, i);
    s.set_row(i, lse, delta);
    if (lse == softmax_state<A>::empty_max) continue;
    gradient.tell_sinks(lse, delta, {b, h, h / f.group(), f.options.offset[b] + i, -1, i});
  }
}

/// Query head h against a part of its keys.
template <class Call, class Gradient, class A>
void attend_backward(const Call& call, const Gradient& gradient, index b, index h, key_part part,
                     const backward_scratch<A>& s, A* sums, const backward_sizes& n) noexcept {
  const auto& f = call.forward;
  const index offset = f.options.offset[b];
  const tile where{b,     h, h / f.group(), {offset, offset + n.queries}, {0, f.source.length(b)},
                   offset};
  backward_head(f.program, gradient, f.source, where, part, s, sums, n);
}

/// Groups `groups` of query head h, scaled, to dq.
template <class Call, class A>
void store_queries(const Call& call, index b, index h, A* sums, const backward_sizes& n,
                   range groups) noexcept {
  constexpr index most = tile_plan<A>::group;
  using T = typename std::remove_cvref_t<decltype(call.dq)>::scalar;
  for (index g = groups.begin; g < groups.end; ++g) {
    A* const from = sums + g * most * n.d.head_dim;
    for (index i = 0; i < most * n.d.head_dim; ++i) from[i] *= call.forward.scale;
    copy_tile<A, T>({from, 1, most}, Call::rows(call.dq, b, h, g * most),
                    (std::min)(most, n.queries - g * most), n.d.head_dim);
  }
}

/// The rows of dk and dv that belong to a part.
template <class Call, class A>
void store_keys(const Call& call, index b, index kv, key_part part, const backward_scratch<A>& s,
                const backward_sizes& n) noexcept {
  using TK = typename std::remove_cvref_t<decltype(call.dk)>::scalar;
  using TV = typename std::remove_cvref_t<decltype(call.dv)>::scalar;
  part.each_block(n.keys, [&](range keys) noexcept {
    copy_tile<A, TK>({s.dk + keys.begin * n.head_stride<A>(), n.head_stride<A>(), 1},
                     Call::rows(call.dk, b, kv, keys.begin), keys.size(), n.d.head_dim);
    copy_tile<A, TV>({s.dv + keys.begin * n.value_stride<A>(), n.value_stride<A>(), 1},
                     Call::rows(call.dv, b, kv, keys.begin), keys.size(), n.d.value_dim);
  });
}

struct tiled_backward_kernel {
  static constexpr bool sums_tables = true;

  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    const score_extents e = call.forward.extents;
    const index pairs = e.batch * e.kv_heads;
    const index workers = static_cast<index>(exec.concurrency());
    scratch_lease lease(call.forward.options.scratch);
    workspace& memory = lease.memory();
    const index parts = backward_parts(e.keys);
    using gradient = std::remove_cvref_t<decltype(call.gradient)>;
    if constexpr (gradient::tables) {
      run_tables(exec, call, memory, parts);
    } else if (gradient::tells || parts == 1 || workers == 1 || pairs >= 2 * workers) {
      run_heads(exec, call, memory, parts, {0, pairs},
                [&](index) -> const gradient& { return call.gradient; });
    } else {
      run_parts(exec, call, memory, parts);
    }
  }

 private:
  template <class Call>
  [[nodiscard]] static backward_sizes sizes(const Call& call) noexcept {
    const score_extents& e = call.forward.extents;
    return {{call.head_dim(), call.value_dim()}, e.queries, e.keys};
  }

  /// A task is one of the kv heads `heads`, and gradient_of(head) what it tells. The parts' dq are
  /// added one after another.
  template <class E, class Call, class F>
  static void run_heads(E& exec, const Call& call, workspace& memory, index parts, range heads,
                        const F& gradient_of) {
    using A = typename Call::A;
    const score_extents e = call.forward.extents;
    const backward_sizes n = sizes(call);
    const auto allocate = [&](arena& c) noexcept {
      backward_scratch<A> s;
      s.allocate(c, n, parts > 1 ? 2 : 1);
      return s;
    };
    for_each_with_scratch(exec, heads.size(), memory, allocate,
                          [&](backward_scratch<A>& s, index t) noexcept {
                            const index b = (heads.begin + t) / e.kv_heads;
                            const index kv = (heads.begin + t) % e.kv_heads;
                            const auto& gradient = gradient_of(heads.begin + t);
                            s.clear_keys(n, {0, 1});
                            const index group = call.forward.group();
                            for (index h = kv * group; h < (kv + 1) * group; ++h) {
                              pack_head(call, gradient, b, h, s, n);
                              s.clear(s.dq[0], n);
                              attend_backward(call, gradient, b, h, {0, parts}, s, s.dq[0], n);
                              for (index part = 1; part < parts; ++part) {
                                s.clear(s.dq[1], n);
                                attend_backward(call, gradient, b, h, {part, parts}, s, s.dq[1], n);
                                add_into(s.dq[0], s.dq[1], n.query_numbers<A>());
                              }
                              store_queries(call, b, h, s.dq[0], n, {0, n.groups<A>()});
                            }
                            store_keys(call, b, kv, {0, 1}, s, n);
                          });
  }

  /// As run_heads, with tables of each kv head, added to the caller's in the heads' order. As many
  /// heads at a time as keep the workers busy.
  template <class E, class Call>
  static void run_tables(E& exec, const Call& call, workspace& memory, index parts) {
    using A = typename Call::A;
    const score_extents e = call.forward.extents;
    const index pairs = e.batch * e.kv_heads;
    const index together = (std::min)(pairs, 2 * static_cast<index>(exec.concurrency()));
    const index numbers = call.gradient.table_numbers();
    tensor<A, 2> own({together, numbers});
    for (index first = 0; first < pairs; first += together) {
      const range heads{first, (std::min)(first + together, pairs)};
      std::fill_n(own.data(), own.size(), A(0));
      run_heads(exec, call, memory, parts, heads, [&](index head) {
        return task_gradient<std::remove_cvref_t<decltype(call.gradient)>, A>{
            call.gradient, own.data() + (head - first) * numbers};
      });
      for (index head = heads.begin; head < heads.end; ++head) {
        call.gradient.merge_tables(own.data() + (head - first) * numbers);
      }
    }
  }

  /// A task is a part of a kv head's keys. As many heads at a time as keep the workers busy.
  template <class E, class Call>
  static void run_parts(E& exec, const Call& call, workspace& memory, index parts) {
    using A = typename Call::A;
    const score_extents e = call.forward.extents;
    const backward_sizes n = sizes(call);
    const index group = call.forward.group();
    const index pairs = e.batch * e.kv_heads;
    const index together =
        (std::min)(pairs, ceil_div(2 * static_cast<index>(exec.concurrency()), parts));
    const index numbers = n.query_numbers<A>();
    // Which head each worker has packed, the parts' dq of the heads together, then a scratch for each
    // worker: a worker that takes several parts of a head packs it once.
    const auto workers = static_cast<index>(exec.concurrency());
    arena measure;
    (void)measure.allocate<index>(workers);
    (void)measure.allocate<A>(together * group * parts * numbers);
    const std::size_t before = measure.used();
    backward_scratch<A>().allocate(measure, n, 0);
    const std::size_t each = measure.used() - before;
    std::byte* const block = memory.reserve(before + each * static_cast<std::size_t>(workers));
    arena shared(block);
    auto* const packed = shared.allocate<index>(workers);
    std::fill_n(packed, workers, index{-1});
    auto* const partial = shared.allocate<A>(together * group * parts * numbers);
    for (index first = 0; first < pairs; first += together) {
      const index count = (std::min)(together, pairs - first);
      for_each_task(exec, workers, count * parts, [&](index worker, index t) noexcept {
        arena c(block + before + each * static_cast<std::size_t>(worker));
        backward_scratch<A> s;
        s.allocate(c, n, 0);
        const index pair = first + t / parts;
        const index part = t % parts;
        const index b = pair / e.kv_heads;
        const index kv = pair % e.kv_heads;
        s.clear_keys(n, {part, parts});
        for (index h = 0; h < group; ++h) {
          A* const dq = partial + ((t / parts * group + h) * parts + part) * numbers;
          const index head = pair * group + h;
          if (packed[worker] != head) pack_head(call, call.gradient, b, kv * group + h, s, n);
          packed[worker] = head;
          s.clear(dq, n);
          attend_backward(call, call.gradient, b, kv * group + h, {part, parts}, s, dq, n);
        }
        store_keys(call, b, kv, {part, parts}, s, n);
      });
      // A task is one group of queries: its parts are summed in order.
      const index groups = n.groups<A>();
      const index size = n.d.head_dim * tile_plan<A>::group;
      const index tasks = count * group * groups;
      for_each_task(exec, workers, tasks, [&](index, index t) noexcept {
        const index head = t / groups;  // of those together
        const index g = t % groups;
        A* const sum = partial + head * parts * numbers;
        for (index part = 1; part < parts; ++part) {
          add_into(sum + g * size, sum + part * numbers + g * size, size);
        }
        const index pair = first + head / group;
        store_queries(call, pair / e.kv_heads, pair % e.kv_heads * group + head % group, sum, n,
                      {g, g + 1});
      });
    }
  }
};

}  // namespace detail

/// attention_backward([executor,] q, k, v, forward, d_out | cotangents(d_out, d_lse), options = {},
///                    modifiers...) -> attention_gradients {query, key, value}.
/// `forward` is what attention_with_lse returned, or into(out, lse); options and modifiers are those
/// of that call.
inline constexpr detail::backward_returning_form<detail::tiled_backward_kernel>
    attention_backward{};
/// attention_backward_into([executor,] gradients(dq, dk, dv), q, k, v, forward, ...)
inline constexpr detail::backward_writing_form<detail::tiled_backward_kernel>
    attention_backward_into{};

}  // namespace heed::inline HEED_TARGET
