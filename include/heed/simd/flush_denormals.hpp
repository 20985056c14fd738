// SPDX-License-Identifier: MIT
// Denormal results become 0 while an object of this type lives, on the thread that made it.
//
//   {
//     const simd::flush_denormals scope;
//     kernel();                       // a result below the smallest normal number is a signed 0
//   }                                 // the thread's own mode again
//
// A processor that computes a denormal number by a microcode assist takes some hundred cycles for
// it; a fading state or a row of weights far below its maximum is full of them. What is lost is
// below the smallest normal number (1.2e-38 for float, 2.3e-308 for double) an operation.
//
// | target             | what is set                      | denormal operands |
// |--------------------|----------------------------------|-------------------|
// | x86 with SSE       | MXCSR, flush to zero (bit 15)    | are read as such  |
// | AArch64            | FPCR, flush to zero (bit 24)     | count as 0 too    |
// | others             | nothing                          | are read as such  |
//
// Only that bit is changed and given back: rounding mode, exception masks, and exception flags that
// operations raise meanwhile are the user's. Where the user has set it already, nothing is written.
// Scopes nest. `for_each_task` opens one on every worker, a serial call's included, so that the same
// bits come out of any number of threads.
#pragma once

#include <cstdint>

#include "heed/core/target.hpp"
#include "heed/simd/packet.hpp"

namespace heed::inline HEED_TARGET::simd {

#if defined(__SSE__) || defined(_M_X64)

class flush_denormals {
 public:
  flush_denormals() noexcept : was_set_((_mm_getcsr() & bit) != 0) {
    if (!was_set_) _mm_setcsr(_mm_getcsr() | bit);
  }
  ~flush_denormals() {
    if (!was_set_) _mm_setcsr(_mm_getcsr() & ~bit);
  }
  flush_denormals(const flush_denormals&) = delete;
  flush_denormals& operator=(const flush_denormals&) = delete;

  /// Whether denormal results become 0 on this target.
  static constexpr bool acts = true;

 private:
  static constexpr unsigned bit = 1U << 15U;
  bool was_set_;
};

#elif defined(__aarch64__) && HEED_HAS_EXTENSIONS

class flush_denormals {
 public:
  flush_denormals() noexcept : was_set_((read() & bit) != 0) {
    if (!was_set_) write(read() | bit);
  }
  ~flush_denormals() {
    if (!was_set_) write(read() & ~bit);
  }
  flush_denormals(const flush_denormals&) = delete;
  flush_denormals& operator=(const flush_denormals&) = delete;

  static constexpr bool acts = true;

 private:
  static constexpr std::uint64_t bit = std::uint64_t{1} << 24U;
  static std::uint64_t read() noexcept {
    std::uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode) : : "memory");
    return mode;
  }
  static void write(std::uint64_t mode) noexcept {
    asm volatile("msr fpcr, %0" : : "r"(mode) : "memory");
  }
  bool was_set_;
};

#else

class flush_denormals {
 public:
  flush_denormals() noexcept {}
  ~flush_denormals() {}  // not trivial: a scope is never an unused variable
  flush_denormals(const flush_denormals&) = delete;
  flush_denormals& operator=(const flush_denormals&) = delete;

  static constexpr bool acts = false;
};

#endif

}  // namespace heed::inline HEED_TARGET::simd
