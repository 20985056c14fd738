// SPDX-License-Identifier: MIT
// Runs a kernelised recurrence in one of its forms, and says what scratch that takes.
#pragma once

#include <algorithm>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/core/workspace.hpp"
#include "heed/linear/kernelised/quadratic.hpp"
#include "heed/linear/kernelised/segments.hpp"
#include "heed/linear/options.hpp"
#include "heed/linear/parallel_scan.hpp"
#include "heed/linear/recurrence.hpp"
#include "heed/parallel/scratch_tasks.hpp"

namespace heed::inline HEED_TARGET::detail {

template <class E, class R>
void run_quadratic(E& exec, const R& r, bool causal, workspace& memory) {
  using A = typename decltype(r.state)::scalar;
  const quadratic_form<R, A> form(r);
  for_each_with_scratch(
      exec, r.heads(), memory, [&](arena& c) noexcept { return form.allocate(c); },
      [&](const auto& buffers, index head) noexcept {
        form.head(head / r.k.extent(1), head % r.k.extent(1), causal, buffers);
      });
}

/// The form of a call, and r's tokens a chunk.
template <class R>
[[nodiscard]] linear_form choose_form(R& r, const linear_options& o) noexcept {
  const index tokens = (std::max)(r.tokens(), r.keys());
  const linear_form form =
      o.form.value_or(tokens < 8 ? linear_form::recurrent : linear_form::chunked);
  r.chunk_tokens = form == linear_form::recurrent
                       ? 1
                       : (std::min)({o.chunk, longest_chunk, std::max<index>(tokens, 1)});
  return form;
}

/// What run_kernelised reserves.
template <class E, class R>
[[nodiscard]] std::size_t kernelised_bytes(E& exec, R& r, const linear_options& o) {
  using A = typename decltype(r.state)::scalar;
  const linear_form form = choose_form(r, o);
  if (form == linear_form::parallel) {
    const quadratic_form<R, A> quadratic(r);
    return scratch_bytes(exec, r.heads(), [&](arena& c) noexcept { return quadratic.allocate(c); });
  }
  if (o.causal && form == linear_form::scan) {
    return measure_segments(exec, kernelised_segments(r),
                            tuning<kernel::segmented, A>::fewest_tokens, r.chunk_size())
        .bytes();
  }
  return scratch_bytes(exec, r.heads(), [&](arena& c) noexcept { return r.allocate(c); });
}

/// One batch of sequences of equal length, in the form that is wanted.
template <class E, class R>
void run_kernelised(E& exec, R& r, const linear_options& o, workspace& memory) {
  using A = typename decltype(r.state)::scalar;
  const linear_form form = choose_form(r, o);
  if (form == linear_form::parallel) {
    run_quadratic(exec, r, o.causal, memory);
  } else if (!o.causal) {
    run_separately(exec, r, r.chunk_size(), memory);
  } else if (form == linear_form::recurrent) {
    run_recurrent(exec, r, memory);
  } else if (form == linear_form::scan) {
    run_segments(exec, kernelised_segments(r), tuning<kernel::segmented, A>::fewest_tokens,
                 r.chunk_size(), memory);
  } else {
    run_chunked(exec, r, memory);
  }
}

}  // namespace heed::inline HEED_TARGET::detail
