// SPDX-License-Identifier: MIT
// malloc and its kin with a count of the bytes in use, by the documented interposition of glibc
// ("Replacing malloc" in its manual).
#include "memory_meter.hpp"

#include <atomic>
#include <cerrno>
#include <cstdlib>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define WALL_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WALL_SANITIZED 1
#endif

#if defined(__GLIBC__) && !defined(WALL_SANITIZED)
#define WALL_COUNTS_MEMORY 1
#include <malloc.h>
#else
#define WALL_COUNTS_MEMORY 0
#endif

namespace {

constinit std::atomic<std::size_t> in_use{0};
constinit std::atomic<std::size_t> high_water{0};

}  // namespace

#if WALL_COUNTS_MEMORY

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void __libc_free(void* p);
}

namespace {

void* gained(void* p) noexcept {
  if (p == nullptr) return p;
  const std::size_t size = malloc_usable_size(p);
  const std::size_t now = in_use.fetch_add(size, std::memory_order_relaxed) + size;
  std::size_t high = high_water.load(std::memory_order_relaxed);
  while (now > high && !high_water.compare_exchange_weak(high, now, std::memory_order_relaxed)) {
  }
  return p;
}

void lost(std::size_t size) noexcept { in_use.fetch_sub(size, std::memory_order_relaxed); }

}  // namespace

extern "C" {

void* malloc(std::size_t size) noexcept { return gained(__libc_malloc(size)); }

void* calloc(std::size_t count, std::size_t size) noexcept {
  return gained(__libc_calloc(count, size));
}

void* realloc(void* old, std::size_t size) noexcept {
  const std::size_t before = old != nullptr ? malloc_usable_size(old) : 0;
  void* const p = __libc_realloc(old, size);
  if (p != nullptr || size == 0) lost(before);
  return gained(p);
}

void* memalign(std::size_t alignment, std::size_t size) noexcept {
  return gained(__libc_memalign(alignment, size));
}

void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  return gained(__libc_memalign(alignment, size));
}

int posix_memalign(void** out, std::size_t alignment, std::size_t size) noexcept {
  void* const p = gained(__libc_memalign(alignment, size));
  if (p == nullptr) return ENOMEM;
  *out = p;
  return 0;
}

void free(void* p) noexcept {
  if (p == nullptr) return;
  lost(malloc_usable_size(p));
  __libc_free(p);
}

}  // extern "C"

#endif

namespace wall {

memory_meter::memory_meter() : start_(in_use.load()) { high_water.store(start_); }

std::optional<double> memory_meter::peak() const {
  if constexpr (WALL_COUNTS_MEMORY == 0) return std::nullopt;
  return static_cast<double>(high_water.load() - start_);
}

}  // namespace wall
