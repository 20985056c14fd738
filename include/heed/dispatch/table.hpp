// SPDX-License-Identifier: MIT
// A user's functions as a table, compiled once for every target of one program.
//
//   // kernels.hpp                                     for everyone
//   struct kernels { void (*attend)(const float* q, const float* k, const float* v, float* out,
//                                   std::ptrdiff_t tokens, std::ptrdiff_t channels); };
//   HEED_DECLARE_TARGETS(kernels, app_kernels);
//
//   // kernels.cpp                                     compiled once for each target
//   HEED_DEFINE_TARGET(kernels, app_kernels) = {attend};
//
//   // CMakeLists.txt
//   heed_add_targets(app SOURCES kernels.cpp TABLE app_kernels TARGETS baseline avx2 avx512)
//
//   // main.cpp
//   app_kernels().attend(q, k, v, out, 512, 64);       of the best target that runs here
//   app_kernels_target();                              its name: "avx2"
//
// What passes through the table are pointers, numbers and types of the caller's own: files of
// different targets share no type of heed, and Eigen's matrices are allocated otherwise by each.
// An exception is caught as a type of the standard library (std::invalid_argument, std::length_error).
//
// Includes nothing, so that the files that call a table need not be compiled beside Eigen.
#pragma once

// NOLINTBEGIN: names are joined, which no function can do.

/// Declares `const Table& name()`, the table of the best target that the processor and its operating
/// system offer, and `const char* name_target()`, that target's name. The environment variable
/// HEED_TARGET forces one. Both throw std::runtime_error, where the variable names a target that was
/// not compiled or that does not run here, or where none of the compiled ones does. Cost after the
/// first call: one load.
#define HEED_DECLARE_TARGETS(Table, name)                                                       \
  extern "C" const void* heed_selected_##name(const char** target);                             \
  [[nodiscard]] inline const Table& name() {                                                    \
    static const Table* const table = static_cast<const Table*>(heed_selected_##name(nullptr)); \
    return *table;                                                                              \
  }                                                                                             \
  [[nodiscard]] inline const char* name##_target() {                                            \
    const char* target = nullptr;                                                               \
    heed_selected_##name(&target);                                                              \
    return target;                                                                              \
  }                                                                                             \
  static_assert(sizeof(Table) > 0)

#define HEED_TABLE_OF_TARGET_(name, target) heed_table_##name##_##target
#define HEED_TABLE_OF_TARGET(name, target) HEED_TABLE_OF_TARGET_(name, target)

/// Begins the definition of the table of the target at hand, which heed_add_targets names by the
/// macro HEED_TARGET_NAME: the one symbol of the file that others see.
#define HEED_DEFINE_TARGET(Table, name)                                \
  extern "C" const Table HEED_TABLE_OF_TARGET(name, HEED_TARGET_NAME); \
  extern "C" const Table HEED_TABLE_OF_TARGET(name, HEED_TARGET_NAME)

// NOLINTEND
