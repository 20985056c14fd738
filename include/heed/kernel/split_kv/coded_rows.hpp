// SPDX-License-Identifier: MIT
// The two products of attention for few queries against rows of codes, widened in registers.
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
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/code_layout.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/kernel/split_kv/microkernel.hpp"
#include "heed/kernel/tiled/kv_block.hpp"

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
HEED_INLINE void apply_scales(float* s, const float* more, const code_run& run, index keys,
                              float sum) noexcept {
  constexpr index lanes = simd::lanes<float>;
  const auto less = simd::broadcast(-sum);
  index j = 0;
  for (; j + lanes <= keys; j += lanes) {
    auto x = simd::load(s + j);
    if (more != nullptr) x = simd::add(x, simd::load(more + j));
    if constexpr (ByToken) {
      x = simd::mul(simd::load(run.scale + j), simd::fmadd(simd::load(run.zero + j), less, x));
    } else {
      x = simd::add(x, less);
    }
    simd::store(s + j, x);
  }
  for (; j < keys; ++j) {
    const float x = more != nullptr ? s[j] + more[j] : s[j];
    s[j] = ByToken ? run.scale[j] * simd::fmadd_scalar(run.zero[j], -sum, x) : x - sum;
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
        apply_scales<false>(of_row, more_of_row, run, keys, dot_of(row, run.zero, channels));
      } else {
        apply_scales<true>(of_row, more_of_row, run, keys, sum_of(row, channels));
      }
    }
  }
}

/// w[r][j] = p[r][j] scale[j] for `rows` rows, whose places are split_plan::keys apart, and `keys`
/// tokens; w may be p. of_zeros[r] takes in their sum times zero[j].
template <class A>
void scale_weights(const A* p, index rows, const float* scale, const float* zero, index keys, A* w,
                   A* of_zeros) noexcept {
  using plan = split_plan<A>;
  for (index r = 0; r < rows; ++r, p += plan::keys, w += plan::keys) {
    auto sums = simd::zero<float>();
    index j = 0;
    for (; j + plan::lanes <= keys; j += plan::lanes) {
      const auto x = simd::mul(simd::load(p + j), simd::load(scale + j));
      simd::store(w + j, x);
      sums = simd::fmadd(x, simd::load(zero + j), sums);
    }
    float sum = simd::sum(sums);
    for (; j < keys; ++j) {
      w[j] = p[j] * scale[j];
      sum = simd::fmadd_scalar(w[j], zero[j], sum);
    }
    of_zeros[r] += sum;
  }
}

/// For weights that are made already.
struct weights_made {
  template <class Tile>
  HEED_INLINE void operator()(Tile, index, index, index) const noexcept {}
};

/// A block of a source's values, as codes or, for what reads them pair by pair, widened.
template <class Source>
class coded_values {
 public:
  coded_values(const Source& source, index batch, index kv_head, range block, index channels,
               float* copy) noexcept
      : source_(&source),
        batch_(batch),
        kv_head_(kv_head),
        block_(block),
        channels_(channels),
        copy_(copy) {}

  /// use(rows), once, of the widened rows.
  template <class Use>
  void each(Use&& use) const noexcept {
    source_->widen_values(batch_, kv_head_, block_, copy_);
    use(strided_rows<float>{copy_, channels_, index{0}});
  }

  /// Whether the rows `part` of the block are finite, and their scales times any weight.
  [[nodiscard]] bool finite(range part) const noexcept {
    bool all = true;
    for (index j = block_.begin + part.begin; j < block_.begin + part.end && all;) {
      const code_run run = source_->value_codes(batch_, kv_head_, j);
      const index n = (std::min)(run.count, block_.begin + part.end - j);
      if (run.codes == nullptr) {
        all = all_finite<float>(strided_rows<float>{run.full, channels_, n}, n, channels_);
      }
      const index groups = run.group > 0 ? ceil_div(channels_, run.group) : 1;
      for (index g = 0; run.codes != nullptr && g < groups; ++g) {
        const float* const scale = run.scale + g * run.group_step;
        const float* const zero = run.zero + g * run.group_step;
        for (index i = 0; i < n; ++i) {
          all = all && std::isfinite(scale[i] * zero[i]) && std::isfinite(scale[i]);
        }
      }
      j += n;
    }
    return all;
  }

  /// o = p v, of which `weights` makes the weights p, as for split_values. `scratch` has room for
  /// split_plan::keys + 1 numbers a padded row.
  template <class A, class Weights>
  void multiply(A* p, index rows, A* o, index o_stride, A* scratch,
                const Weights& weights) const noexcept {
    using plan = split_plan<A>;
    constexpr int bits = Source::code_bits;
    in_rows<plan::tile_rows>(rows, [&](auto of_tile) HEED_INLINE_LAMBDA {
      for (index r = 0; r < rows; r += of_tile()) {
        for (index j = 0; j < block_.size(); j += keys_of_chain) {
          weights(of_tile, r, j, (std::min)(keys_of_chain, block_.size() - j));
        }
      }
    });
    A* const of_zeros = scratch + plan::padded(rows) * plan::keys;
    std::fill_n(of_zeros, rows, 0.0F);
    for (index j = block_.begin; j < block_.end;) {
      const code_run run = source_->value_codes(batch_, kv_head_, j);
      const index count = (std::min)(run.count, block_.end - j);
      A* const of_run = p + (j - block_.begin);
      const bool begins = j == block_.begin;
      if (run.codes == nullptr) {
        split_values<float>(of_run, rows, strided_rows<float>{run.full, channels_, count}, count,
                            channels_, begins, o, o_stride, weights_made());
      } else if (run.group > 0) {
        multiply_groups<bits>(run, count, of_run, rows, begins, o, o_stride, scratch, of_zeros);
      } else {
        scale_weights(of_run, rows, run.scale, run.zero, count, of_run, of_zeros);
        const index piece = piece_of<bits, A>(run);
        for (index i = 0; i < count; i += piece) {
          each_code_part<bits>(channels_, 0, [&](const auto& part) noexcept {
            split_values<float>(of_run + i, rows, part_rows(part, run, i),
                                (std::min)(piece, count - i), part.count, begins && i == 0,
                                o + part.channel, o_stride, weights_made());
          });
        }
      }
      j += count;
    }
    for (index r = 0; r < rows; ++r) {
      for (index c = 0; c < channels_; ++c) o[r * o_stride + c] -= of_zeros[r];
    }
  }

 private:
  /// The same for the first `count` tokens of a run whose scales are a group of channels, to o or
  /// where that does not begin, added to it.
  template <int Bits, class A>
  HEED_NOINLINE void multiply_groups(const code_run& run, index count, const A* p, index rows,
                                     bool begins, A* o, index o_stride, A* scaled,
                                     A* of_zeros) const noexcept {
    using plan = split_plan<A>;
    const index piece = piece_of<Bits, A>(run);
    const index padded = plan::padded(rows);
    for (index r = rows; r < padded; ++r) std::fill_n(scaled + r * plan::keys, piece, A(0));
    for (index i = 0; i < count; i += piece) {
      const index n = (std::min)(piece, count - i);
      each_code_part<Bits>(channels_, run.group, [&](const auto& part) noexcept {
        const index at = part.group * run.group_step + i;
        std::fill_n(of_zeros, rows, A(0));
        scale_weights(p + i, rows, run.scale + at, run.zero + at, n, scaled, of_zeros);
        split_values<A>(scaled, rows, part_rows(part, run, i), n, part.count, begins && i == 0,
                        o + part.channel, o_stride, weights_made());
        for (index r = 0; r < rows; ++r) {
          A* const to = o + r * o_stride + part.channel;
          for (index c = 0; c < part.count; ++c) to[c] -= of_zeros[r];
        }
      });
    }
    std::fill_n(of_zeros, rows, A(0));
  }

  const Source* source_;
  index batch_;
  index kv_head_;
  range block_;
  index channels_;
  float* copy_;
};

}  // namespace heed::inline HEED_TARGET::kernel
