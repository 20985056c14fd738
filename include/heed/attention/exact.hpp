// SPDX-License-Identifier: MIT
// Exact attention without its score matrix: tiles of scores, a running softmax.
//
//   out_i = sum_j exp(s_ij - lse_i) v_j,   lse_i = log sum_j exp(s_ij)
//   s_ij = scale q_i.k_j -> softcap -> score modifiers -> bias -> mask
//
// | argument | axes                               |
// |----------|------------------------------------|
// | q        | [batch, heads, queries, head dim]  |
// | k        | [batch, kv heads, keys, head dim]  |
// | v        | [batch, kv heads, keys, value dim] |
// | out      | [batch, heads, queries, value dim] |
//
// Accumulates in the accumulator type; for q, k and v in [-1, 1] the result is within 3e-7 of exact
// arithmetic in float, 1e-14 in double (measured: 2e-7; for normal numbers, whose scores reach 5,
// 8e-7, where the textbook in float errs 5e-7; root mean square 5e-8), and below 2e-6 at a million
// keys (docs/digits.md). Values up to the largest number do not overflow where their mean does not.
// Where q, k and v are all bfloat16 and the target multiplies those in pairs (AVX512-BF16), the
// weights of many queries are rounded to bfloat16 for the values: up to 2^-8 sum_j w_j |v_j| more,
// as much as a bfloat16 output rounds; a float output errs by 1e-4 to 1e-3. With q in float, k and
// v as they are, weights stay float, at half the speed. With HEED_TILES defined and a matrix unit,
// they are rounded where k and v are codes of 8 bits too, whatever q is. Key blocks that the masks
// make empty are skipped, full ones run no mask code. Few queries are split along the keys instead;
// with `probability(f)` rows run one by one (probabilities.hpp).
// The same bits for any number of threads and any batch size. A masked pair contributes nothing
// whatever k and v hold; an unmasked NaN propagates; a row without a visible key gives 0 and
// log-sum-exp -inf. A score of -inf has weight 0, as if masked. Cost per head: 4 N M D FLOPs over
// the visible blocks, memory O(N) beyond the arguments: scratch of a worker is about 320 numbers
// for each channel of the keys, 512 for each of the values, and a block of scores. Throws
// shape_error, option_error, std::bad_alloc, before anything is written. Safe to call from several threads, with a scratch workspace each.
// Dao, Fu, Ermon, Rudra, Re 2022, arXiv 2205.14135, algorithm 1; Dao 2023, arXiv 2307.08691.
#pragma once

#include <algorithm>

#include "heed/attention/probabilities.hpp"
#include "heed/attention/split_kv.hpp"
#include "heed/attention/tiled.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

namespace detail {

/// Queries in the lanes, unless there are too few of them. Packed sequences are sorted one by one:
/// which others a sequence is packed with must not change its bits.
struct exact_kernel {
  template <class E, class Call>
  static void run(E& exec, const Call& call) {
    constexpr index few = split_plan<typename Call::A>::most_queries;
    if constexpr (Call::program_type::template has<stage::probability>) {
      probability_kernel::run(exec, call);
    } else if (call.extents.queries <= few) {
      split_kernel::run(exec, call);
    } else if (call.starts.empty()) {
      tiled_kernel::run(exec, call);
    } else {
      Call many = call;
      many.served.begin = few + 1;
      Call others = call;
      others.served = {0, few + 1};
      // All memory for both is there before either writes.
      scratch_lease lease(call.options.scratch);
      (void)lease.reserve((std::max)(tiled_kernel::scratch_bytes(exec, many),
                                     split_kernel::scratch_bytes(exec, others)));
      tiled_kernel::run(exec, many, lease.memory());
      split_kernel::run(exec, others, lease.memory());
    }
  }
};

}  // namespace detail

/// attention([executor,] q, k, v, options = {}, modifiers...) -> a tensor of q's family
inline constexpr api::returning_form<detail::exact_kernel> attention{};
/// attention_into([executor,] out | into(out, lse), q, k, v, options = {}, modifiers...)
inline constexpr api::writing_form<detail::exact_kernel> attention_into{};
/// attention_with_lse([executor,] q, k, v, options = {}, modifiers...) -> attention_result
inline constexpr api::lse_form<detail::exact_kernel> attention_with_lse{};

}  // namespace heed::inline HEED_TARGET
