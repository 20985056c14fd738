// SPDX-License-Identifier: MIT
// OpenMP as an executor, and the executor used where none is given.
//
// Without an executor argument heed runs serially, or through OpenMP where the user compiles with
// -fopenmp: the threads are then the user's own choice. Compile all files of a program with it or
// none: the linker keeps one of two functions of the same name, whichever way it was compiled.
#pragma once

#include "heed/core/target.hpp"
#include "heed/parallel/executor.hpp"

#if defined(_OPENMP)
#include <omp.h>

namespace heed::inline HEED_TARGET {

struct openmp_executor {
  [[nodiscard]] static index concurrency() noexcept {
    return omp_in_parallel() != 0 ? 1 : static_cast<index>(omp_get_max_threads());
  }
  template <class Body>
  static void run(index workers, Body&& body) {
    const int threads = static_cast<int>(workers);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
    for (index w = 0; w < workers; ++w) body(w);
  }
};

/// Who runs a call that is given no executor: OpenMP's threads where the user compiles with it.
using default_executor = openmp_executor;

}  // namespace heed::inline HEED_TARGET
#else
namespace heed::inline HEED_TARGET {
/// Who runs a call that is given no executor: the calling thread.
using default_executor = serial_executor;
}  // namespace heed::inline HEED_TARGET
#endif
