// SPDX-License-Identifier: MIT
// Native sparse attention: three exact attentions of few keys, gated and summed.
//
//   out_i = g1_i attend(q_i, compressed blocks) + g2_i attend(q_i, selected blocks)
//         + g3_i attend(q_i, window)
//
//   native_sparse_attention([executor,] q, k, v, gates, options = {}, arguments...) -> q's family
//   native_sparse_attention_into([executor,] out, q, k, v, gates, options = {}, arguments...)
//   native_sparse_attention_with_selection([executor,] ...) -> {output, selection}
//
// | branch     | keys a row at position p sees                                               |
// |------------|-----------------------------------------------------------------------------|
// | compressed | blocks of `compression` whole by then, each one mean (or the caller's own)  |
// | selected   | tokens j <= p of its `count` blocks, by compressed_block_selection          |
// | window     | p - window < j <= p                                                         |
//
// q [batch, heads, queries, head dim], k and v [batch, kv heads, keys, ...]; a group of heads
// shares a selection. Other arguments: heed/sparse/nsa/native_sparse_arguments.hpp. A branch in which
// a row sees no key gives it 0, so that a window of 0 has no window branch. Always causal.
//
// Each branch as `attention` and `selected_attention` say, kept in the accumulator type; the sum
// adds 3 eps of its terms. An unmasked NaN propagates, whatever its gate. With C the compressed
// blocks, per query head: 4 D N (C / 2 + count block + window) FLOPs at most and N C D for the
// selection; memory 3 results in the accumulator type, the means, and the selection. The same bits
// for any number of threads. Throws shape_error, option_error, std::bad_alloc, before anything is
// written. Yuan et al. 2025, arXiv 2502.11089, eq. 5 to 12.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <type_traits>
#include <utility>

#include "heed/api/overloads.hpp"
#include "heed/attention/exact.hpp"
#include "heed/core/target.hpp"
#include "heed/sparse/gather/selected_attention.hpp"
#include "heed/sparse/nsa/compressed_selection.hpp"
#include "heed/sparse/nsa/native_sparse_arguments.hpp"

namespace heed::inline HEED_TARGET {

/// What native_sparse_attention_with_selection returns.
template <class Out>
struct native_sparse_result {
  Out output;
  tensor<index, 4> selection;  ///< [batch, kv heads, queries, count], -1 where there is none
};

namespace detail {

template <tensor_like T>
[[nodiscard]] auto read4(const T& t) {
  return view<const scalar_of<const T&>, 4>(as_rank4(as_view(t)));
}

/// The argument of a role among `arguments`, or `otherwise`.
template <nsa::role Role, class Otherwise>
[[nodiscard]] const Otherwise& argument_of(const Otherwise& otherwise) noexcept {
  return otherwise;
}
template <nsa::role Role, class Otherwise, class First, class... Rest>
[[nodiscard]] const auto& argument_of(const Otherwise& otherwise, const First& first,
                                      const Rest&... rest) noexcept {
  if constexpr (First::part == Role) {
    return first;
  } else {
    return argument_of<Role>(otherwise, rest...);
  }
}
template <nsa::role Role, class... Arguments>
inline constexpr int given = (0 + ... + (Arguments::part == Role ? 1 : 0));

/// A view of one axis less, as batch x heads x queries.
template <class T, int R>
[[nodiscard]] view<T, 3> rows3(const view<T, R>& v) {
  static_assert(R <= 3, "heed: gates have the rank of q, three gates one less");
  std::array<index, 3> e{1, 1, 1};
  std::array<index, 3> s{0, 0, 0};
  for (int a = 0; a < R; ++a) {
    e[static_cast<std::size_t>(3 - R + a)] = v.extent(a);
    s[static_cast<std::size_t>(3 - R + a)] = v.stride(a);
  }
  return {v.data(), e, s};
}

/// Three views a branch, or nsa::ungated.
template <int Rank>
[[nodiscard]] inline nsa::no_gates open_gates(nsa::no_gates none, const std::array<index, 4>&) {
  return none;
}
template <int Rank, class G>
[[nodiscard]] auto open_gates(const nsa::branch_gates<G>& gates, const std::array<index, 4>& q) {
  static_assert(G::rank == Rank - 1, "heed: three gates have one axis less than q");
  using T = const typename G::scalar;
  const auto open = [&q](const char* name, const G& g) {
    const view<T, 3> v = rows3(view<T, G::rank>(g));
    require_equal(name, "batch", v.extent(0), "q", q[0]);
    require_equal(name, "heads", v.extent(1), "q", q[1]);
    require_equal(name, "queries", v.extent(2), "q", q[2]);
    return v;
  };
  return nsa::branch_gates<view<T, 3>>{open("gate of the compressed branch", gates.compressed),
                                       open("gate of the selected branch", gates.selected),
                                       open("gate of the window branch", gates.window)};
}
template <int Rank, tensor_like G>
[[nodiscard]] auto open_gates(const G& gates, const std::array<index, 4>& q) {
  static_assert(rank_of<const G&> == Rank, "heed: gates have the rank of q");
  const auto g = read4(gates);
  require_equal("gates", "branches", g.extent(3), "native sparse attention", 3);
  const auto branch = [&g](index n) {
    using T = typename std::remove_cvref_t<decltype(g)>::scalar;
    return view<T, 3>(g.data() + n * g.stride(3), {g.extent(0), g.extent(1), g.extent(2)},
                      {g.stride(0), g.stride(1), g.stride(2)});
  };
  using views = nsa::branch_gates<decltype(branch(0))>;
  return open_gates<4>(views{branch(0), branch(1), branch(2)}, q);
}

/// Keys and values of a branch against q, and those of the call.
template <class K, class V>
void check_branch(const std::string& name, const K& k, const V& v, const std::array<index, 4>& q,
                  index kv_heads, index value_dim) {
  const std::string keys = "k of " + name;
  const std::string values = "v of " + name;
  require_equal(keys.c_str(), "batch", k.extent(0), "q", q[0]);
  require_equal(keys.c_str(), "heads", k.extent(1), "k", kv_heads);
  require_equal(keys.c_str(), "head dim", k.extent(3), "q", q[3]);
  require_equal(values.c_str(), "batch", v.extent(0), "q", q[0]);
  require_equal(values.c_str(), "heads", v.extent(1), "k", kv_heads);
  require_equal(values.c_str(), "tokens", v.extent(2), keys.c_str(), k.extent(2));
  require_equal(values.c_str(), "value dim", v.extent(3), "v", value_dim);
}

/// out = the sum of the branches, each times its gate.
template <class E, class TO, class A, class Gates>
void sum_branches(E& exec, const view<TO, 4>& out, const tensor<A, 4>* branches,
                  const Gates& gates) {
  constexpr index rows = 64;
  const index n = out.extent(2);
  const index blocks = ceil_div(n, rows);
  const index tasks = out.extent(0) * out.extent(1) * blocks;
  if (tasks == 0) return;
  const index workers = worker_count(exec, tasks);
  for_each_task(exec, workers, tasks, [&](index, index t) noexcept {
    const index b = t / blocks / out.extent(1);
    const index h = t / blocks % out.extent(1);
    const range at = intersect({0, n}, {t % blocks * rows, (t % blocks + 1) * rows});
    for (index i = at.begin; i < at.end; ++i) {
      A g[3] = {A(1), A(1), A(1)};
      if constexpr (!std::is_same_v<Gates, nsa::no_gates>) {
        g[0] = static_cast<A>(gates.compressed(b, h, i));
        g[1] = static_cast<A>(gates.selected(b, h, i));
        g[2] = static_cast<A>(gates.window(b, h, i));
      }
      const index row = ((b * out.extent(1) + h) * n + i) * out.extent(3);
      const A* const x = branches[0].data() + row;
      const A* const y = branches[1].data() + row;
      const A* const z = branches[2].data() + row;
      TO* const to = out.data() + b * out.stride(0) + h * out.stride(1) + i * out.stride(2);
      for (index c = 0; c < out.extent(3); ++c) {
        to[c * out.stride(3)] = static_cast<TO>(g[0] * x[c] + g[1] * y[c] + g[2] * z[c]);
      }
    }
  });
}

/// The selection is returned where it was not given.
template <class E, class Out, class Q, class K, class V, class G, class... Arguments>
tensor<index, 4> native_sparse(E& exec, Out&& out, const Q& q, const K& k, const V& v,
                               const G& gates, const native_sparse_options& o,
                               const Arguments&... arguments) {
  using nsa::role;
  using A = accumulate_t<scalar_of<const Q&>>;
  static_assert(writable_tensor<Out>, "heed: the output is not a tensor that can be written");
  static_assert(given<role::compressed, Arguments...> + given<role::to_compress, Arguments...> <= 1,
                "heed: the compressed branch is given twice");
  const auto q4 = read4(q);
  const auto k4 = read4(k);
  const auto v4 = read4(v);
  const auto out4 = as_rank4(as_view(std::forward<Out>(out)));
  const std::array<index, 4> extents{q4.extent(0), q4.extent(1), q4.extent(2), v4.extent(3)};
  if (out4.extents() != extents) {
    fail<shape_error>("out has extents " + format_extents(out4.extents()) + ", the result has " +
                      format_extents(extents));
  }
  const index kv_heads = k4.extent(1);
  if (kv_heads == 0 ? q4.extent(1) != 0 : q4.extent(1) % kv_heads != 0) {
    fail<shape_error>("q has " + std::to_string(q4.extent(1)) + " heads, not a multiple of k's " +
                      std::to_string(kv_heads));
  }
  const auto branch_gates = open_gates<rank_of<const Q&>>(gates, q4.extents());
  const auto check = [&](const std::string& name, const auto& keys, const auto& values) {
    check_branch(name, keys, values, q4.extents(), kv_heads, v4.extent(3));
  };
  check("the call", k4, v4);
  o.compression.check();
  if (o.window < 0) {
    fail<option_error>("window is " + std::to_string(o.window) + ", must not be negative");
  }
  // Each branch's own tokens, or those of the call.
  const nsa::branch_tokens<role::selected, view<const scalar_of<const K&>, 4>,
                           view<const scalar_of<const V&>, 4>>
      common{k4, v4};
  const auto& selected = argument_of<role::selected>(common, arguments...);
  const auto& window_tokens = argument_of<role::window>(common, arguments...);
  const auto& to_compress = argument_of<role::to_compress>(common, arguments...);
  const auto selected_k = read4(selected.keys);
  const auto selected_v = read4(selected.values);
  const auto window_k = read4(window_tokens.keys);
  const auto window_v = read4(window_tokens.values);
  check("the selected branch", selected_k, selected_v);
  check("the window branch", window_k, window_v);
  require_equal("k of the selected branch", "tokens", selected_k.extent(2), "k", k4.extent(2));
  require_equal("k of the window branch", "tokens", window_k.extent(2), "k", k4.extent(2));

  const attention_options of{.scale = o.scale, .offset = o.offset, .scratch = o.scratch};
  tensor<A, 4> branches[3] = {tensor<A, 4>(extents), tensor<A, 4>(extents), tensor<A, 4>(extents)};
  tensor<index, 4> selection;
  const index whole = o.compression.whole(k4.extent(2));
  const auto attend = [&](const auto& kc, const auto& vc) {
    if constexpr (given<role::selection, Arguments...> == 0) {
      tensor<A, 3> lse({extents[0], extents[1], extents[2]});
      attention_into(exec, into(branches[0], lse), q4, kc, vc, of, o.compression);
      selection = compressed_block_selection(exec, q4, kc, k4.extent(2),
                                             {.count = o.count,
                                              .block = o.block,
                                              .initial = o.initial,
                                              .local = o.local,
                                              .compression = o.compression,
                                              .scale = o.scale,
                                              .offset = o.offset},
                                             lse);
    } else {
      attention_into(exec, branches[0], q4, kc, vc, of, o.compression);
    }
  };
  if constexpr (given < role::compressed, Arguments... >> 0) {
    const auto& compressed = argument_of<role::compressed>(common, arguments...);
    const auto kc = read4(compressed.keys);
    const auto vc = read4(compressed.values);
    check("the compressed branch", kc, vc);
    if (kc.extent(2) < whole) {
      fail<shape_error>("k of the compressed branch has " + std::to_string(kc.extent(2)) +
                        " blocks, k has " + std::to_string(whole) + " whole ones");
    }
    attend(kc.slice(2, 0, whole), vc.slice(2, 0, whole));
  } else {
    const auto kt = read4(to_compress.keys);
    const auto vt = read4(to_compress.values);
    check("the compressed branch", kt, vt);
    require_equal("k of the compressed branch", "tokens", kt.extent(2), "k", k4.extent(2));
    attend(block_compression(exec, kt, o.compression), block_compression(exec, vt, o.compression));
  }
  if constexpr (given<role::selection, Arguments...> == 0) {
    selected_attention_into(exec, branches[1], q4, selected_k, selected_v, selection, o.block, of,
                            causal());
  } else {
    selected_attention_into(exec, branches[1], q4, selected_k, selected_v,
                            argument_of<role::selection>(common, arguments...).indices, o.block, of,
                            causal());
  }
  attention_into(exec, branches[2], q4, window_k, window_v, of, window{.left = o.window - 1},
                 causal());
  sum_branches(exec, out4, branches, branch_gates);
  return selection;
}

struct native_sparse_method : api::method<native_sparse_options> {
  template <class Q, class K, class V, class... Rest>
  [[nodiscard]] static auto result(const Q& q, const K&, const V& v, const Rest&...) {
    static_assert(tensor_like<const Q&> && tensor_like<const V&>,
                  "heed: q or v is not a tensor; specialise heed::tensor_traits for its type");
    return result_like<const Q&>(api::result_extents(q, v));
  }
  template <class E, class Out, class... Arguments>
  static void write(E& exec, Out&& out, const Arguments&... arguments) {
    (void)native_sparse(exec, std::forward<Out>(out), arguments...);
  }
};

/// The selection too, which none of the arguments gives.
struct native_sparse_selection_call : native_sparse_method {
  template <class E, class Q, class K, class V, class G, class... Arguments>
  [[nodiscard]] static auto call(E& exec, const Q& q, const K& k, const V& v, const G& gates,
                                 const native_sparse_options& options,
                                 const Arguments&... arguments) {
    static_assert(given<nsa::role::selection, Arguments...> == 0,
                  "heed: the selection was given, none is made");
    auto out = result(q, k, v);
    auto selection = native_sparse(exec, out, q, k, v, gates, options, arguments...);
    return native_sparse_result<decltype(out)>{std::move(out), std::move(selection)};
  }
};

}  // namespace detail

/// native_sparse_attention_into([executor,] out, q, k, v, gates, options = {}, arguments...)
inline constexpr api::writing<detail::native_sparse_method, 4> native_sparse_attention_into{};
/// native_sparse_attention([executor,] q, k, v, gates, options = {}, arguments...)
inline constexpr api::returning<detail::native_sparse_method, 4> native_sparse_attention{};
/// native_sparse_attention_with_selection([executor,] q, k, v, gates, options = {}, arguments...)
inline constexpr api::function<detail::native_sparse_method,
                               api::form<detail::native_sparse_selection_call, 4>>
    native_sparse_attention_with_selection{};

}  // namespace heed::inline HEED_TARGET
