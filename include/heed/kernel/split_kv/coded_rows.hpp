// SPDX-License-Identifier: MIT
// The scores of few queries against rows of codes, widened in registers; values: coded_values.hpp.
//
//   q.k[j]              = scale[j] (q.code[j] - zero[j] sum(q))
//   sum_j p[j] v[j][c]  = sum_j w[j] code[j][c] - sum_j w[j] zero[j],   w[j] = p[j] scale[j]
//
// So a scale costs an operation a pair, not one a number, and the products run on the codes as
// they are stored. Keys with scales a channel: (q scale).code[j] - (q scale).zero, a group of
// tokens at a time. Scales a group of channels: the sum of the above over the groups. The results
// are those of the widened rows to rounding: the errors are of some 2^-24 of the largest
// |code - 0| scale, not of the number itself.
#pragma once

#include <algorithm>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/code_layout.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/kernel/split_kv/code_list.hpp"
#include "heed/kernel/split_kv/microkernel.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// The part's codes in the run's rows from `skipped` on.
template <class T>
[[nodiscard]] HEED_INLINE strided_rows<T> part_rows(const code_part<T>& part, const code_run& run,
                                                    index skipped) noexcept {
  return {part.codes(run.codes + skipped * run.stride), run.stride, run.left - skipped};
}

/// Tokens whose codes are read part by part: they stay in the first-level cache.
template <int Bits, class A>
[[nodiscard]] constexpr index piece_of(const code_run& run) noexcept {
  return Bits == 8 && run.group == 0 ? split_plan<A>::keys : index{128};
}

/// sum_c x[c] y[c].
HEED_INLINE float dot_of(const float* x, const float* y, index n) noexcept {
  constexpr index lanes = simd::lanes<float>;
  auto sum = simd::zero<float>();
  index c = 0;
  for (; c + lanes <= n; c += lanes) sum = simd::fmadd(simd::load(x + c), simd::load(y + c), sum);
  float total = simd::sum(sum);
  for (; c < n; ++c) total += x[c] * y[c];
  return total;
}

/// sum_c x[c].
HEED_INLINE float sum_of(const float* x, index n) noexcept {
  constexpr index lanes = simd::lanes<float>;
  auto sums = simd::zero<float>();
  index c = 0;
  for (; c + lanes <= n; c += lanes) sums = simd::add(sums, simd::load(x + c));
  float total = 0;
  for (; c < n; ++c) total += x[c];
  return total + simd::sum(sums);
}

/// s[j] = scale[j] (s[j] + more[j] - zero[j] sum), without scales s[j] + more[j] - sum.
template <bool ByToken>
HEED_INLINE void apply_scales(float* s, const float* more, const float* scale, const float* zero,
                              index keys, float sum) noexcept {
  constexpr index lanes = simd::lanes<float>;
  const auto less = simd::broadcast(-sum);
  index j = 0;
  for (; j + lanes <= keys; j += lanes) {
    auto x = simd::load(s + j);
    if (more != nullptr) x = simd::add(x, simd::load(more + j));
    if constexpr (ByToken) {
      x = simd::mul(simd::load(scale + j), simd::fmadd(simd::load(zero + j), less, x));
    } else {
      x = simd::add(x, less);
    }
    simd::store(s + j, x);
  }
  for (; j < keys; ++j) {
    const float x = more != nullptr ? s[j] + more[j] : s[j];
    s[j] = ByToken ? scale[j] * simd::fmadd_scalar(zero[j], -sum, x) : x - sum;
  }
}

/// s[j] += scale[j] (more[j] - zero[j] sum), or = where s is `fresh`.
HEED_INLINE void add_scaled(float* s, const float* more, const float* scale, const float* zero,
                            index keys, float sum, bool fresh) noexcept {
  constexpr index lanes = simd::lanes<float>;
  const auto less = simd::broadcast(-sum);
  index j = 0;
  for (; j + lanes <= keys; j += lanes) {
    const auto x = simd::mul(simd::load(scale + j),
                             simd::fmadd(simd::load(zero + j), less, simd::load(more + j)));
    simd::store(s + j, fresh ? x : simd::add(simd::load(s + j), x));
  }
  for (; j < keys; ++j) {
    const float x = scale[j] * simd::fmadd_scalar(zero[j], -sum, more[j]);
    s[j] = fresh ? x : s[j] + x;
  }
}

/// Scores of the first `keys` tokens of a run whose scales are a group of channels; `more` has room
/// for split_plan::keys numbers a padded row.
template <int Bits, class A>
HEED_NOINLINE void grouped_code_scores(const code_run& run, index keys, const A* q, index q_stride,
                                       index rows, index channels, A* s, A* more) noexcept {
  using plan = split_plan<A>;
  const index piece = piece_of<Bits, A>(run);
  for (index i = 0; i < keys; i += piece) {
    const index n = (std::min)(piece, keys - i);
    each_code_part<Bits>(channels, run.group, [&](const auto& part) noexcept {
      split_scores<A>(q + part.channel, q_stride, rows, part_rows(part, run, i), n, part.count,
                      more);
      const index at = part.group * run.group_step + i;
      for (index r = 0; r < rows; ++r) {
        add_scaled(s + r * plan::keys + i, more + r * plan::keys, run.scale + at, run.zero + at, n,
                   sum_of(q + r * q_stride + part.channel, part.count), part.channel == 0);
      }
    });
  }
}

/// Scores of `rows` query rows (padded) against the tokens of `block`, to s[row][token]. `scratch`
/// has room for (split_plan::keys + channels) numbers a padded row. A is float: it is a parameter so
/// that a program may override the plan's sizes after it has included this header.
template <class Source, class A>
void split_code_scores(const Source& source, index batch, index kv_head, range block, const A* q,
                       index q_stride, index rows, index channels, A* s, A* scratch) noexcept {
  static_assert(std::is_same_v<A, float>);
  using plan = split_plan<A>;
  constexpr int bits = Source::code_bits;
  const index padded = plan::padded(rows);
  float* const more = bits == 4 && channels > 1 ? scratch : nullptr;
  if constexpr (has_coded_pages<Source>) {
    code_list<A> list;
    const auto run = [&](index j) { return source.key_codes(batch, kv_head, j); };
    if (list.gather(run, block, ceil_div(channels * bits, 8))) {
      const index keys = block.size();
      each_code_part<bits>(channels, 0, [&](const auto& part) noexcept {
        using T = typename std::remove_cvref_t<decltype(part)>::scalar;
        split_scores<A>(q + part.channel, q_stride, rows, listed_rows<T>{list.row, keys}, keys,
                        part.count, part.channel == 0 ? s : more);
      });
      for (index r = 0; r < rows; ++r) {
        apply_scales<true>(s + r * plan::keys, more == nullptr ? nullptr : more + r * plan::keys,
                           list.scale, list.zero, keys, sum_of(q + r * q_stride, channels));
      }
      return;
    }
  }
  float* const scaled = scratch + padded * plan::keys;
  for (index j = block.begin; j < block.end;) {
    const code_run run = source.key_codes(batch, kv_head, j);
    const index keys = (std::min)(run.count, block.end - j);
    float* const to = s + (j - block.begin);
    j += keys;
    if (run.codes == nullptr) {
      split_scores<float>(q, q_stride, rows, strided_rows<float>{run.full, channels, keys}, keys,
                          channels, to);
      continue;
    }
    if (run.group > 0) {
      grouped_code_scores<bits>(run, keys, q, q_stride, rows, channels, to, scratch);
      continue;
    }
    const float* x = q;
    index x_stride = q_stride;
    if (run.by_channel) {
      x = scaled;
      x_stride = channels;
      for (index r = 0; r < padded; ++r) {
        for (index c = 0; c < channels; ++c) {
          scaled[r * channels + c] = q[r * q_stride + c] * run.scale[c];
        }
      }
    }
    each_code_part<bits>(channels, 0, [&](const auto& part) noexcept {
      split_scores<float>(x + part.channel, x_stride, rows, part_rows(part, run, 0), keys,
                          part.count, part.channel == 0 ? to : more);
    });
    for (index r = 0; r < rows; ++r) {
      float* const of_row = to + r * plan::keys;
      const float* const more_of_row = more == nullptr ? nullptr : more + r * plan::keys;
      const float* const row = x + r * x_stride;
      if (run.by_channel) {
        apply_scales<false>(of_row, more_of_row, run.scale, run.zero, keys,
                            dot_of(row, run.zero, channels));
      } else {
        apply_scales<true>(of_row, more_of_row, run.scale, run.zero, keys, sum_of(row, channels));
      }
    }
  }
}

}  // namespace heed::inline HEED_TARGET::kernel
