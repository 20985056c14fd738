// SPDX-License-Identifier: MIT
// Which targets the processor and its operating system run, and the choice among compiled tables.
//
// For the one file that chooses, compiled for the oldest processor of all: no other target's code may
// run before the choice, so this header is included by no kernel and includes none. Its names lie in
// a namespace of their own, without a target.
#pragma once

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) || defined(__i386__)
#define HEED_DISPATCH_X86 1
#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace heed::dispatch {

/// A compiled target: its name and its table, of a type that the caller knows.
struct compiled_target {
  const char* name;
  const void* table;
};

#if defined(HEED_DISPATCH_X86)
/// Whether tiles (AMX) of bfloat16 are here and the kernel lets this process use them: Linux wants to
/// be called once, before threads start that use them.
[[nodiscard]] inline bool offers_tiles() noexcept {
#if defined(__linux__) && defined(__x86_64__)
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned tile_bits = (1U << 22U) | (1U << 24U);  // AMX-BF16, AMX-TILE
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & tile_bits) != tile_bits) return false;
  // A virtual machine may name the unit and offer no palette for it.
  if (__get_cpuid_count(0x1D, 0, &a, &b, &c, &d) == 0 || a == 0) return false;
  constexpr long ask_for_state = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long tile_data = 18;          // XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
#else
  return false;
#endif
}
#endif

/// Whether code of target `name` runs here. A name that is no target: false.
[[nodiscard]] inline bool offers(const char* name) noexcept {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("baseline")) return true;
#if defined(HEED_DISPATCH_X86)
  // These know whether the operating system keeps the registers, too.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (is("avx2")) return avx2;
  if (is("avx512")) return avx512;
  if (is("avx512_bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (is("amx")) return avx512 && __builtin_cpu_supports("avx512bf16") && offers_tiles();
#endif
  return false;
}

/// The first of `count` targets that runs here, or the one that the environment variable HEED_TARGET
/// names. Throws std::runtime_error, naming the targets there are, where that one was not compiled or
/// does not run here, and where none does.
[[nodiscard]] inline const compiled_target& select(const compiled_target* targets, int count) {
  const char* const forced = std::getenv("HEED_TARGET");
  const bool any = forced == nullptr || *forced == '\0';
  std::string names;
  for (int i = 0; i < count; ++i) {
    const bool runs = offers(targets[i].name);
    if (runs && (any || std::strcmp(forced, targets[i].name) == 0)) return targets[i];
    names += std::string(i == 0 ? "" : ", ") + targets[i].name +
             (runs ? "" : " (not on this processor)");
  }
  throw std::runtime_error((any ? std::string("no compiled target runs here: ")
                                : "HEED_TARGET is " + std::string(forced) + ", there are: ") +
                           names);
}

}  // namespace heed::dispatch
