// SPDX-License-Identifier: MIT
// Weights of few queries times values that are rows of codes, widened in registers: the second product
// of coded_rows.hpp, which has the formulas.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "heed/core/target.hpp"
#include "heed/kernel/code_layout.hpp"
#include "heed/kernel/kv_source.hpp"
#include "heed/kernel/split_kv/code_list.hpp"
#include "heed/kernel/split_kv/coded_rows.hpp"
#include "heed/kernel/split_kv/microkernel.hpp"
#include "heed/kernel/tiled/kv_block.hpp"

namespace heed::inline HEED_TARGET::kernel {

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
    const auto subtract_zeros = [&] {
      for (index r = 0; r < rows; ++r) {
        for (index c = 0; c < channels_; ++c) o[r * o_stride + c] -= of_zeros[r];
      }
    };
    if constexpr (has_coded_pages<Source>) {
      code_list<A> list;
      const auto run = [&](index j) { return source_->value_codes(batch_, kv_head_, j); };
      if (list.gather(run, block_, (std::max)(index{1}, ceil_div(channels_ * bits, 8)))) {
        const index keys = block_.size();
        scale_weights(p, rows, list.scale, list.zero, keys, p, of_zeros);
        const index piece = piece_of<bits, A>({});
        for (index i = 0; i < keys; i += piece) {
          each_code_part<bits>(channels_, 0, [&](const auto& part) noexcept {
            using T = typename std::remove_cvref_t<decltype(part)>::scalar;
            split_values<A>(p + i, rows, listed_rows<T>{list.row + i, keys - i},
                            (std::min)(piece, keys - i), part.count, i == 0, o + part.channel,
                            o_stride, weights_made());
          });
        }
        return subtract_zeros();
      }
    }
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
    subtract_zeros();
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
