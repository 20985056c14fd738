# SPDX-License-Identifier: MIT
# One program for many processors: a user's kernels compiled once for each, chosen as it starts.
#
#   heed_add_targets(app SOURCES kernels.cpp... TABLE app_kernels [TARGETS baseline avx2...]
#                    [OPTIONS option...])
#
# SOURCES define the table HEED_DEFINE_TARGET(type, app_kernels), see heed/dispatch/table.hpp; they
# are compiled once a target with its -march, with app's own options, definitions, include folders
# and libraries, and OPTIONS. Each target's objects become one, in which every symbol but the table
# is local: no inline function or template of one target can stand for another's, Eigen's and the
# standard library's included. On systems without ELF each target is a shared library of hidden
# symbols instead.
#
# Targets of x86-64, best last: baseline (any), avx2 (x86-64-v3), avx512 (x86-64-v4), avx512_bf16,
# amx. On other processors TARGETS may only be baseline, which is compiled without -march.
include_guard(GLOBAL)

set(heed_add_targets_dir ${CMAKE_CURRENT_LIST_DIR})

function(heed_add_targets app)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "TABLE" "SOURCES;TARGETS;OPTIONS")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "heed_add_targets: ${arg_UNPARSED_ARGUMENTS} is no keyword of it")
  endif()
  if(NOT TARGET ${app})
    message(FATAL_ERROR "heed_add_targets: there is no target ${app}")
  endif()
  if(NOT arg_SOURCES OR NOT arg_TABLE)
    message(FATAL_ERROR "heed_add_targets(${app}): SOURCES and TABLE are needed")
  endif()
  set(flags_baseline "-march=x86-64")
  set(flags_avx2 "-march=x86-64-v3")
  set(flags_avx512 "-march=x86-64-v4")
  set(flags_avx512_bf16 "-march=x86-64-v4;-mavx512bf16")
  set(flags_amx "-march=sapphirerapids")
  set(known baseline avx2 avx512 avx512_bf16 amx)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    set(flags_baseline "")
    set(known baseline)
  endif()
  if(NOT arg_TARGETS)
    set(arg_TARGETS ${known})
    list(REMOVE_ITEM arg_TARGETS avx512_bf16 amx)
  endif()
  foreach(target IN LISTS arg_TARGETS)
    if(NOT target IN_LIST known)
      message(FATAL_ERROR "heed_add_targets(${app}): ${target} is no target here: ${known}")
    endif()
  endforeach()

  # Of the linkers only GNU's dissolves groups.
  set(linker ${CMAKE_LINKER})
  if(linker MATCHES "lld|gold|mold")
    find_program(HEED_RELOCATABLE_LINKER NAMES ld.bfd REQUIRED)
    set(linker ${HEED_RELOCATABLE_LINKER})
  endif()

  # Best first, whatever the order they were named in.
  set(targets)
  foreach(target IN LISTS known)
    if(target IN_LIST arg_TARGETS)
      list(PREPEND targets ${target})
    endif()
  endforeach()

  set(declarations)
  set(entries)
  foreach(target IN LISTS targets)
    set(part ${app}_${arg_TABLE}_${target})
    set(symbol heed_table_${arg_TABLE}_${target})
    if(CMAKE_EXECUTABLE_FORMAT STREQUAL "ELF")
      add_library(${part} OBJECT ${arg_SOURCES})
      set_target_properties(${part} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    else()
      add_library(${part} SHARED ${arg_SOURCES})
    endif()
    foreach(what COMPILE_OPTIONS COMPILE_DEFINITIONS INCLUDE_DIRECTORIES LINK_LIBRARIES
                 COMPILE_FEATURES)
      set_property(TARGET ${part} PROPERTY ${what} $<TARGET_PROPERTY:${app},${what}>)
    endforeach()
    target_link_libraries(${part} PRIVATE heed::heed)
    target_compile_options(${part} PRIVATE ${flags_${target}} ${arg_OPTIONS})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # A unique symbol is one for the whole program, which is what must not be.
      target_compile_options(${part} PRIVATE -fno-gnu-unique)
    endif()
    target_compile_definitions(${part} PRIVATE HEED_TARGET_NAME=${target})
    set_target_properties(${part} PROPERTIES CXX_VISIBILITY_PRESET hidden
                                             VISIBILITY_INLINES_HIDDEN ON
                                             INTERPROCEDURAL_OPTIMIZATION OFF)
    if(CMAKE_EXECUTABLE_FORMAT STREQUAL "ELF")
      set(object ${CMAKE_CURRENT_BINARY_DIR}/${part}.o)
      add_custom_command(
        OUTPUT ${object}
        # Groups are dissolved: the linker would keep one of two of the same name, local or not.
        COMMAND ${linker} -r --force-group-allocation -o ${object}.merged
                $<TARGET_OBJECTS:${part}>
        COMMAND ${CMAKE_OBJCOPY} --keep-global-symbol=${symbol} ${object}.merged ${object}
        COMMAND ${CMAKE_COMMAND} -E rm -f ${object}.merged
        DEPENDS ${part} $<TARGET_OBJECTS:${part}>
        COMMAND_EXPAND_LISTS VERBATIM
        COMMENT "Hiding the symbols of ${part}")
      target_sources(${app} PRIVATE ${object})
      set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    else()
      target_link_libraries(${app} PRIVATE ${part})
    endif()
    string(APPEND declarations "extern \"C\" const char ${symbol};\n")
    string(APPEND entries "    {\"${target}\", &${symbol}},\n")
  endforeach()

  set(HEED_TABLE ${arg_TABLE})
  set(HEED_TABLE_DECLARATIONS "${declarations}")
  set(HEED_TABLE_ENTRIES "${entries}")
  list(LENGTH targets HEED_TABLE_COUNT)
  set(selection ${CMAKE_CURRENT_BINARY_DIR}/${app}_${arg_TABLE}.cpp)
  configure_file(${heed_add_targets_dir}/select_target.cpp.in ${selection} @ONLY)
  target_sources(${app} PRIVATE ${selection})
  if(flags_baseline)
    set_source_files_properties(${selection} PROPERTIES COMPILE_OPTIONS "${flags_baseline}")
  endif()
endfunction()
