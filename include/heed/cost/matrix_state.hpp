// SPDX-License-Identifier: MIT
// The cost of recurrences with a matrix state, chunk by chunk: gates, delta rules, low rank updates
// (heed/linear/matrix_state/forward.hpp).
//
// One head holds a state of D Dv numbers. FLOPs of one query head over n tokens, P the visible
// pairs inside the chunks:
//
//   outer      4 n D Dv + 2 P (D + Dv)      write k v', read q'S; products q k'
//   delta      6 n D Dv + 4 P (D + Dv)      and S'k of the correction; products k k', the system
//   low rank   8 n D Dv + 8 P (D + Dv)      and S'a, b x'; products q b', a k', a b'
//
// Decays are element by element, and not counted. Scratch is what the kernel allocates for a worker,
// its rows rounded up to whole packets, and does not depend on n.
#pragma once

#include <algorithm>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/cost/attention.hpp"
#include "heed/cost/band.hpp"
#include "heed/cost/linear.hpp"
#include "heed/cost/work.hpp"

namespace heed::inline HEED_TARGET::cost {

/// What a token does to the state beside its decay: k v'; k x' with x corrected by what the state
/// answers to k; k v' + b x' with x what it answers to a.
enum class state_write { outer, delta, low_rank };

struct matrix_state_form {
  state_write write = state_write::outer;
  bool channel_gate = false;  ///< each key channel decays by itself (GLA, RWKV-6, RWKV-7, KDA)
  index chunk = 64;           ///< the kernel's own choice is 16 with a channel gate
  index lanes = 1;            ///< accumulators a packet, simd::lanes<float>: rows are whole packets
  index workers = 1;          ///< each works on one head, with a state and scratch of its own
};

/// Numbers of one worker's scratch, the state included. `s.queries` tokens; query heads that share
/// a state (query_heads / kv_heads) take more of it where each channel decays by itself.
[[nodiscard]] constexpr double matrix_state_scratch(const attention_shape& s,
                                                    const matrix_state_form& form) noexcept {
  const auto padded = [&](index n) { return static_cast<double>(round_up(n, form.lanes)); };
  const index tokens = std::clamp<index>(form.chunk, 1, std::max<index>(s.queries, 1));
  const double rows = padded(tokens), d = padded(s.head_dim), v = padded(s.values());
  const bool low = form.write == state_write::low_rank;
  const index group = s.kv_heads > 0 ? std::max<index>(s.query_heads / s.kv_heads, 1) : 1;
  const double members = form.channel_gate ? static_cast<double>(group) : 1;
  // Keys, their copy that meets the state, and one as columns or decayed to the chunk's end; of a
  // low rank update, two of b more; queries.
  const double key_rows = (low ? 5 : 3) + members;
  const double value_rows = 4;  // values, corrected values, output, values as they came
  // Weights of queries and of corrections with the keys, and with b.
  const double weights = (members + 1) * (low ? 2 : 1);
  const double decays = form.channel_gate ? d : (std::max)(rows, d);
  // The state, and what its sums have lost. A packet for each pair, of queries and, where the state answers keys, of these.
  const double parts = form.channel_gate ? (form.write == state_write::outer ? 1 : 2) *
                                               static_cast<double>(tokens * form.lanes) * rows
                                         : 0;
  return 2 * d * v + rows * (key_rows * d + value_rows * v + weights * rows + decays + 2) + 3 * d +
         parts;
}

/// Causal, `form.chunk` tokens at a time. Bytes are those of q, k, v and output: a member's gates
/// and strengths, and the rows a and b, come on top.
[[nodiscard]] constexpr work matrix_state_chunked(const attention_shape& s,
                                                  const matrix_state_form& form = {}) noexcept {
  work w = linear_chunked(s, {.features = {}, .chunk = form.chunk});
  const double products = linear_recurrent(s).flops;
  const double inside = w.flops - products;
  const bool low = form.write == state_write::low_rank, delta = form.write == state_write::delta;
  w.flops = (low ? 2 : delta ? 1.5 : 1) * products + (low ? 4 : delta ? 2 : 1) * inside;
  w.extra_memory =
      static_cast<double>(form.workers * s.accumulator_bytes) * matrix_state_scratch(s, form);
  return w;
}

}  // namespace heed::inline HEED_TARGET::cost
