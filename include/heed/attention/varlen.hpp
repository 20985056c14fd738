// SPDX-License-Identifier: MIT
// Attention over sequences of different lengths packed along the token axis: no padding is stored
// or computed.
//
// | argument | axes                                        |
// |----------|---------------------------------------------|
// | q, out   | [heads, all queries, head dim / value dim]  |
// | k, v     | [kv heads, all keys, head dim / value dim]  |
// | cu_seqlens_q | sequences + 1 cumulative lengths, from 0 to the queries |
// | cu_seqlens_k | likewise for the keys                       |
//
// Sequence s has queries cu_seqlens_q[s] .. cu_seqlens_q[s+1] and attends to its own keys alone; to
// modifiers it is batch s, with rows and keys counted from its own start. Tokens x heads x channels
// comes in through `heads_first`. All else is as in `attention`.
#pragma once

#include "heed/attention/exact.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Keys and values of packed sequences.
template <class TK, class TV>
class ragged_source {
 public:
  using key_scalar = TK;
  using value_scalar = TV;

  ragged_source(const view<const TK, 4>& k, const view<const TV, 4>& v,
                std::span<const index> starts) noexcept
      : k_(k), v_(v), starts_(starts) {}
  [[nodiscard]] index batch() const noexcept { return static_cast<index>(starts_.size()) - 1; }
  [[nodiscard]] index kv_heads() const noexcept { return k_.extent(1); }
  [[nodiscard]] index head_dim() const noexcept { return k_.extent(3); }
  [[nodiscard]] index value_dim() const noexcept { return v_.extent(3); }
  [[nodiscard]] index length(index b) const noexcept { return start(b + 1) - start(b); }
  [[nodiscard]] row_run<TK> keys(index b, index h, index j) const noexcept {
    return run(k_, b, h, j);
  }
  [[nodiscard]] row_run<TV> values(index b, index h, index j) const noexcept {
    return run(v_, b, h, j);
  }
  [[nodiscard]] index key_channel_stride() const noexcept { return k_.stride(3); }
  [[nodiscard]] index value_channel_stride() const noexcept { return v_.stride(3); }

 private:
  [[nodiscard]] index start(index b) const noexcept { return starts_[static_cast<std::size_t>(b)]; }
  template <class T>
  row_run<T> run(const view<const T, 4>& t, index b, index h, index j) const noexcept {
    return {t.data() + h * t.stride(1) + (start(b) + j) * t.stride(2), t.stride(2), length(b) - j};
  }
  view<const TK, 4> k_;
  view<const TV, 4> v_;
  std::span<const index> starts_;
};

/// Throws unless starts run from 0 to tokens and never decrease.
inline void check_starts(const char* name, std::span<const index> starts, const char* tensor,
                         index tokens) {
  if (starts.empty() || starts.front() != 0 || starts.back() != tokens) {
    fail<shape_error>(std::string(name) + " runs from " +
                      (starts.empty() ? std::string("nothing") : std::to_string(starts.front())) +
                      " to " +
                      (starts.empty() ? std::string("nothing") : std::to_string(starts.back())) +
                      ", " + tensor + " has tokens 0 to " + std::to_string(tokens));
  }
  for (std::size_t i = 1; i < starts.size(); ++i) {
    if (starts[i] < starts[i - 1]) {
      fail<shape_error>(std::string(name) + " decreases from " + std::to_string(starts[i - 1]) +
                        " to " + std::to_string(starts[i]));
    }
  }
}

[[nodiscard]] inline index longest(std::span<const index> starts) noexcept {
  index most = 0;
  for (std::size_t i = 1; i < starts.size(); ++i)
    most = (std::max)(most, starts[i] - starts[i - 1]);
  return most;
}

/// A kernel over packed sequences.
template <class Kernel>
struct ragged_method : api::attention_method {
  template <class E, class Out, class Q, class K, class V, class... M>
  static void write(E& exec, Out&& out, const Q& q, const K& k, const V& v,
                    std::span<const index> cu_seqlens_q, std::span<const index> cu_seqlens_k,
                    const attention_options& options, const M&... modifiers) {
    require_tensors<const Q&, const K&, const V&>();
    static_assert(rank_of<const Q&> == 3 || rank_of<const Q&> == 2,
                  "heed: packed sequences are heads x tokens x channels, or tokens x channels");
    const auto q4 = input4(q);
    const auto k4 = input4(k);
    const auto v4 = input4(v);
    check_shapes(q4.extents(), k4.extents(), v4.extents());
    check_starts("cu_seqlens_q", cu_seqlens_q, "q", q4.extent(2));
    check_starts("cu_seqlens_k", cu_seqlens_k, "k", k4.extent(2));
    require_equal("cu_seqlens_k", "entries", static_cast<index>(cu_seqlens_k.size()),
                  "cu_seqlens_q", static_cast<index>(cu_seqlens_q.size()));
    using Source = ragged_source<scalar_of<const K&>, scalar_of<const V&>>;
    const auto sequences = static_cast<index>(cu_seqlens_q.size()) - 1;
    auto call = open_source_call(
        std::forward<Out>(out), q, Source(k4, v4, cu_seqlens_k),
        {sequences, q4.extent(1), k4.extent(1), longest(cu_seqlens_q), longest(cu_seqlens_k)},
        options, modifiers...);
    require_results_apart(call, k4, v4);
    call.starts = cu_seqlens_q;
    Kernel::run(exec, call);
  }
};

}  // namespace detail

/// ragged_attention_into([executor,] out | into(out, lse), q, k, v, cu_seqlens_q, cu_seqlens_k, options =
/// {}, modifiers...)
inline constexpr api::writing<detail::ragged_method<detail::exact_kernel>, 3,
                              std::span<const index>, std::span<const index>>
    ragged_attention_into{};
/// ragged_attention([executor,] q, k, v, cu_seqlens_q, cu_seqlens_k, options = {}, modifiers...) -> a
/// tensor of q's family
inline constexpr api::returning<detail::ragged_method<detail::exact_kernel>, 3,
                                std::span<const index>, std::span<const index>>
    ragged_attention{};

}  // namespace heed::inline HEED_TARGET
