// SPDX-License-Identifier: MIT
// The two products of attention for few queries against rows of codes, widened in registers.
//
//   q.k[j]              = scale[j] (q.code[j] - zero[j] sum(q))
//   sum_j p[j] v[j][c]  = sum_j w[j] code[j][c] - sum_j w[j] zero[j],   w[j] = p[j] scale[j]
//
// So a scale costs an operation a pair, not one a number, and the products run on the codes as
// they are stored. Keys with scales a channel: (q scale).code[j] - (q scale).zero, a group of
// tokens at a time. The results are those of the widened rows to rounding: the errors are of some
// 2^-24 of the largest |code - 0| scale, not of the number itself.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/kernel/split_kv/microkernel.hpp"
#include "heed/kernel/tiled/kv_block.hpp"

namespace heed::inline HEED_TARGET::kernel {

/// use(rows of codes from the run's row `skipped` on, first channel, channels, is first):
/// once, or for each half of codes of 4 bits.
template <int Bits, class Use>
HEED_INLINE void each_half(const code_run& run, index skipped, index channels,
                           const Use& use) noexcept {
  const std::uint8_t* const first = run.codes + skipped * run.stride;
  const index left = run.left - skipped;
  const auto rows = [&]<class T>(const T* codes) {
    return strided_rows<T>{codes, run.stride, left};
  };
  if constexpr (Bits == 8) {
    use(rows(first), index{0}, channels, std::true_type());
  } else {
    const index low = ceil_div(channels, 2);
    use(rows(reinterpret_cast<const simd::low_nibble*>(first)), index{0}, low, std::true_type());
    use(rows(reinterpret_cast<const simd::high_nibble*>(first)), low, channels - low,
        std::false_type());
  }
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
  float* const more = bits == 4 ? scratch : nullptr;
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
    each_half<bits>(
        run, 0, channels, [&](const auto& codes, index first, index n, auto is_first) noexcept {
          split_scores<float>(x + first, x_stride, rows, codes, keys, n, is_first() ? to : more);
        });
    for (index r = 0; r < rows; ++r) {
      float* const of_row = to + r * plan::keys;
      const float* const more_of_row = more == nullptr ? nullptr : more + r * plan::keys;
      const float* const row = x + r * x_stride;
      if (run.by_channel) {
        apply_scales<false>(of_row, more_of_row, run, keys, dot_of(row, run.zero, channels));
      } else {
        float sum = 0;
        auto sums = simd::zero<float>();
        index c = 0;
        for (; c + plan::lanes <= channels; c += plan::lanes) {
          sums = simd::add(sums, simd::load(row + c));
        }
        for (; c < channels; ++c) sum += row[c];
        apply_scales<true>(of_row, more_of_row, run, keys, sum + simd::sum(sums));
      }
    }
  }
}

/// p[r][j] scale[j] in place of p[r][j], for `rows` rows and `keys` tokens of a run; of_zeros[r] takes
/// in their sum times zero[j].
template <class A>
void scale_weights(A* p, index rows, const code_run& run, index keys, A* of_zeros) noexcept {
  using plan = split_plan<A>;
  for (index r = 0; r < rows; ++r, p += plan::keys) {
    auto sums = simd::zero<float>();
    index j = 0;
    for (; j + plan::lanes <= keys; j += plan::lanes) {
      const auto w = simd::mul(simd::load(p + j), simd::load(run.scale + j));
      simd::store(p + j, w);
      sums = simd::fmadd(w, simd::load(run.zero + j), sums);
    }
    float sum = simd::sum(sums);
    for (; j < keys; ++j) {
      p[j] *= run.scale[j];
      sum = simd::fmadd_scalar(p[j], run.zero[j], sum);
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
      for (index i = 0; run.codes != nullptr && i < n; ++i) {
        all = all && std::isfinite(run.scale[i] * run.zero[i]) && std::isfinite(run.scale[i]);
      }
      j += n;
    }
    return all;
  }

  /// o = p v, of which `weights` makes the weights p, as for split_values. `of_zeros` has room for a
  /// number a row.
  template <class A, class Weights>
  void multiply(A* p, index rows, A* o, index o_stride, A* of_zeros,
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
    std::fill_n(of_zeros, rows, 0.0F);
    // In pieces of which the second half of the codes is in the first-level cache.
    constexpr index piece = bits == 8 ? plan::keys : index{128};
    for (index j = block_.begin; j < block_.end;) {
      const code_run run = source_->value_codes(batch_, kv_head_, j);
      const index count = (std::min)(run.count, block_.end - j);
      float* const of_run = p + (j - block_.begin);
      if (run.codes == nullptr) {
        split_values<float>(of_run, rows, strided_rows<float>{run.full, channels_, count}, count,
                            channels_, j == block_.begin, o, o_stride, weights_made());
      } else {
        scale_weights(of_run, rows, run, count, of_zeros);
        for (index i = 0; i < count; i += piece) {
          each_half<bits>(
              run, i, channels_, [&](const auto& codes, index channel, index n, auto) noexcept {
                split_values<float>(of_run + i, rows, codes, (std::min)(piece, count - i), n,
                                    j + i == block_.begin, o + channel, o_stride, weights_made());
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
  const Source* source_;
  index batch_;
  index kv_head_;
  range block_;
  index channels_;
  float* copy_;
};

}  // namespace heed::inline HEED_TARGET::kernel
