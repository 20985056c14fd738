// SPDX-License-Identifier: MIT
// The options of the linear family.
#pragma once

#include <optional>
#include <span>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"

namespace heed::inline HEED_TARGET {

/// Ways to compute the same thing. They agree up to rounding; each has the same bits for any number
/// of threads, which is why none is chosen by their number.
enum class linear_form {
  recurrent,  ///< token by token, F Dv numbers touched a token; for few tokens
  chunked,    ///< matrix products over chunks of tokens; for many
  parallel,   ///< the quadratic definition, every pair visited; the oracle of the others
  scan        ///< chunked, over segments side by side: for fewer heads than threads. 1.5 times the
              ///< work of chunked, 3 times where a state is corrected (delta, low rank)
};

/// No chunk is longer, whatever the options say: it keeps a number of each pair of its tokens.
inline constexpr index longest_chunk = 256;

struct linear_options {
  /// Query i sees the keys up to its own, and reads the state after the write. Otherwise every
  /// query sees every key. The linear family is causal by nature, hence this default.
  bool causal = true;
  /// Divide by phi(q)'z + eps.
  bool normalise = true;
  double eps = 1e-6;
  /// Of the unnormalised output; 1 / sqrt(head dim) where absent. The normalised output has none.
  std::optional<double> scale = std::nullopt;
  /// Where absent: recurrent for fewer than 8 tokens, chunked otherwise.
  std::optional<linear_form> form = std::nullopt;
  /// Tokens a chunk of the chunked form, at most longest_chunk.
  index chunk = 64;
  /// As in recurrence_options: here one sequence after the other, parallel over heads.
  std::span<const index> sequence_bounds{};
  /// Scratch the caller keeps between calls; two calls at once are refused. Without it a call
  /// allocates its own.
  workspace* scratch = nullptr;
};

/// Of the recurrences with gates, delta rules and low rank updates, which are causal by nature.
struct recurrence_options {
  /// Of the output, where the method's definition has one; 1 / sqrt(key head dim) where absent.
  std::optional<double> scale = std::nullopt;
  /// Where absent: recurrent for fewer than 8 tokens, chunked otherwise.
  std::optional<linear_form> form = std::nullopt;
  /// Tokens a chunk of the chunked form, at most longest_chunk; absent, what suits the method.
  std::optional<index> chunk = std::nullopt;
  /// Sequences of different lengths, one after another on the token axis of a batch of 1: where
  /// each begins, and at last where the last one ends. The state has one batch entry a sequence.
  std::span<const index> sequence_bounds{};
  /// Scratch the caller keeps between calls; two calls at once are refused.
  workspace* scratch = nullptr;
};

}  // namespace heed::inline HEED_TARGET
