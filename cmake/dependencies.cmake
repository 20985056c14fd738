# SPDX-License-Identifier: MIT
# What heed and its own programs stand on: the system's packages first, downloads second.
include(FetchContent)

# heed_dependency(NAME TARGET REPOSITORY TAG [FIND_PACKAGE_ARGUMENTS...]): makes TARGET exist.
function(heed_dependency name target repository tag)
  if(TARGET ${target})
    return()
  endif()
  find_package(${name} ${ARGN} QUIET GLOBAL)
  if(NOT TARGET ${target})
    message(STATUS "heed: ${name} is not installed; fetching ${tag} from ${repository}")
    FetchContent_Declare(${name} GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON SYSTEM)
    FetchContent_MakeAvailable(${name})
  endif()
endfunction()

set(CMAKE_THREAD_PREFER_PTHREAD ON)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

# Eigen 5 says that it is not compatible with 3, so that one request cannot name both. What the user
# points at comes before what the system has, whichever it is.
set(eigen_hint ${Eigen3_DIR})
foreach(place "NO_CMAKE_SYSTEM_PATH;NO_SYSTEM_ENVIRONMENT_PATH" "")
  foreach(version 3.4 5)
    if(NOT TARGET Eigen3::Eigen)
      find_package(Eigen3 ${version} QUIET NO_MODULE GLOBAL HINTS ${eigen_hint} ${place})
    endif()
  endforeach()
endforeach()
# Eigen's own build would add its tests, documentation and even a Fortran check: headers suffice.
if(NOT TARGET Eigen3::Eigen)
  message(STATUS "heed: Eigen3 is not installed; fetching 3.4.0")
  FetchContent_Declare(
    Eigen3
    GIT_REPOSITORY https://gitlab.com/libeigen/eigen.git
    GIT_TAG 3.4.0
    GIT_SHALLOW ON SOURCE_SUBDIR no-build-of-its-own)
  FetchContent_MakeAvailable(Eigen3)
  add_library(Eigen3::Eigen INTERFACE IMPORTED GLOBAL)
  target_include_directories(Eigen3::Eigen SYSTEM INTERFACE ${eigen3_SOURCE_DIR})
  set(HEED_INSTALL OFF) # an installed heed would not find this Eigen
endif()

if(HEED_TESTS)
  set(INSTALL_GTEST OFF)
  set(RC_ENABLE_GTEST ON)
  heed_dependency(GTest GTest::gtest_main https://github.com/google/googletest.git v1.14.0)
  # Distributions ship rapidcheck's CMake files in several states: any library and header will do.
  find_package(rapidcheck QUIET GLOBAL)
  if(NOT TARGET rapidcheck)
    find_path(HEED_RAPIDCHECK_INCLUDE rapidcheck/gtest.h)
    find_library(HEED_RAPIDCHECK_LIBRARY rapidcheck)
    mark_as_advanced(HEED_RAPIDCHECK_INCLUDE HEED_RAPIDCHECK_LIBRARY)
    if(HEED_RAPIDCHECK_INCLUDE AND HEED_RAPIDCHECK_LIBRARY)
      add_library(rapidcheck UNKNOWN IMPORTED GLOBAL)
      set_target_properties(
        rapidcheck PROPERTIES IMPORTED_LOCATION ${HEED_RAPIDCHECK_LIBRARY}
                              INTERFACE_INCLUDE_DIRECTORIES ${HEED_RAPIDCHECK_INCLUDE})
    else()
      heed_dependency(rapidcheck rapidcheck https://github.com/emil-e/rapidcheck.git
                      ff6af6fc683159deb51c543b065eba14dfcf329b)
    endif()
  endif()
endif()
if(HEED_BENCH)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  heed_dependency(benchmark benchmark::benchmark https://github.com/google/benchmark.git v1.8.3)
endif()
if(HEED_TESTS OR HEED_EXAMPLES)
  heed_dependency(nlohmann_json nlohmann_json::nlohmann_json https://github.com/nlohmann/json.git
                  v3.11.3)
  # Distributions ship utf8proc with a file for pkg-config and seldom one for CMake.
  find_path(HEED_UTF8PROC_INCLUDE utf8proc.h)
  find_library(HEED_UTF8PROC_LIBRARY utf8proc)
  mark_as_advanced(HEED_UTF8PROC_INCLUDE HEED_UTF8PROC_LIBRARY)
  if(HEED_UTF8PROC_INCLUDE AND HEED_UTF8PROC_LIBRARY AND NOT TARGET utf8proc)
    add_library(utf8proc UNKNOWN IMPORTED GLOBAL)
    set_target_properties(
      utf8proc PROPERTIES IMPORTED_LOCATION ${HEED_UTF8PROC_LIBRARY}
                          INTERFACE_INCLUDE_DIRECTORIES ${HEED_UTF8PROC_INCLUDE})
  endif()
  set(UTF8PROC_INSTALL OFF)
  set(UTF8PROC_ENABLE_TESTING OFF)
  heed_dependency(utf8proc utf8proc https://github.com/JuliaStrings/utf8proc.git v2.9.0)
endif()
if(HEED_DEMO OR HEED_EXAMPLES)
  heed_dependency(CLI11 CLI11::CLI11 https://github.com/CLIUtils/CLI11.git v2.4.2)
endif()
