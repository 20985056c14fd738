// SPDX-License-Identifier: MIT
// Tasks whose workers each have scratch of their own.
#pragma once

#include <algorithm>
#include <cstddef>

#include "heed/core/target.hpp"
#include "heed/core/types.hpp"
#include "heed/core/workspace.hpp"
#include "heed/parallel/executor.hpp"

namespace heed::inline HEED_TARGET {

/// task(scratch, t) for t in [0, tasks), `scratch` being what `allocate(arena&)` returns: pieces of
/// the worker's part of `memory`, of no known contents when a task begins. `allocate` runs once with a
/// arena that only counts, and must then not write. Throws std::bad_alloc before any task runs.
template <executor E, class Carve, class Task>
void for_each_with_scratch(E& exec, index tasks, workspace& memory, Carve&& allocate, Task&& task) {
  if (tasks <= 0) return;
  const index workers = detail::worker_count(exec, tasks);
  arena measure;
  (void)allocate(measure);
  const std::size_t each = measure.used();
  std::byte* const block = memory.reserve(
      static_cast<std::size_t>(saturating_product(static_cast<index>(each), workers)));
  for_each_task(exec, workers, tasks, [&](index worker, index t) noexcept {
    arena c(block + static_cast<std::size_t>(worker) * each);
    auto scratch = allocate(c);
    task(scratch, t);
  });
}

}  // namespace heed::inline HEED_TARGET
